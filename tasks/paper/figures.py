"""Figures 2 to 5: scores of categories by level and number of shots, ours solid and the paper's dashed."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from optiml_jax.common.errors import UserError
from optiml_jax.common.files import atomic
from tasks.paper import layout
from tasks.paper.definitions import GROUPS, TABLES, Column, Figure
from tasks.paper.numbers import printed
from tasks.paper.runs import Runs, Scores, scores

SUFFIXES = (".svg", ".png", ".pdf")
PANEL = 4.2, 3.2  # inches


class Curve(NamedTuple):
    """Points of a column: places on the x-axis, scores in per cent, and half of their intervals (0: none)."""

    column: Column
    x: tuple[float, ...]
    y: tuple[float, ...]
    half_widths: tuple[float, ...]


Panel = tuple[str, str]  # level and number of shots


def curves(figure: Figure, runs: Runs | None, rows: Mapping[str, str] = {}) -> dict[Panel, list[Curve]]:
    """The curves of each panel.

    Args:
      runs: of our own; None: the paper's.
      rows: name of a run -> the table's row.
    """
    definition = TABLES[figure.table]
    every = layout.places(definition)
    if runs is None:
        by_row = {
            label: {place: Scores((value,)) for place, value in row.cells.items()}
            for label, row in printed(figure.table).items()
        }
    else:
        by_row = {
            label: scores(definition, every, seeds) for label, seeds in layout.by_row(definition, runs, rows).items()
        }
    panels: dict[Panel, list[Curve]] = {}
    for shots in figure.shots:
        for column in definition.columns:
            place = column.key, shots
            points = [
                (figure.positions[label], cells[place].mean, cells[place].half_width or 0.0)
                for label, cells in by_row.items()
                if label in figure.positions and place in cells
            ]
            if points:
                panels.setdefault((column.group, shots), []).append(Curve(column, *zip(*sorted(points))))
    return panels


def draw(figure: Figure, runs: Runs | None, rows: Mapping[str, str], path: str | Path) -> None:
    """Draws the figure to a file; with runs of our own, the paper's curves are dashed beside them.

    Raises:
      UserError: the file's suffix is unknown, matplotlib is not installed, or no run has a place on the x-axis.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"--output={path}: a figure is written as {', '.join(SUFFIXES)}")
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise UserError("figures need matplotlib: pip install -e '.[notebooks]'") from None
    paper = curves(figure, None)
    ours = curves(figure, runs, rows) if runs is not None else {}
    if runs is not None and not ours:
        raise UserError(f"no run is a row of Table {figure.table}: {', '.join(figure.positions)}; name it with --rows")
    canvas = Canvas(figsize=(PANEL[0] * len(GROUPS), PANEL[1] * len(figure.shots)), layout="constrained")
    axes = canvas.subplots(len(figure.shots), len(GROUPS), squeeze=False, sharex=True)
    for line, shots in zip(axes, figure.shots):
        for axis, group in zip(line, GROUPS.values()):
            _panel(axis, figure, ours.get((group, shots), []), paper.get((group, shots), []), bool(ours))
            axis.set_title(f"{group}, {shots}-shot", fontsize=10, pad=22)
    for axis in axes[-1]:
        axis.set_xlabel(figure.axis)
    for line in axes:
        line[0].set_ylabel("score (%)")
    title = f"Figure {figure.number} of the paper"
    canvas.suptitle(f"{title} (dashed), ours solid" if ours else title, fontsize=11)
    with atomic(path) as file:
        canvas.savefig(file, format=path.suffix[1:], dpi=150)


def _panel(axis, figure: Figure, ours: list[Curve], paper: list[Curve], beside: bool) -> None:
    if figure.logarithmic:
        axis.set_xscale("log")
    ticks = sorted(set(figure.positions.values()))
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8, rotation=45 if figure.logarithmic else 0)
    axis.minorticks_off()
    colours = {column.key: f"C{index}" for index, column in enumerate(TABLES[figure.table].columns)}
    for curve in paper:
        label = None if beside and any(curve.column == other.column for other in ours) else curve.column.heading
        style = {"linestyle": "--", "alpha": 0.6} if beside else {}
        axis.plot(curve.x, curve.y, marker="o", markersize=3, color=colours[curve.column.key], label=label, **style)
    for curve in ours:
        colour = colours[curve.column.key]
        axis.errorbar(
            curve.x,
            curve.y,
            curve.half_widths,
            marker="o",
            markersize=4,
            capsize=2,
            color=colour,
            label=curve.column.heading,
        )
    axis.grid(alpha=0.25)
    legend = {"frameon": False, "handlelength": 1.2, "columnspacing": 1.0}
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=5, fontsize=7, **legend)
