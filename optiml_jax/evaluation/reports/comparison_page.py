"""Reports of a comparison: tables of tests, and a page with the answers of both runs side by side."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from optiml_jax.common import pages
from optiml_jax.evaluation.reports.tables import (
    Table,
    TableRow,
    level_name,
    markdown_table,
    short_name,
    signed,
    text_table,
)
from optiml_jax.evaluation.scores.comparison import Paired
from optiml_jax.evaluation.scores.intervals import MIN_CLUSTERS

ASSETS = Path(__file__).with_name("comparison_page")
ALPHA = 0.05
KINDS = {"averages": "average", "levels": "level", "categories": "category", "tasks": "task"}
AVERAGE_NAMES = {
    "average": "average over categories",
    "benchmark_average": "average over benchmarks",
    "level_average": "mean of the levels",
}
MEANING = {
    "difference": "second - first, in points",
    "95%": "95% interval of the difference over tasks, of a task over its questions; in parentheses, with fewer than "
    f"{MIN_CLUSTERS} tasks: over the questions of these tasks alone, which says nothing about other tasks",
    "test": "sign flip: exact, by question with all its wordings, or by task; mcnemar: the same for answers that are "
    "right or wrong, once per question; permutation: of the answers to each question",
    "p": "probability of a difference this large between two equally good models",
    "Holm": "p-value corrected for the number of tests in the table; too few: with so few questions or tasks, no "
    f"difference could be below {ALPHA}",
    "only first": "questions that only the first run answers correctly, in every wording",
    "only second": "questions that only the second run answers correctly, in every wording",
}
NOTES = tuple(f"{name}: {text}." for name, text in MEANING.items())


def tables(comparison: Mapping[str, Any]) -> dict[str, Table]:
    """The tables of levels, categories and tasks that have rows."""
    return {kind: _table(comparison, kind) for kind in KINDS if comparison[kind]}


def _table(comparison: Mapping[str, Any], kind: str) -> Table:
    first, second = comparison["names"]
    counts = ("prompts", "only first", "only second") if kind == "tasks" else ("tasks",)
    rows = []
    for name, entry in _ordered(comparison, kind):
        points = _points(entry)
        named = level_name(name) if kind == "levels" else AVERAGE_NAMES.get(name, name) if kind == "averages" else name
        cells = [named, *(f"{points * entry[side]:.1f}" for side in ("first", "second"))]
        cells += [signed(points * entry["difference"], "+.1f"), difference_text(entry, points), entry["test"] or "–"]
        cells += [p_text(entry["p"]), _holm_text(comparison, kind, entry)]
        cells += [f"{entry[count.replace(' ', '_')]:,}" for count in counts]
        rows.append(TableRow(tuple(cells), entry["second"]))
    columns = (KINDS[kind], first, second, "difference", "95%", "test", "p", "Holm", *counts)
    return Table(kind.capitalize(), columns, 1, tuple(rows))


def _points(entry: Mapping[str, Any]) -> float:
    """Fractions are shown in per cent; other scores, such as perplexities, as they are."""
    return 100.0 if max(abs(entry["first"]), abs(entry["second"])) <= 1.0 else 1.0


def _ordered(comparison: Mapping[str, Any], kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Levels hardest first; categories and tasks from the largest improvement to the largest loss."""
    entries = list(comparison[kind].items())
    return entries if kind in ("levels", "averages") else sorted(entries, key=lambda item: -improvement(item[1]))


def improvement(entry: Mapping[str, Any]) -> float:
    """The difference, positive if the second run is better."""
    return entry["difference"] if entry.get("higher_is_better", True) else -entry["difference"]


def difference_text(entry: Mapping[str, Any], points: float) -> str:
    """The interval of a difference, or in parentheses that over the questions of these tasks alone.

    Args:
      points: by which scores are multiplied, 100 for per cent.
    """

    def text(interval: Sequence[float]) -> str:
        return " to ".join(signed(points * end, "+.1f") for end in interval)

    if entry["interval"] is not None:
        return text(entry["interval"])
    return f"({text(entry['questions_interval'])})" if entry.get("questions_interval") else "–"


