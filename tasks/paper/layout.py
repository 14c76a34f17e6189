"""A table in the paper's layout: our scores, their intervals, the paper's numbers and the differences, row by row."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from typing import NamedTuple

from optiml_jax.common.errors import UserError
from tasks.paper.definitions import Definition
from tasks.paper.numbers import AVERAGE, Place, Printed, printed
from tasks.paper.runs import Runs, Scores, average, scores

BOLD, UNDERLINED = "bold", "underlined"
DEGENERATE = 8.0  # points below the baseline; Table 8's underlined cells are 8.8 to 20.0 below, its others at most 6.0
OURS, INTERVAL, PAPER, DIFFERENCE = "ours", "±", "paper", "difference"
BOTH = "both"  # key of the mean over numbers of shots, by which the paper selects models (4.1)


class Part(NamedTuple):
    """A number of a cell, as text, and its mark."""

    text: str
    mark: str | None = None


class Line(NamedTuple):
    """A line of the table: one of four kinds for each row."""

    row: str
    kind: str
    cells: tuple[tuple[Part, ...], ...]


class Record(NamedTuple):
    """A cell of the table for programs: numbers in per cent."""

    table: int
    row: str
    group: str
    column: str
    shots: str
    ours: float | None
    half_width: float | None
    seeds: int
    paper: float | None
    difference: float | None


class Grid(NamedTuple):
    """A table: headings with the number of columns below each, columns, lines, and notes below them."""

    title: str
    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    records: tuple[Record, ...]


class _Row(NamedTuple):
    """A row: our scores and the paper's at each place, averages included."""

    label: str
    ours: Mapping[Place, Scores]
    paper: Mapping[Place, Scores]
    marks: Mapping[Place, str]


def places(definition: Definition) -> list[Place]:
    """The places of a table, column by column, which are those of the paper's rows."""
    cells = dict.fromkeys(place for row in printed(definition.number).values() for place in row.cells)
    order = {column.key: index for index, column in enumerate(definition.columns)}
    return sorted(cells, key=lambda place: (order[place[0]], _shots_order(place[1])))


def _shots_order(shots: str) -> tuple[bool, int]:
    """Sorts numbers of shots by value, and "k" after them."""
    return shots == "k", int(shots.strip("k") or 0)


def by_row(definition: Definition, runs: Runs, rows: Mapping[str, str]) -> Runs:
    """The runs by the paper's row: that of `rows`, or that of the run's own name; others keep their name."""
    labels = {_plain(label): label for label in printed(definition.number)}
    return {rows.get(name) or labels.get(_plain(name)) or name: seeds for name, seeds in runs.items()}


def arrange(definition: Definition, runs: Runs | None, rows: Mapping[str, str] = {}) -> Grid:
    """Arranges our results beside the paper's.

    Args:
      runs: of our own; None: the paper's numbers alone.
      rows: name of a run -> the paper's row; a run that is not named here belongs to the row of its name, or to none.

    Raises:
      UserError: the runs have no score for the table.
    """
    theirs = printed(definition.number)
    ours = by_row(definition, runs or {}, rows)
    every = places(definition)
    order = [*theirs, *(label for label in ours if label not in theirs)]
    measured = {label: scores(definition, every, ours[label]) for label in order if label in ours}
    if runs is not None and not any(measured.values()):
        raise UserError(
            f"no task of Table {definition.number} was evaluated in these runs; its suite is {definition.suite}"
        )
    shared = (
        set.intersection(*(set(by_place) for by_place in measured.values() if by_place)) if measured else set(every)
    )
    average_places = _average_places(definition, shared)
    table = [_row(label, measured.get(label, {}), theirs.get(label), shared, average_places) for label in order]
    shown = every + average_places
    decisive = [place for place in shown if place[0] in (AVERAGE, BOTH)] or shown
    best = {place: _best(table, place) for place in decisive}
    baseline = next((row for row in table if row.label == definition.baseline), None)
    lines = [line for row in table for line in _lines(row, shown, best, baseline)]
    headings = {column.key: (column.group, column.heading) for column in definition.columns}
    headings |= {AVERAGE: ("", "Average"), BOTH: ("", "Mean")}
    keys = list(dict.fromkeys(key for key, _ in shown))
    return Grid(
        f"Table {definition.number}: {definition.title}",
        tuple(_spans(headings[key][0] for key in keys)),
        (definition.rows, "", *(headings[key][1] for key in keys)),
        tuple(lines),
        tuple(_notes(definition, table, every, shared, baseline)),
        tuple(_records(definition, table, shown, headings, {label: len(seeds) for label, seeds in ours.items()})),
    )


