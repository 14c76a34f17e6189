"""The report of an evaluation in words: the same tables for the terminal and report.md."""

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from optiml_jax.data.manifest import coverage_text
from optiml_jax.evaluation.reports.tables import (
    category_table,
    interval_text,
    level_table,
    markdown_table,
    notes,
    per_cent,
    tables,
    task_table,
    text_table,
)

PRINTED_TASKS = 100  # more than a screen or two belongs into the files
NAMED = 5  # prompts that something is wrong with


@dataclasses.dataclass(frozen=True)
class Context:
    """What a report says beside the scores.

    Attributes:
      training: {"first_loss", "last_loss"}, nats per label token, when the evaluation follows a training, and where
        they are known its "curve", [[step, loss], ...], and its "validation", [[step, average of the levels], ...].
      coverage: how much of each benchmark was there (`data.manifest.coverage_text`).
      dropped: tasks that a review took out, with the reason.
      made: `provenance.provenance`.
    """

    training: Mapping[str, Any] | None = None
    coverage: Mapping[str, Any] | None = None
    dropped: Sequence[str] = ()
    made: Mapping[str, str] = dataclasses.field(default_factory=dict)


def scope(context: Context, samples: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """How much of each benchmark was asked, what of it was left out on purpose, and which prompts to look at."""
    lines = [coverage_text(context.coverage)] if context.coverage else []
    return [*lines, *(f"Left out: {text}" for text in context.dropped), *_remarks(samples)]


def _remarks(samples: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each thing that is wrong with prompts, with their number and the first of them."""
    found = defaultdict(list)
    for sample in samples:
        reasons = [sample["remark"]] if sample["remark"] else []
        reasons += ["too long, its beginning was cut"] if sample["prompt_cut"] else []
        for reason in reasons:
            found[sample["score"] is not None, reason].append(sample["id"])
    return [
        f"{'Scored all the same' if was_scored else 'Not scored'}, {len(ids):,} prompts, {reason}: "
        + ", ".join(ids[:NAMED])
        + (", ... (samples.jsonl)" if len(ids) > NAMED else "")
        for (was_scored, reason), ids in sorted(found.items())
    ]


def headline(results: Mapping[str, Any]) -> str:
    """What was scored, in one line."""
    prompts = sum(task["examples"] for task in results["tasks"].values())
    eos = "with" if results["bos"] else "without"
    ranked = "" if results["ranked_by"] == "sum" else f", candidates ranked by {results['ranked_by']}"
    return f"{results['weights']}: {len(results['tasks']):,} tasks, {prompts:,} prompts, {eos} a leading </s>{ranked}"


def summary(
    results: Mapping[str, Any], context: Context = Context(), samples: Iterable[Mapping[str, Any]] = ()
) -> list[str]:
    """What was scored, of how much, what was left out on purpose, the loss before and after training if known, and the
    one number, a line each."""
    lines = [headline(results), *scope(context, samples)]
    if context.training:
        first, last = context.training["first_loss"], context.training["last_loss"]
        lines.append(f"Training loss {first:.3f} -> {last:.3f} nats per label token ({last / first - 1:+.0%})")
    if results["average"] is not None:
        lines.append(
            f"Average of the levels {per_cent(results['average'])} ({interval_text(results['average_interval'])})"
        )
    return lines


def print_report(
    results: Mapping[str, Any],
    samples: Iterable[Mapping[str, Any]] = (),
    context: Context = Context(),
    file: TextIO | None = None,
) -> None:
    """Prints the report as aligned text: levels, categories, tasks.

    Args:
      samples: adds the shares of empty and cut answers to the tasks.
      file: standard output by default.
    """
    samples = list(samples)
    tasks = task_table(results, samples, short=True)
    if len(tasks.rows) > PRINTED_TASKS:
        title = f"{tasks.title} (first {PRINTED_TASKS} of {len(tasks.rows):,}; all of them in report.md)"
        tasks = dataclasses.replace(tasks, title=title, rows=tasks.rows[:PRINTED_TASKS])
    printed = [table for table in (level_table(results), category_table(results), tasks) if table.rows]
    about = "\n".join(summary(results, context, samples))
    print("\n\n".join([about, *map(text_table, printed), "\n".join(notes(printed))]), file=file or sys.stdout)


def making(results: Mapping[str, Any], context: Context) -> tuple[dict[str, str], str]:
    """How a report was made, by name, and under which configuration."""
    made = {"tokenizer": results["tokenizer"][:12], "code": results["code_version"], **context.made}
    return made, made.pop("configuration", "").strip()


def markdown(
    results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = (), context: Context = Context()
) -> str:
    """The text of report.md."""
    made, configuration = making(results, context)
    every = tables(results, samples)
    about = "\n".join(f"- {line}" for line in summary(results, context, samples))
    origin = "\n".join(f"- {name}: `{text}`" for name, text in made.items())
    parts = ["# Evaluation", about, *map(markdown_table, every), "\n".join(f"- {note}" for note in notes(every))]
    parts += ["## How it was made", origin]
    parts += [f"```\n{configuration}\n```"] if configuration else []
    return "\n\n".join(parts) + "\n"
