"""Reports of a comparison: tables of tests, and a page with the answers of both runs side by side."""

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
    per_cent,
    short_name,
    signed,
    text_table,
)
from optiml_jax.evaluation.scores.comparison import Paired

ASSETS = Path(__file__).with_name("comparison_page")
ALPHA = 0.05
KINDS = {"levels": "level", "categories": "category", "tasks": "task"}
MEANING = {
    "difference": "second - first, in points",
    "95%": "95% interval of the difference, by a bootstrap of tasks and of their examples",
    "test": "mcnemar: exact, on questions that only one run answers correctly; bootstrap: paired, clustered by task",
    "p": "probability of a difference this large between two equally good models",
    "Holm": "p-value corrected for the number of rows of the table",
    "only first": "questions that only the first run answers correctly",
    "only second": "questions that only the second run answers correctly",
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
        cells = [level_name(name) if kind == "levels" else name, per_cent(entry["first"]), per_cent(entry["second"])]
        cells += [signed(100 * entry["difference"], "+.1f"), _difference_text(entry["interval"]), entry["test"]]
        cells += [_p_text(entry["p"]), _p_text(entry["p_holm"]) + " *" * (entry["p_holm"] < ALPHA)]
        cells += [f"{entry[count.replace(' ', '_')]:,}" for count in counts]
        rows.append(TableRow(tuple(cells), entry["second"]))
    columns = (KINDS[kind], first, second, "difference", "95%", "test", "p", "Holm", *counts)
    return Table(kind.capitalize(), columns, 1, tuple(rows))


def _ordered(comparison: Mapping[str, Any], kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Levels hardest first; categories and tasks from the largest improvement to the largest loss."""
    entries = list(comparison[kind].items())
    return entries if kind == "levels" else sorted(entries, key=lambda item: -item[1]["difference"])


def _difference_text(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else " to ".join(signed(100 * end, "+.1f") for end in interval)


def _p_text(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(comparison: Mapping[str, Any]) -> list[str]:
    """Lines that say what was compared, and how many entries are significantly better or worse."""
    first, second = comparison["names"]
    lines = [
        f"{first} against {second}: {comparison['prompts']:,} prompts, "
        f"{comparison['changed']:,} of them scored differently"
    ]
    lines += [f"Left out: {text}" for text in comparison["left_out"]]
    for kind, name in KINDS.items():
        if not comparison[kind]:
            continue
        entries = [entry for entry in comparison[kind].values() if entry["p_holm"] < ALPHA]
        better = sum(entry["difference"] > 0 for entry in entries)
        plural = name if len(comparison[kind]) == 1 else kind
        lines.append(
            f"Of {len(comparison[kind]):,} {plural}, {better:,} better and {len(entries) - better:,} worse in {second} "
            f"(Holm-corrected p < {ALPHA})"
        )
    return lines


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
        (f"{level_name(name)}, points", signed(100 * entry["difference"], "+.1f"))
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
    widest = max([0.01, *(abs(end) for entry in entries for end in (entry["interval"] or [entry["difference"]]))])
    bars = [_bar(entry, widest) for entry in entries]
    rows = [row.cells for row in table.rows]
    return pages.table(table.title, table.columns, table.text_columns, rows, bars, "worse | better", MEANING)


def _bar(entry: Mapping[str, Any], widest: float) -> str:
    """A bar from the middle to the left (worse) or right (better), with its interval."""
    low, high = (50 + 50 * end / widest for end in (entry["interval"] or [entry["difference"]] * 2))
    middle = 50 + 50 * entry["difference"] / widest
    kind = "full" if entry["p_holm"] < ALPHA else "pale"
    title = f"difference {signed(100 * entry['difference'], '+.1f')}, 95% {_difference_text(entry['interval'])}"
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