def _plain(name: str) -> str:
    """A name without case and punctuation: "opt-iml-30b" is the row "OPT-IML 30B"."""
    return "".join(filter(str.isalnum, name.lower()))


def _average_places(definition: Definition, shared: Iterable[Place]) -> list[Place]:
    if not definition.averaged:
        return []
    shots = sorted({k for _, k in shared}, key=_shots_order)
    return [(AVERAGE, k) for k in shots] + [(BOTH, "")] * (len(shots) == 2)


def _row(
    label: str,
    ours: Mapping[Place, Scores],
    theirs: Printed | None,
    shared: set[Place],
    average_places: Sequence[Place],
) -> _Row:
    """A row with its averages over the places that all our runs have."""
    paper = {place: Scores((value,)) for place, value in theirs.cells.items()} if theirs else {}
    completed = (cells | _averages(cells, shared, average_places) for cells in (dict(ours), paper))
    return _Row(label, *completed, theirs.marks if theirs else {})


def _averages(
    cells: Mapping[Place, Scores], shared: set[Place], average_places: Sequence[Place]
) -> dict[Place, Scores]:
    """The averages of a row, and their mean if there are two."""
    used = {place: scores for place, scores in cells.items() if place in shared}
    means = {place: mean for place in average_places if place[0] == AVERAGE and (mean := average(used, place[1]))}
    if (BOTH, "") in average_places and len(means) == 2:
        pairs = zip(*(mean.by_seed for mean in means.values()))
        means[BOTH, ""] = Scores(tuple(sum(pair) / 2 for pair in pairs))
    return means


def _best(table: Sequence[_Row], place: Place) -> dict[str, float]:
    """The highest score of ours and of the paper at a place."""
    ours = [row.ours[place].mean for row in table if place in row.ours]
    paper = [row.paper[place].mean for row in table if place in row.paper]
    return {kind: max(values) for kind, values in ((OURS, ours), (PAPER, paper)) if len(values) > 1}


def degenerate(score: float, baseline: float | None) -> bool:
    """Whether a score is so far below the baseline's that Table 8 would underline it."""
    return baseline is not None and score < baseline - DEGENERATE


def _lines(
    row: _Row, shown: Sequence[Place], best: Mapping[Place, Mapping[str, float]], baseline: _Row | None
) -> list[Line]:
    """The lines of a row that have numbers."""
    by_key: dict[str, list[Place]] = {}
    for place in shown:
        by_key.setdefault(place[0], []).append(place)

    def line(kind: str, part) -> Line:
        return Line(row.label, kind, tuple(tuple(map(part, of_key)) for of_key in by_key.values()))

    def marked(kind: str, place: Place, value: float, reference: float | None) -> Part:
        if value == best.get(place, {}).get(kind):
            return Part(f"{value:.1f}", BOLD)
        return Part(f"{value:.1f}", UNDERLINED if degenerate(value, reference) else None)

    def ours(place: Place) -> Part:
        if place not in row.ours:
            return Part("–")
        reference = baseline.ours.get(place) if baseline else None
        return marked(OURS, place, row.ours[place].mean, reference.mean if reference else None)

    def interval(place: Place) -> Part:
        width = row.ours[place].half_width if place in row.ours else None
        return Part("–" if width is None else f"{width:.1f}")

    def paper(place: Place) -> Part:
        if place not in row.paper:
            return Part("–")
        mark = row.marks.get(place)
        part = marked(PAPER, place, row.paper[place].mean, None)
        return part._replace(mark=part.mark or (mark if mark in (BOLD, UNDERLINED) else None))

    def difference(place: Place) -> Part:
        value = _difference(row, place)
        return Part("–" if value is None else f"{value:+.1f}".replace("-0.0", "+0.0"))

    lines = []
    if row.ours:
        lines.append(line(OURS, ours))
        if any(scores.half_width is not None for scores in row.ours.values()):
            lines.append(line(INTERVAL, interval))
    if row.paper:
        lines.append(line(PAPER, paper))
    if row.ours and row.paper:
        lines.append(line(DIFFERENCE, difference))
    return lines


