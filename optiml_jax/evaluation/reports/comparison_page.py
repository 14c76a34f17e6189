"""A comparison in words and as a page: tables of tests, and the two runs side by side where their answers differ."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from optiml_jax.common import pages
from optiml_jax.evaluation.reports.tables import (
    Row,
    Table,
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
    "test": "mcnemar: exact, on the questions that one run alone has right; bootstrap: paired, clustered by task",
    "p": "how often a difference like this comes of luck",
    "Holm": "the same, corrected for the number of lines of the table",
    "only first": "questions that the first run alone has right",
    "only second": "questions that the second run alone has right",
}
NOTES = tuple(f"{name}: {text}." for name, text in MEANING.items())


def tables(found: Mapping[str, Any]) -> dict[str, Table]:
    """The tables of levels, categories and tasks, of those that have lines."""
    return {kind: _table(found, kind) for kind in KINDS if found[kind]}


def _table(found: Mapping[str, Any], kind: str) -> Table:
    first, second = found["names"]
    counts = ("prompts", "only first", "only second") if kind == "tasks" else ("tasks",)
    rows = []
    for name, entry in _ordered(found, kind):
        told = [level_name(name) if kind == "levels" else name, per_cent(entry["first"]), per_cent(entry["second"])]
        told += [signed(100 * entry["difference"], "+.1f"), _difference_text(entry["interval"]), entry["test"]]
        told += [_p_text(entry["p"]), _p_text(entry["p_holm"]) + " *" * (entry["p_holm"] < ALPHA)]
        told += [f"{entry[count.replace(' ', '_')]:,}" for count in counts]
        rows.append(Row(tuple(told), entry["second"]))
    columns = (KINDS[kind], first, second, "difference", "95%", "test", "p", "Holm", *counts)
    return Table(kind.capitalize(), columns, 1, tuple(rows))


def _ordered(found: Mapping[str, Any], kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Levels as they come, hardest first; the others from the best news to the worst."""
    entries = list(found[kind].items())
    return entries if kind == "levels" else sorted(entries, key=lambda item: -item[1]["difference"])


def _difference_text(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else " to ".join(signed(100 * end, "+.1f") for end in interval)


def _p_text(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(found: Mapping[str, Any]) -> list[str]:
    """What was compared and how it ended, a line each."""
    first, second = found["names"]
    lines = [f"{first} against {second}: {found['prompts']:,} prompts, {found['changed']:,} of them scored differently"]
    lines += [f"Left out: {text}" for text in found["left_out"]]
    for kind, name in KINDS.items():
        if not found[kind]:
            continue
        entries = [entry for entry in found[kind].values() if entry["p_holm"] < ALPHA]
        better = sum(entry["difference"] > 0 for entry in entries)
        plural = name if len(found[kind]) == 1 else kind
        lines.append(
            f"Of {len(found[kind]):,} {plural}, {better:,} better and {len(entries) - better:,} worse in {second} "
            f"(Holm-corrected p < {ALPHA})"
        )
    return lines


def text(found: Mapping[str, Any]) -> str:
    """For the terminal."""
    return "\n\n".join(["\n".join(verdict(found)), *map(text_table, tables(found).values()), "\n".join(NOTES)])


def markdown(found: Mapping[str, Any]) -> str:
    """The text of comparison.md."""
    said = "\n".join(f"- {line}" for line in verdict(found)), "\n".join(f"- {note}" for note in NOTES)
    return "\n\n".join(["# Comparison", said[0], *map(markdown_table, tables(found).values()), said[1]]) + "\n"


def html(found: Mapping[str, Any], paired: Paired) -> str:
    """The text of comparison.html."""
    title = " against ".join(found["names"])
    figures = [("prompts", f"{found['prompts']:,}"), ("scored differently", f"{found['changed']:,}")]
    figures += [
        (f"{level_name(name)}, points", signed(100 * entry["difference"], "+.1f"))
        for name, entry in found["levels"].items()
    ]
    sections = [
        (table.title, _markup(table, [e for _, e in _ordered(found, kind)])) for kind, table in tables(found).items()
    ]
    data = _browsed(paired) | {"names": found["names"]}
    note = f"{len(data['pairs']):,} of {found['prompts']:,} prompts, those first whose scores differ most."
    sections.append(("Answers", pages.browser(note)))
    notes = "".join(f'<p class="dim">{escape(note)}</p>' for note in NOTES)
    sections.append(("Meaning", f"<h2>What the columns say</h2>{notes}"))
    body = pages.header(title, verdict(found)[1:], figures) + pages.sections(sections)
    return pages.page(title, body, data, ASSETS)


def _markup(table: Table, entries: Sequence[Mapping[str, Any]]) -> str:
    widest = max([0.01, *(abs(end) for entry in entries for end in (entry["interval"] or [entry["difference"]]))])
    bars = [_bar(entry, widest) for entry in entries]
    rows = [row.cells for row in table.rows]
    return pages.table(table.title, table.columns, table.text_columns, rows, bars, "worse | better", MEANING)


def _bar(entry: Mapping[str, Any], widest: float) -> str:
    """The difference from the middle to the left or right, with its interval."""
    low, high = (50 + 50 * end / widest for end in (entry["interval"] or [entry["difference"]] * 2))
    middle = 50 + 50 * entry["difference"] / widest
    kind = "full" if entry["p_holm"] < ALPHA else "pale"
    said = f"difference {signed(100 * entry['difference'], '+.1f')}, 95% {_difference_text(entry['interval'])}"
    return (
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img"><title>{escape(said)}</title>'
        f'<rect class="{kind}" x="{min(50, middle):.2f}" y="1.5" width="{abs(middle - 50):.2f}" height="7"/>'
        f'<rect class="between" x="{low:.2f}" y="4.2" width="{high - low:.2f}" height="1.6"/>'
        '<rect class="floor" x="49.8" y="0" width=".4" height="10"/></svg>'
    )


def _browsed(paired: Paired) -> dict[str, Any]:
    """Pairs of answers, of each task alike, as many as a page may hold; first those whose scores differ."""
    by_task: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    for pair in zip(paired.first, paired.second):
        by_task[pair[0]["task"]][pair[0]["score"] == pair[1]["score"]].append(pair)
    names = sorted(by_task)
    queues = [[_told(place, by_task[name][same]) for place, name in enumerate(names)] for same in (False, True)]
    known = {one["task"]: one["benchmark"] for one in paired.first}
    return {
        "tasks": [short_name(name, known[name]) for name in names],
        "pairs": pages.in_turns(queues),
    }


def _told(place: int, pairs: Sequence[tuple[Mapping, Mapping]]) -> Iterator[dict[str, Any]]:
    for one, other in sorted(pairs, key=lambda pair: -abs(pair[1]["score"] - pair[0]["score"])):
        yield {
            "task": place,
            "id": one["id"],
            "prompt": pages.shortened(one["prompt"]),
            "references": [pages.shortened(text) for text in (one.get("references") or ())[:5]],
            "sides": [_side(sample) for sample in (one, other)],
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