def p_text(p: float | None) -> str:
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def undecidable(comparison: Mapping[str, Any], kind: str, entry: Mapping[str, Any]) -> bool:
    """Whether no difference could be significant after the correction: the smallest p-value of n questions or tasks is
    2^(1 - n)."""
    tests = sum(other["p"] is not None for other in comparison[kind].values())
    return entry["p"] is None or 2.0 ** (1 - entry["clusters"]) * tests >= ALPHA


def significant(entry: Mapping[str, Any]) -> bool:
    return entry["p_holm"] is not None and entry["p_holm"] < ALPHA


def _holm_text(comparison: Mapping[str, Any], kind: str, entry: Mapping[str, Any]) -> str:
    if undecidable(comparison, kind, entry):
        return "too few"
    return p_text(entry["p_holm"]) + " *" * significant(entry)


def verdict(comparison: Mapping[str, Any]) -> list[str]:
    """Lines that say what was compared, how many entries are significantly better or worse, and how many have too few
    questions or tasks to tell."""
    first, second = comparison["names"]
    lines = [
        f"{first} against {second}: {comparison['prompts']:,} prompts, "
        f"{comparison['changed']:,} of them scored differently"
    ]
    lines += [f"Left out: {text}" for text in comparison["left_out"]]
    for kind, name in KINDS.items():
        if not comparison[kind]:
            continue
        entries = [entry for entry in comparison[kind].values() if significant(entry)]
        better = sum(improvement(entry) > 0 for entry in entries)
        plural = name if len(comparison[kind]) == 1 else kind
        line = (
            f"Of {len(comparison[kind]):,} {plural}, {better:,} better and {len(entries) - better:,} worse in {second} "
            f"(Holm-corrected p < {ALPHA})"
        )
        if few := sum(undecidable(comparison, kind, entry) for entry in comparison[kind].values()):
            what = "questions" if kind == "tasks" else "tasks"
            line += f"; {few:,} cannot be decided, with fewer than {_needed(comparison, kind)} {what}"
        lines.append(line)
    return lines


def _needed(comparison: Mapping[str, Any], kind: str) -> int:
    """The number of questions or tasks with which a difference can be significant."""
    tests = max(1, sum(entry["p"] is not None for entry in comparison[kind].values()))
    fewest = math.floor(math.log2(tests / ALPHA)) + 2
    return fewest if kind == "tasks" else max(MIN_CLUSTERS, fewest)


def text(comparison: Mapping[str, Any]) -> str:
    """The report for the terminal."""
    return "\n\n".join(
        ["\n".join(verdict(comparison)), *map(text_table, tables(comparison).values()), "\n".join(NOTES)]
    )


def markdown(comparison: Mapping[str, Any]) -> str:
    """The text of comparison.md."""
    summary, notes = ("\n".join(f"- {line}" for line in lines) for lines in (verdict(comparison), NOTES))
    return "\n\n".join(["# Comparison", summary, *map(markdown_table, tables(comparison).values()), notes]) + "\n"


def html(comparison: Mapping[str, Any], paired: Paired) -> str:
    """The text of comparison.html."""
    title = " against ".join(comparison["names"])
    figures = [("prompts", f"{comparison['prompts']:,}"), ("scored differently", f"{comparison['changed']:,}")]
    figures += [
        (f"{level_name(name)}, points", signed(_points(entry) * entry["difference"], "+.1f"))
        for name, entry in comparison["levels"].items()
    ]
    sections = [
        (table.title, _markup(table, [entry for _, entry in _ordered(comparison, kind)]))
        for kind, table in tables(comparison).items()
    ]
    data = _answers(paired) | {"names": comparison["names"]}
    note = f"{len(data['pairs']):,} of {comparison['prompts']:,} prompts, largest differences of scores first."
    sections.append(("Answers", pages.browser(note)))
    notes = "".join(f'<p class="dim">{escape(note)}</p>' for note in NOTES)
    sections.append(("Meaning", f"<h2>Columns</h2>{notes}"))
    body = pages.header(title, verdict(comparison)[1:], figures) + pages.sections(sections)
    return pages.page(title, body, data, ASSETS)


