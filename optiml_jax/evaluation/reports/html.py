"""report.html: the tables and plots of a report, which need no script, and answers to look through, which do."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from optiml_jax.common import pages
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.reports import plain_text, plots
from optiml_jax.evaluation.reports.tables import (
    MEANING,
    Table,
    level_name,
    level_table,
    notes,
    per_cent,
    short_name,
    tables,
)
from optiml_jax.evaluation.scores.diagnostics import labels_of, of_answer

ASSETS = Path(__file__).with_name("report_page")
REFERENCES, CANDIDATES = 5, 12  # shown of a prompt
FLAGS = ("outside", "empty", "cut", "repeated", "prompt cut")


def html(
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]] = (),
    context: plain_text.Context = plain_text.Context(),
) -> str:
    """The text of report.html; arguments as `report_files.write_reports`."""
    every = tables(results, samples)
    sections = [(table.title.split()[0], _table(table)) for table in every]
    data = {"tasks": [], "samples": [], "flags": FLAGS}
    if samples:
        data |= _browsed(results, samples)
        sections.append(("Answers", _browser(len(data["samples"]), len(samples))))
    sections.append(("Making", _making(results, context, notes(every))))
    title = f"Evaluation of {results['weights']}"
    body = _header(title, results, samples, context) + pages.sections(sections, _plots(results, context))
    return pages.page(title, body, data, ASSETS)


def _header(
    title: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], context: plain_text.Context
) -> str:
    about = [plain_text.headline(results).removeprefix(f"{results['weights']}: "), *plain_text.scope(context, samples)]
    if "date" in context.made:
        about.insert(0, context.made["date"])
    figures = [(level_name(level), per_cent(entry["score"])) for level, entry in results["levels"].items()]
    if len(figures) > 1:
        figures.append(("Average of the levels", per_cent(results["average"])))
    if context.training:
        loss = f"{context.training['first_loss']:.2f} → {context.training['last_loss']:.2f}"
        figures.append(("Training loss, nats per label token", loss))
    return pages.header(title, about, figures)


def _plots(results: Mapping[str, Any], context: plain_text.Context) -> str:
    drawn = []
    if results["levels"]:
        drawn.append(plots.levels([(row.cells[0], row) for row in level_table(results).rows]))
    training = context.training or {}
    for name, label, scale in (
        ("curve", "Training loss, nats per label token, by step", 1.0),
        ("validation", "Validation: average of the levels, %, by step", 100.0),
    ):
        if len(training.get(name, ())) > 1:
            drawn.append(plots.curve(training[name], label, scale))
    note = '<p class="dim">Bars: scores in per cent, with 95% intervals; dashed: the floor.</p>'
    return f'<div class="plots">{"".join(f"<div>{plot}</div>" for plot in drawn)}</div>{note}' if drawn else ""


def _table(table: Table) -> str:
    rows, bars = [row.cells for row in table.rows], list(map(plots.bar, table.rows))
    return pages.table(table.title, table.columns, table.text_columns, rows, bars, "0 to 100", MEANING)


def _making(results: Mapping[str, Any], context: plain_text.Context, said: Sequence[str]) -> str:
    made, configuration = plain_text.making(results, context)
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in made.items())
    meaning = "".join(f'<p class="dim">{escape(note)}</p>' for note in said)
    shown = f"<h3>Configuration</h3><pre>{escape(configuration)}</pre>" if configuration else ""
    return f'<h2>How it was made</h2><dl class="facts">{pairs}</dl>{meaning}{shown}'


def _browser(shown: int, every: int) -> str:
    here = "All" if shown == every else f"{shown:,} of"
    note = f"{here} {every:,} answers; samples.jsonl has all of them. Tokens of candidates are underlined by how "
    return pages.browser(note + "unlikely they are; hold the pointer over one to read its log-probability.")


def _browsed(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tasks and as many of their answers as a page may hold: of each task alike, wrong and right ones in turn."""
    by_task = defaultdict(list)
    for sample in samples:
        by_task[sample["task"]].append(sample)
    names = sorted(by_task)
    chosen = pages.in_turns([[_told(place, by_task[name]) for place, name in enumerate(names)]])
    known = {name: task["benchmark"] for name, task in results["tasks"].items()}
    return {"tasks": [short_name(name, known.get(name, "")) for name in names], "samples": chosen}


def _told(place: int, samples: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The answers of a task, in the order in which one wants to see them; the ledger's breaks ties."""
    labels = labels_of(samples)
    wrong = sorted((s for s in samples if not s["correct"]), key=lambda s: -1.0 if s["score"] is None else s["score"])
    right = [sample for sample in samples if sample["correct"]]
    for sample in itertools.chain.from_iterable(itertools.zip_longest(wrong, right)):
        if sample is not None:
            yield _answer(place, sample, labels)


def _answer(place: int, sample: Mapping[str, Any], labels: frozenset[str] | None) -> dict[str, Any]:
    flags = of_answer(sample, labels) + ["prompt cut"] * sample["prompt_cut"]
    return {
        "task": place,
        "id": sample["id"],
        "metric": str(Metric.parse(sample["metric"])),
        "whole": sample["metric"]["name"] in ("accuracy", "exact_match", "macro_f1"),
        "score": sample["score"],
        "flags": flags + [sample["remark"]] * bool(sample["remark"]),
        "prompt": pages.shortened(sample["prompt"]),
        "answer": sample["prediction"] if sample["prediction"] is None else pages.shortened(sample["prediction"]),
        "references": [pages.shortened(text) for text in sample["references"][:REFERENCES]],
        "candidates": _candidates(sample),
    }


def _candidates(sample: Mapping[str, Any]) -> list[list[Any]]:
    """[text, score, its tokens with theirs, whether it is right] of each candidate, the likeliest first."""
    texts = sample["candidates"] or []
    scores = sample["scores"] or [None] * len(texts)
    pieces = sample["token_scores"] or [[]] * len(texts)
    found = [[text, score, of, text in sample["references"]] for text, score, of in zip(texts, scores, pieces)]
    return sorted(found, key=lambda one: -(one[1] or 0.0))[:CANDIDATES]
