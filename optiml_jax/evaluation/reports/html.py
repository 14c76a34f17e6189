"""report.html: tables and plots, which work without JavaScript, and a browser of answers, which needs it."""

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
from optiml_jax.evaluation.scores.diagnostics import failed_checks, task_labels

ASSETS = Path(__file__).with_name("report_page")
REFERENCES, CANDIDATES = 5, 12  # shown per prompt
FLAGS = ("outside", "empty", "cut", "repeated", "prompt cut")


def html(
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]] = (),
    context: plain_text.Context = plain_text.Context(),
) -> str:
    """Renders report.html; arguments as `files.write_reports`."""
    all_tables = tables(results, samples)
    sections = [(table.title.split()[0], _table(table)) for table in all_tables]
    data = {"tasks": [], "samples": [], "flags": FLAGS}
    if samples:
        data |= _answers(results, samples)
        sections.append(("Answers", _browser(len(data["samples"]), len(samples))))
    sections.append(("Making", _provenance(results, context, notes(all_tables))))
    title = f"Evaluation of {results['weights']}"
    body = _header(title, results, samples, context) + pages.sections(sections, _plots(results, context))
    return pages.page(title, body, data, ASSETS)


def _header(
    title: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], context: plain_text.Context
) -> str:
    lines = [plain_text.headline(results).removeprefix(f"{results['weights']}: "), *plain_text.scope(context, samples)]
    if "date" in context.provenance:
        lines.insert(0, context.provenance["date"])
    figures = [(level_name(level), per_cent(entry["score"])) for level, entry in results["levels"].items()]
    if results["averages"] and max(results["averages"]["average"]["columns"].values()) > 1:
        figures.append(("Average", per_cent(results["average"])))
    if context.training:
        loss = f"{context.training['first_loss']:.2f} → {context.training['last_loss']:.2f}"
        figures.append(("Training loss, nats per label token", loss))
    return pages.header(title, lines, figures)


def _plots(results: Mapping[str, Any], context: plain_text.Context) -> str:
    plots_ = []
    if results["levels"]:
        plots_.append(plots.levels([(row.cells[0], row) for row in level_table(results).rows]))
    training = context.training or {}
    losses, validated = training.get("curve", ()), training.get("validation_loss", ())
    if len(losses) > 1:
        label = "Training loss, nats per label token, by step"
        label = "Loss: training (line), validation (circles), nats per token" if validated else label
        plots_.append(plots.curve(losses, label, validated=validated))
    if len(averages := training.get("validation", ())) > 1:
        plots_.append(plots.curve(averages, "Validation: average, %, by step", 100.0))
    note = '<p class="dim">Bars: scores in per cent, with 95% intervals; dashed: the floor.</p>'
    return f'<div class="plots">{"".join(f"<div>{plot}</div>" for plot in plots_)}</div>{note}' if plots_ else ""


def _table(table: Table) -> str:
    rows, bars = [row.cells for row in table.rows], list(map(plots.bar, table.rows))
    return pages.table(table.title, table.columns, table.text_columns, rows, bars, "0 to 100", MEANING)


def _provenance(results: Mapping[str, Any], context: plain_text.Context, explanations: Sequence[str]) -> str:
    fields, configuration = plain_text.provenance_of(results, context)
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in fields.items())
    meaning = "".join(f'<p class="dim">{escape(note)}</p>' for note in explanations)
    shown = f"<h3>Configuration</h3><pre>{escape(configuration)}</pre>" if configuration else ""
    return f'<h2>How it was made</h2><dl class="facts">{pairs}</dl>{meaning}{shown}'


def _browser(shown: int, total: int) -> str:
    count = "All" if shown == total else f"{shown:,} of"
    note = f"{count} {total:,} answers; samples.jsonl has all of them. Unlikely tokens of candidates are underlined; "
    return pages.browser(note + "hold the pointer over a token to see its log-probability.")


def _answers(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tasks and as many answers as a page holds: equally many of each task, wrong and correct ones in turn."""
    by_task = defaultdict(list)
    for sample in samples:
        by_task[sample["task"]].append(sample)
    names = sorted(by_task)
    chosen = pages.in_turns([[_task_answers(index, by_task[name]) for index, name in enumerate(names)]])
    benchmarks = {name: task["benchmark"] for name, task in results["tasks"].items()}
    return {"tasks": [short_name(name, benchmarks.get(name, "")) for name in names], "samples": chosen}


def _task_answers(task_index: int, samples: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The answers of a task, wrong ones (worst first) and correct ones in turn; ties stay in ledger order."""
    labels = task_labels(samples)
    wrong = sorted((s for s in samples if not s["correct"]), key=lambda s: -1.0 if s["score"] is None else s["score"])
    right = [sample for sample in samples if sample["correct"]]
    for sample in itertools.chain.from_iterable(itertools.zip_longest(wrong, right)):
        if sample is not None:
            yield _answer(task_index, sample, labels)


def _answer(task_index: int, sample: Mapping[str, Any], labels: frozenset[str] | None) -> dict[str, Any]:
    flags = failed_checks(sample, labels) + ["prompt cut"] * sample["prompt_cut"]
    return {
        "task": task_index,
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
    """[text, score, tokens with their scores, whether it is correct] of each candidate, most likely first."""
    texts = sample["candidates"] or []
    scores = sample["scores"] or [None] * len(texts)
    tokens = sample["token_scores"] or [[]] * len(texts)
    rows = [[text, score, pairs, text in sample["references"]] for text, score, pairs in zip(texts, scores, tokens)]
    return sorted(rows, key=lambda row: -(row[1] or 0.0))[:CANDIDATES]
