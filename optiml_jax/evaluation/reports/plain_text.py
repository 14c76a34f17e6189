"""The report of an evaluation as text, for the terminal and report.md."""

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from optiml_jax.common.tables import counted, first_few
from optiml_jax.data.manifest import coverage_text
from optiml_jax.evaluation.reports.tables import (
    category_table,
    interval_of,
    level_table,
    markdown_table,
    notes,
    per_cent,
    tables,
    task_table,
    text_table,
)

PRINTED_TASKS = 100  # on the terminal; the files list all
NAMED = 5  # prompts named per remark


@dataclasses.dataclass(frozen=True)
class Context:
    """Contents of a report in addition to the scores.

    Attributes:
      training: {"first_loss", "last_loss"}, nats per label token, when the evaluation follows a training; also, if
        known, the number of "rows" of the log that each of them averages, its "curve", [[step, loss], ...], and
        "validation", [[step, average], ...].
      coverage: how much of each benchmark has data (`data.manifest.coverage_text`).
      dropped: tasks that a review excluded, with the reason.
      provenance: result of `provenance.provenance`.
      baselines: of tasks, computed on all prompts of their ledgers (`baselines.ledger_baselines`).
      selection: which prompts were chosen, for results.json: "suites", "ledgers", "shots", "limit", "prompts_per_task".
      notes: lines about what was asked and what was not.
    """

    training: Mapping[str, Any] | None = None
    coverage: Mapping[str, Any] | None = None
    dropped: Sequence[str] = ()
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float | None]] = dataclasses.field(default_factory=dict)
    selection: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()


def scope(context: Context, samples: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """Describes how much of each benchmark was evaluated, what was left out on purpose, and prompts with problems."""
    lines = [coverage_text(context.coverage)] if context.coverage else []
    return [*lines, *context.notes, *(f"Left out: {text}" for text in context.dropped), *_remarks(samples)]


def _remarks(samples: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each kind of problem, with the number of prompts and the first of them."""
    ids_by_problem = defaultdict(list)
    has_score: dict[str, bool] = {}
    for sample in samples:
        has_score[sample["task"]] = has_score.get(sample["task"], False) or sample["score"] is not None
        reasons = [sample["remark"]] if sample["remark"] else []
        reasons += ["too long, its beginning was cut"] if sample["prompt_cut"] else []
        for reason in reasons:
            ids_by_problem[sample["score"] is not None, reason].append(sample["id"])
    unscored = [task for task, scored in has_score.items() if not scored]
    plural = "s" * (len(unscored) > 1)
    lines = []
    if unscored:
        names = first_few(unscored)
        lines.append(f"No score: {len(unscored):,} task{plural}, of which no prompt could be scored: {names}")
    return lines + [
        f"{'Scored despite a problem' if was_scored else 'Not scored'}, {len(ids):,} prompts, {reason}: "
        + ", ".join(ids[:NAMED])
        + (", ... (samples.jsonl)" if len(ids) > NAMED else "")
        for (was_scored, reason), ids in sorted(ids_by_problem.items())
    ]


def headline(results: Mapping[str, Any]) -> str:
    """Describes in one line what was scored."""
    prompts = counted(sum(task["examples"] for task in results["tasks"].values()), "prompt")
    eos = "with" if results["bos"] else "without"
    ranked = "" if results["ranked_by"] == "sum" else f", candidates ranked by {results['ranked_by']}"
    tasks = counted(len(results["tasks"]), "task")
    return f"{results['weights']}: {tasks}, {prompts}, {eos} a leading </s>{ranked}"


def summary(
    results: Mapping[str, Any], context: Context = Context(), samples: Iterable[Mapping[str, Any]] = ()
) -> list[str]:
    """Headline, scope, training loss if known, and averages, one line each."""
    lines = [headline(results), *scope(context, samples)]
    if context.training:
        first, last = context.training["first_loss"], context.training["last_loss"]
        rows = context.training.get("rows", 1)
        averaged_over = f", means of the first and the last {rows} rows of the log" if rows > 1 else ""
        change = f"{first:.3f} -> {last:.3f} nats per label token ({last / first - 1:+.0%})"
        lines.append(f"Training loss {change}{averaged_over}")
    return [*lines, *templates_text(results), *averages(results)]


def templates_text(results: Mapping[str, Any]) -> list[str]:
    """A line that says how the templates of tasks with several make a score; none if there are no such tasks."""
    several = [task for task in results["tasks"].values() if max(map(len, task["templates"].values())) > 1]
    pooled = sum(task["pooled"] for task in several)
    ways = [f"the mean over the prompts of all templates in {counted(pooled, 'task')}"] * bool(pooled)
    ways += [f"the mean of the templates' means in {counted(len(several) - pooled, 'task')}"] * (pooled < len(several))
    return [f"With several templates, the score is {' and '.join(ways)} (TEMPLATES)"] * bool(several)


def averages(results: Mapping[str, Any]) -> list[str]:
    """The paper's average, with that at each number of shots, and the mean of the levels; one line each."""
    lines = []
    if (average := results["averages"].get("average")) is not None:
        parts = [
            f"{per_cent(score)} at {shots} shots ({average['columns'][shots]:,} columns)"
            for shots, score in average["shots"].items()
        ]
        lines.append(f"Average {per_cent(average['score'])} (95%: {interval_of(average)}): " + ", ".join(parts))
    if (levels := results["averages"].get("level_average")) is not None:
        lines.append(f"Mean of the levels {per_cent(levels['score'])} (95%: {interval_of(levels)})")
    return lines


def print_report(
    results: Mapping[str, Any],
    samples: Iterable[Mapping[str, Any]] = (),
    context: Context = Context(),
    file: TextIO | None = None,
) -> None:
    """Prints levels, categories and tasks as aligned text.

    Args:
      samples: adds shares of empty and truncated answers to the tasks.
      file: standard output by default.
    """
    samples = list(samples)
    tasks = task_table(results, samples, short=True)
    if len(tasks.rows) > PRINTED_TASKS:
        title = f"{tasks.title} (first {PRINTED_TASKS} of {len(tasks.rows):,}; all of them in report.md)"
        tasks = dataclasses.replace(tasks, title=title, rows=tasks.rows[:PRINTED_TASKS])
    printed = [table for table in (level_table(results), category_table(results), tasks) if table.rows]
    lines = "\n".join(summary(results, context, samples))
    print("\n\n".join([lines, *map(text_table, printed), "\n".join(notes(printed))]), file=file or sys.stdout)


def provenance_of(results: Mapping[str, Any], context: Context) -> tuple[dict[str, str], str]:
    """The provenance fields of a report by name, and the configuration."""
    fields = {"tokenizer": results["tokenizer"][:12], "code": results["code_version"], **context.provenance}
    return fields, fields.pop("configuration", "").strip()


def markdown(
    results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = (), context: Context = Context()
) -> str:
    """The text of report.md."""
    fields, configuration = provenance_of(results, context)
    all_tables = tables(results, samples)
    lines = "\n".join(f"- {line}" for line in summary(results, context, samples))
    origin = "\n".join(f"- {name}: `{text}`" for name, text in fields.items())
    explanations = "\n".join(f"- {note}" for note in notes(all_tables))
    parts = ["# Evaluation", lines, *map(markdown_table, all_tables), explanations]
    parts += ["## How it was made", origin]
    parts += [f"```\n{configuration}\n```"] if configuration else []
    return "\n\n".join(parts) + "\n"
