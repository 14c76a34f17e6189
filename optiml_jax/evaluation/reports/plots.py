"""SVG plots of a report: scores with their intervals, and curves over training steps.

Colours are classes of the page's style sheet, which has a light and a dark theme.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape

from optiml_jax.evaluation.reports.tables import TableRow, interval_text, per_cent

WIDTH, LEFT, RIGHT = 460, 132, 46  # of a plot, of the labels on its left, of the numbers on its right
LINE = 40  # height of one bar with its margins
CURVE_HEIGHT, MARGIN, TITLE = 194, 42, 26  # TITLE: above the curve
MAX_POINTS = 400  # of a curve; more are not distinguishable


def bar(row: TableRow) -> str:
    """A bar for a table cell: score, interval, floor, and the scores that it is the mean of."""
    title = f"score {per_cent(row.score)}, 95% {interval_text(row.interval)}, floor {per_cent(row.floor)}"
    title = f"scores {', '.join(map(per_cent, sorted(row.dots)))}" if row.dots else title
    parts = [_box("track", 0, 100, 1.5, 7)]
    parts += [_box("dot", 100 * score - 0.4, 0.8, 0, 10) for score in row.dots]
    if not row.dots:
        parts.append(_box("full", 0, 100 * row.score, 1.5, 7))
    if row.interval:
        low, high = (100 * end for end in row.interval)
        parts.append(_box("between", low, high - low, 4.2, 1.6))
    if row.floor is not None:
        parts.append(_box("floor", 100 * row.floor - 0.4, 0.8, 0, 10))
    return _svg("bar", 100, 10, parts, title, stretched=True)


def levels(rows: Sequence[tuple[str, TableRow]]) -> str:
    """Large bars of a few named scores, on one scale."""
    width = WIDTH - LEFT - RIGHT
    height = LINE * len(rows) + 24
    parts = []
    for mark in range(0, 101, 20):
        x = LEFT + width * mark / 100
        parts += [_line("grid", x, 4, x, height - 22), _text("tick", x, height - 6, str(mark), "middle")]
    for index, (name, row) in enumerate(rows):
        middle = LINE * index + 4 + LINE / 2
        parts.append(_text("name", LEFT - 10, middle + 4, name, "end"))
        parts.append(_box("full", LEFT, width * row.score, middle - 10, 20))
        if row.interval:
            low, high = (LEFT + width * end for end in row.interval)
            parts.append(_line("whisker", low, middle, high, middle))
            parts += [_line("whisker", x, middle - 5, x, middle + 5) for x in (low, high)]
        if row.floor is not None:
            x = LEFT + width * row.floor
            parts.append(_line("floor-line", x, middle - 16, x, middle + 16))
        parts.append(_text("number", WIDTH - RIGHT + 8, middle + 4, per_cent(row.score), "start"))
    return _svg("plot", WIDTH, height, parts, "; ".join(f"{name} {per_cent(row.score)}" for name, row in rows))


def curve(
    points: Sequence[Sequence[float]], label: str, scale: float = 1.0, validated: Sequence[Sequence[float]] = ()
) -> str:
    """A line through the (step, value) points of a training run.

    Args:
      label: description of the values.
      scale: factor applied to the values, such as 100 for per cent.
      validated: (step, value) points of validations in the same unit, drawn as circles on the same axes.
    """
    stride = max(1, math.ceil(len(points) / MAX_POINTS))
    shown = [*points[::stride], *points[-1:]] if (len(points) - 1) % stride else list(points[::stride])
    both = [*shown, *validated]
    xs, ys = [step for step, _ in both], [scale * value for _, value in both]
    x_marks, y_marks = list(_marks(min(0, *xs), max(xs))), list(_marks(min(ys), max(ys)))
    x_span, y_span = (x_marks[0], max(x_marks[-1], *xs)), (min(y_marks[0], *ys), max(y_marks[-1], *ys))
    width, height = WIDTH - MARGIN - 16, CURVE_HEIGHT - MARGIN - TITLE

    def at(x: float, y: float) -> tuple[float, float]:
        right = (x - x_span[0]) / ((x_span[1] - x_span[0]) or 1)
        up = (y - y_span[0]) / ((y_span[1] - y_span[0]) or 1)
        return MARGIN + width * right, TITLE + height * (1 - up)

    parts = [_text("name", 4, 12, label, "start")]
    for mark in y_marks:
        _, y = at(x_span[0], mark)
        parts += [_line("grid", MARGIN, y, MARGIN + width, y), _text("tick", MARGIN - 6, y + 4, f"{mark:,g}", "end")]
    for mark in x_marks[:-1]:
        parts.append(_text("tick", at(mark, y_span[0])[0], CURVE_HEIGHT - 8, f"{mark:,g}", "middle"))
    parts.append(_text("tick", WIDTH, CURVE_HEIGHT - 8, f"{x_marks[-1]:,g}", "end"))  # else the edge would cut it
    coordinates = [at(x, scale * y) for x, y in shown]
    parts.append(f'<polyline class="curve" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in coordinates)}"/>')
    if len(coordinates) <= 30 and not validated:
        parts += [f'<circle class="full" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in coordinates]
    for step, value in validated:
        x, y = at(step, scale * value)
        parts.append(f'<circle class="validated" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    (first, start), (last, end) = shown[0], shown[-1]
    title = f"{label} from {scale * start:.3f} at step {first:,} to {scale * end:.3f} at step {last:,}"
    return _svg("plot", WIDTH, CURVE_HEIGHT, parts, title)


def _marks(low: float, high: float) -> Iterator[float]:
    """Yields three to eight round numbers that span an interval."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
    for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1):
        yield round(i * step, 12)


def _svg(kind: str, width: float, height: float, parts: Sequence[str], title: str, stretched: bool = False) -> str:
    fit = ' preserveAspectRatio="none"' if stretched else ""
    head = f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}"{fit} role="img">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"


def _box(kind: str, x: float, width: float, y: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.2f}" y="{y:g}" width="{max(width, 0):.2f}" height="{height:g}"/>'


def _line(kind: str, x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
