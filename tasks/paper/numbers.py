"""The paper's numbers: `tasks/catalog/paper_tables/tableNN.tsv`, one line per row, checked against the paper's text."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from optiml_jax.common.errors import UserError
from tasks.catalog.registry import CATALOG, listed

FOLDER = CATALOG.with_name("paper_tables")
AVERAGE = "average"
Place = tuple[str, str]  # a column's key and the number of shots: "" if the paper prints a single number, or "k"


class Printed(NamedTuple):
    """A row as it is printed.

    Attributes:
      cells: (column, shots) -> number in per cent; empty cells are left out.
      averages: shots -> the printed average.
      marks: (column, shots) -> "bold", "underlined" or "dagger"; the column may be `AVERAGE`.
    """

    cells: Mapping[Place, float]
    averages: Mapping[str, float]
    marks: Mapping[Place, str]


def _place(name: str) -> Place:
    """The place that a column of the file stands for: "summ_0shot", or "bbh"."""
    match = re.fullmatch(r"(.+)_(\d+|k)shot", name)
    return (match[1], match[2]) if match else (name, "")


@functools.cache
def texts(number: int) -> list[dict[str, str]]:
    """The lines of a table's file: row, columns, and marks.

    Raises:
      UserError: the paper has no such table of numbers.
    """
    path = Path(FOLDER, f"table{number:02}.tsv")
    if not path.exists():
        raise UserError(f"--table={number}: the paper has no such table of numbers")
    return listed(path)


@functools.cache
def printed(number: int) -> dict[str, Printed]:
    """Row label -> the row, in the paper's order."""
    rows = {}
    for line in texts(number):
        values = {_place(name): float(text) for name, text in line.items() if text and name not in ("row", "marks")}
        marks = dict(_mark(text) for text in (line["marks"] or "").split("; ") if text)
        averages = {shots: value for (key, shots), value in values.items() if key == AVERAGE}
        cells = {place: value for place, value in values.items() if place[0] != AVERAGE}
        rows[line["row"]] = Printed(cells, averages, marks)
    return rows


def _mark(text: str) -> tuple[Place, str]:
    name, mark = text.rsplit(" ", 1)
    return _place(name), mark