def _markup(table: Table, entries: Sequence[Mapping[str, Any]]) -> str:
    spans = [_span(entry) for entry in entries]
    widest = max([0.01, *(abs(end) for entry, span in zip(entries, spans) if _points(entry) > 1 for end in span)])
    bars = [_bar(entry, span, widest) for entry, span in zip(entries, spans)]
    rows = [row.cells for row in table.rows]
    return pages.table(table.title, table.columns, table.text_columns, rows, bars, "worse | better", MEANING)


def _span(entry: Mapping[str, Any]) -> list[float]:
    """The interval of the improvement that a bar shows."""
    interval = entry["interval"] or entry.get("questions_interval") or [entry["difference"]] * 2
    return list(interval) if entry.get("higher_is_better", True) else [-end for end in reversed(interval)]


def _bar(entry: Mapping[str, Any], span: Sequence[float], widest: float) -> str:
    """A bar from the middle to the left (worse) or right (better), with its interval."""
    low, high, middle = (50 + 50 * min(1.0, max(-1.0, end / widest)) for end in (*span, improvement(entry)))
    kind = "full" if significant(entry) else "pale"
    points = _points(entry)
    title = f"difference {signed(points * entry['difference'], '+.1f')}, 95% {difference_text(entry, points)}"
    return (
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img"><title>{escape(title)}</title>'
        f'<rect class="{kind}" x="{min(50, middle):.2f}" y="1.5" width="{abs(middle - 50):.2f}" height="7"/>'
        f'<rect class="between" x="{low:.2f}" y="4.2" width="{high - low:.2f}" height="1.6"/>'
        '<rect class="floor" x="49.8" y="0" width=".4" height="10"/></svg>'
    )


def _answers(paired: Paired) -> dict[str, Any]:
    """Tasks and pairs of answers, as many of each task as a page holds; pairs whose scores differ come first."""
    by_task: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    for pair in zip(paired.first, paired.second):
        by_task[pair[0]["task"]][pair[0]["score"] == pair[1]["score"]].append(pair)
    names = sorted(by_task)
    queues = [[_pairs(index, by_task[name][same]) for index, name in enumerate(names)] for same in (False, True)]
    benchmarks = {sample["task"]: sample["benchmark"] for sample in paired.first}
    return {
        "tasks": [short_name(name, benchmarks[name]) for name in names],
        "pairs": pages.in_turns(queues),
    }


def _pairs(task_index: int, pairs: Sequence[tuple[Mapping, Mapping]]) -> Iterator[dict[str, Any]]:
    """The pairs of a task as the page's script needs them, largest difference first."""
    for first, second in sorted(pairs, key=lambda pair: -abs(pair[1]["score"] - pair[0]["score"])):
        yield {
            "task": task_index,
            "id": first["id"],
            "prompt": pages.shortened(first["prompt"]),
            "references": [pages.shortened(text) for text in (first.get("references") or ())[:5]],
            "sides": [_side(sample) for sample in (first, second)],
        }


def _side(sample: Mapping[str, Any]) -> dict[str, Any]:
    candidates = sample.get("candidates") or []
    scores = sample.get("scores") or []
    ranked = sorted(zip(candidates, scores), key=lambda pair: -pair[1])[:12]
    return {
        "score": sample["score"],
        "answer": pages.shortened(sample.get("prediction") or ""),
        "candidates": [[text, score] for text, score in ranked],
    }
