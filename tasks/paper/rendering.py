"""Tables in the paper's layout as text, Markdown, HTML, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence
from html import escape

from optiml_jax.common.tables import aligned
from tasks.paper.layout import BOLD, UNDERLINED, Grid, Part, Record

FORMATS = ("text", "markdown", "html", "csv", "latex")
SUFFIXES = {".txt": "text", ".md": "markdown", ".html": "html", ".csv": "csv", ".tex": "latex"}
_CODES = {BOLD: "1", UNDERLINED: "4"}  # of terminals
_TAGS = {BOLD: "b", UNDERLINED: "u"}
_COMMANDS = {BOLD: r"\textbf", UNDERLINED: r"\underline"}
STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{padding:.15em .6em;text-align:right;white-space:nowrap}th{border-bottom:1px solid #888}"
    "td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}thead tr:first-child th{text-align:center}"
    "tr.first td{border-top:1px solid #ddd}tr.difference,tr.interval{color:#777}p{color:#555;margin:.2em 0}"
)


def render(grid: Grid, form: str, colour: bool = False) -> str:
    """Renders a table.

    Args:
      form: one of `FORMATS`.
      colour: whether the terminal shows bold and underlined text.
    """
    renderers = {
        "text": lambda grid: text(grid, colour),
        "markdown": markdown,
        "html": html,
        "csv": comma,
        "latex": latex,
    }
    return renderers[form](grid)


def _rows(grid: Grid, part: Callable[[Part], str], separator: str = "/") -> list[list[str]]:
    """The lines as texts; a label is shown once."""
    rows, label = [], None
    for line in grid.lines:
        cells = [separator.join(map(part, cell)) if any(p.text != "–" for p in cell) else "–" for cell in line.cells]
        rows.append(["" if line.row == label else line.row, line.kind, *cells])
        label = line.row
    return rows


def text(grid: Grid, colour: bool = False) -> str:
    """Aligned columns for the terminal; bold is *12.3* and underlined _12.3_ where there is no colour."""

    def plain(part: Part) -> str:
        sign = {BOLD: "*", UNDERLINED: "_"}.get(part.mark, "")
        return f"{sign}{part.text}{sign}"

    columns = [part.replace(". ", ".").replace(" ", "\n") if len(part) > 9 else part for part in grid.columns]
    height = max(column.count("\n") for column in columns) + 1
    header = [([""] * height + column.split("\n"))[-height:] for column in columns]
    rows = _rows(grid, plain)
    lines = aligned([*zip(*header), *rows], [False, False, *[True] * (len(columns) - 2)])
    starts = _starts([*zip(*header), *rows])
    heading = ""
    for name, start in zip(_first_columns(grid), starts):
        heading = heading.ljust(start) + name if name else heading
    if colour:
        lines = [_coloured(line) for line in lines]
    rule = "-" * max(map(len, lines))
    above = [heading.rstrip()] if heading else []
    return "\n".join([grid.title, "", *above, *lines[:height], rule, *lines[height:], "", *grid.notes])


def _first_columns(grid: Grid) -> list[str]:
    """The headings above the columns, each at its first column."""
    headings = ["", ""]
    for name, span in grid.groups:
        headings += [name, *[""] * (span - 1)]
    return headings


def _starts(rows: Sequence[Sequence[str]]) -> list[int]:
    """Where each column starts."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [sum(widths[:index]) + 2 * index for index in range(len(widths))]


def _coloured(line: str) -> str:
    for sign, mark in (("*", BOLD), ("_", UNDERLINED)):
        pieces = line.split(sign)
        if len(pieces) % 2:
            code = f"\x1b[{_CODES[mark]}m"
            line = "".join(f"{code}{piece}\x1b[0m" if index % 2 else piece for index, piece in enumerate(pieces))
    return line


def markdown(grid: Grid) -> str:
    def part(part: Part) -> str:
        return {BOLD: "**{}**", UNDERLINED: "<u>{}</u>"}.get(part.mark, "{}").format(part.text)

    groups = _first_columns(grid)
    header = [f"{group}: {column}" if group else column for group, column in zip(groups, grid.columns)]
    rule = ["---", "---", *["---:"] * (len(grid.columns) - 2)]
    rows = [header, rule, *_rows(grid, part)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"### {grid.title}", "", *lines, "", *(f"{note}  " for note in grid.notes)]) + "\n"


def html(grid: Grid) -> str:
    def part(part: Part) -> str:
        shown = escape(part.text)
        return f"<{_TAGS[part.mark]}>{shown}</{_TAGS[part.mark]}>" if part.mark in _TAGS else shown

    groups = "".join(f'<th colspan="{span}">{escape(name)}</th>' for name, span in grid.groups)
    header = "".join(f"<th>{escape(column)}</th>" for column in grid.columns)
    kinds = {"±": "interval"}
    rows = "\n".join(
        f'<tr class="{kinds.get(row[1], row[1])}{" first" if row[0] else ""}">'
        + "".join(f"<td>{escape(text) if index < 2 else text}</td>" for index, text in enumerate(row))
        + "</tr>"
        for row in _rows(grid, part)
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in grid.notes)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(grid.title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{escape(grid.title)}</h1>\n<table>\n<thead>"
        f'<tr><th colspan="2"></th>{groups}</tr>\n<tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n'
        f"{notes}\n</body>\n</html>\n"
    )


def comma(grid: Grid) -> str:
    """One line per cell, for programs."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Record._fields)
    for record in grid.records:
        writer.writerow(
            ["" if value is None else round(value, 4) if isinstance(value, float) else value for value in record]
        )
    return file.getvalue()


def latex(grid: Grid) -> str:
    """A table for LaTeX's package booktabs."""

    def part(part: Part) -> str:
        shown = part.text.replace("–", "--")
        return f"{_COMMANDS[part.mark]}{{{shown}}}" if part.mark in _COMMANDS else shown

    groups, place = ["", ""], 3
    rules = []
    for name, span in grid.groups:
        groups.append(rf"\multicolumn{{{span}}}{{c}}{{{escaped(name)}}}")
        if name:
            rules.append(rf"\cmidrule(lr){{{place}-{place + span - 1}}}")
        place += span
    rows, several = [], len({line.kind for line in grid.lines}) > 1
    for index, row in enumerate(_rows(grid, part)):
        if row[0] and index and several:
            rows.append(r"\midrule")
        rows.append(" & ".join([escaped(row[0]), {"±": r"$\pm$"}.get(row[1], row[1]), *row[2:]]) + r" \\")
    header = " & ".join(map(escaped, grid.columns)) + r" \\"
    notes = " ".join(map(escaped, grid.notes))
    over = [" & ".join(groups) + r" \\", "".join(rules)] if any(name for name, _ in grid.groups) else []
    return booktabs("ll" + "r" * (len(grid.columns) - 2), [*over, header], rows, f"{escaped(grid.title)}. {notes}")


def booktabs(columns: str, header: Sequence[str], rows: Sequence[str], caption: str) -> str:
    """The frame of a table around its lines.

    Args:
      columns: alignment of each, such as "lrr".
    """
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *header, r"\midrule"]
    lines += [*rows, r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """The text without a sign that LaTeX reads as a command."""
    signs = {sign: rf"\{sign}" for sign in "%#&_{}$"}
    signs |= {"^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "\\": r"\textbackslash{}", "±": r"$\pm$"}
    signs |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    return "".join(signs.get(sign, sign) for sign in text)
