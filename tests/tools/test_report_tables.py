"""The tables of a report as CSV and LaTeX."""

import csv
import io
import re

from optiml_jax.evaluation.reports.tables import Table, TableRow
from tools import report_tables

CELLS = ("a_b & 100% of {x}$", "12.5", "–", "(3.0–4.0)")
TABLE = Table("Levels of generalization", ("level", "score", "floor", "95%"), 1, (TableRow(CELLS, 0.125, None, None),))


def test_csv_reads_back_with_absent_values_empty():
    rows = list(csv.reader(io.StringIO(report_tables.comma_separated(TABLE))))
    assert rows == [["level", "score", "floor", "95%"], [CELLS[0], "12.5", "", "(3.0–4.0)"]]


def test_latex_escapes_what_it_reads_as_commands():
    text = report_tables.latex(TABLE)
    assert r"\begin{tabular}{lrrr}" in text and r"level & score & floor & 95\% \\" in text
    assert r"a\_b \& 100\% of \{x\}\$ & 12.5 & -- & (3.0--4.0) \\" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2
    assert not re.search(r"(?<!\\)[%_$]", text)