def _difference(row: _Row, place: Place) -> float | None:
    return row.ours[place].mean - row.paper[place].mean if place in row.ours and place in row.paper else None


def _spans(groups: Iterable[str]) -> list[tuple[str, int]]:
    spans: list[tuple[str, int]] = []
    for group in groups:
        if spans and spans[-1][0] == group:
            spans[-1] = group, spans[-1][1] + 1
        else:
            spans.append((group, 1))
    return spans


def _notes(
    definition: Definition, table: Sequence[_Row], every: Sequence[Place], shared: set[Place], baseline: _Row | None
) -> list[str]:
    """What a reader must know: numbers of shots, averages over fewer columns, tasks that are missing, marks."""
    shots = "/".join(dict.fromkeys(k for _, k in sorted(every, key=lambda place: place[1] == "k")))
    notes = [f"Per cent; {shots} shots." if shots.strip("/") else "Per cent."]
    if definition.averaged:
        counts = [(k, sum(place[1] == k for place in shared)) for _, k in _average_places(definition, shared) if k]
        columns = ", ".join(f"{count} columns at {k} shots" for k, count in counts)
        selection = " Mean: of the averages, by which the paper selects settings (4.1)." if len(counts) == 2 else ""
        notes.append(f"Average: over {columns}.{selection}")
        if len(shared) < len(every):
            notes.append(f"{len(every) - len(shared)} of {len(every)} cells were not evaluated; no average has them.")
    notes += _printed_otherwise(definition, table, shared, every)
    for row in table:
        lacking = {place[0]: scores.missing for place, scores in row.ours.items() if scores.missing}
        if lacking:
            totals = {column.key: len(column.tasks()) for column in definition.columns}
            parts = ", ".join(f"{key} {totals[key] - count} of {totals[key]}" for key, count in lacking.items())
            notes.append(f"{row.label}: tasks evaluated: {parts}.")
    if any(row.ours for row in table):
        notes.append("±: half of the 95% interval over seeds. Difference: ours - paper.")
        if baseline is not None:
            notes.append(f"Underlined: more than {DEGENERATE:.0f} points below {baseline.label}.")
    return notes


def _printed_otherwise(
    definition: Definition, table: Sequence[_Row], shared: set[Place], every: Sequence[Place]
) -> list[str]:
    """The averages of the paper that its rounded cells do not give."""
    if len(shared) < len(every):
        return []
    notes = []
    for row in table:
        theirs = printed(definition.number).get(row.label)
        for shots, value in theirs.averages.items() if theirs else ():
            mean = row.paper[AVERAGE, shots].mean
            if not follows(mean, value):
                notes.append(f"{row.label}, {shots} shots: the paper prints {value}, its cells give {mean:.3f}.")
    return notes


def follows(mean: float, value: float) -> bool:
    """Whether a printed average is the mean of the printed cells, rounded half up or half to even."""
    exact = Decimal(f"{mean:.6f}")
    return Decimal(str(value)) in {exact.quantize(Decimal("0.1"), mode) for mode in (ROUND_HALF_UP, ROUND_HALF_EVEN)}


def _records(
    definition: Definition,
    table: Sequence[_Row],
    shown: Sequence[Place],
    headings: Mapping[str, tuple[str, str]],
    seeds: Mapping[str, int],
) -> list[Record]:
    records = []
    for row in table:
        for place in shown:
            scores, paper = row.ours.get(place), row.paper.get(place)
            if scores is None and paper is None:
                continue
            mean, width = (scores.mean, scores.half_width) if scores else (None, None)
            cell = (row.label, headings[place[0]][0], place[0], place[1], mean, width, seeds.get(row.label, 0))
            records.append(Record(definition.number, *cell, paper.mean if paper else None, _difference(row, place)))
    return records
