"""The tables of a report as files for spreadsheets (CSV) and papers (LaTeX's package booktabs)."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from optiml_jax.common.files import write_atomically
from optiml_jax.evaluation.reports.tables import Table
from tasks.paper.rendering import booktabs, escaped


def write(tables: Sequence[Table], folder: str | Path) -> list[Path]:
    """Writes each table as NAME.csv and NAME.tex, NAME its title; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for table in tables:
        name = table.title.lower().replace(" ", "_")
        for suffix, text in ((".csv", comma_separated(table)), (".tex", latex(table))):
            paths.append(folder / f"{name}{suffix}")
            write_atomically(paths[-1], text)
    return paths


def comma_separated(table: Table) -> str:
    """The cells as the report shows them; an absent value is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(["" if cell == "–" else cell for cell in row.cells] for row in table.rows)
    return file.getvalue()


def latex(table: Table) -> str:
    """A table with its title as the caption."""
    columns = "l" * table.text_columns + "r" * (len(table.columns) - table.text_columns)
    header, *rows = (
        " & ".join(escaped(cell).replace("–", "--") for cell in cells) + r" \\"
        for cells in (table.columns, *(row.cells for row in table.rows))
    )
    return booktabs(columns, [header], rows, escaped(table.title))
