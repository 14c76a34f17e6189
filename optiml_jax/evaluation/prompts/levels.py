"""Levels of generalization for the run that is evaluated (paper section 2.3).

A ledger states the level of a task as it is under its suite's own training mixture, such as `opt_iml`. Another run has
seen other tasks: what it was trained on, `manifest.json` in its MODEL_DIR, decides.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optiml_jax.checkpoints.runs import is_run, read_run_config
from optiml_jax.common.errors import UserError
from optiml_jax.data.manifest import RECORD, Manifest
from optiml_jax.evaluation.prompts.ledger import LEVELS, Prompt

FULLY_HELD_OUT, HELD_OUT_TASK, HELD_OUT_INSTANCES = LEVELS
NAMED = 5  # tasks named per line
INIT = "train.init_weights"  # the setting of a checkpoint that names the weights it started from


class Training(NamedTuple):
    """What weights were trained on: the mixtures of a run and of the runs that it started from, and whether that is all
    (weights from elsewhere have a history of their own)."""

    mixtures: tuple[Manifest, ...]
    complete: bool


def recorded_training(weights: str) -> Training:
    """What the runs behind `weights` recorded; no mixture for weights from elsewhere."""
    path = Path(weights)
    record = path / RECORD if (path / RECORD).exists() else path.parent / RECORD  # `best/` is inside of its run
    if not is_run(weights) or not record.exists():
        return Training((), False)
    try:
        initial = read_run_config(weights)[1]["settings"].get(INIT)
    except UserError:  # no complete checkpoint, which loading the weights reports
        initial = None
    return training_of(Manifest.read(record), initial)


def training_of(manifest: Manifest, init_weights: str | None) -> Training:
    """What a run of this mixture is trained on, given the weights from which it starts."""
    before = Training((), True) if init_weights is None else recorded_training(init_weights)
    return Training((manifest, *before.mixtures), before.complete)


def apply(
    prompts: Sequence[Prompt], training: Training, metadata: Iterable[Mapping[str, Any]]
) -> tuple[list[Prompt], list[str]]:
    """Returns the prompts with the levels that they have for a run, and lines for its report.

    A task without a level in its suite keeps none. Of the others, one that was trained on, or whose data were, is at
    the level of held-out instances; one of a category that was trained on is a held-out task; the rest is fully held
    out.

    Args:
      metadata: of the ledgers: "trained_as" (tasks with the data of an evaluated one) and "related" (categories that
        teach another one).
    """
    if not training.mixtures:
        note = (
            "Levels: as under opt_iml, or the suite's own training tasks; what these weights were trained on is unknown"
        )
        return list(prompts), [note]
    trained_as: dict[str, Sequence[str]] = {}
    related: dict[str, Sequence[str]] = {}
    for about in metadata:
        trained_as |= about.get("trained_as", {})
        related |= about.get("related", {})
    tasks = {task.name for mixture in training.mixtures for task in mixture.tasks}
    categories = {task.category for mixture in training.mixtures for task in mixture.tasks}

    def level(prompt: Prompt) -> str | None:
        if prompt.level is None:
            return None
        if tasks.intersection([prompt.task, *trained_as.get(prompt.task, ())]):
            return HELD_OUT_INSTANCES
        seen = categories.intersection([prompt.category, *related.get(prompt.category, ())])
        return HELD_OUT_TASK if seen else FULLY_HELD_OUT

    leveled = [dataclasses.replace(prompt, level=level(prompt)) for prompt in prompts]
    changed = {now.task for before, now in zip(prompts, leveled) if before.level != now.level}
    names = " after ".join(f"{mixture.name} ({len(mixture.tasks):,} tasks)" for mixture in training.mixtures)
    note = f"Levels: for a model trained on {names}"
    note += "" if training.complete else ", after weights whose training is unknown"
    note += f"; {len(changed):,} tasks are at another level than in their suite" if changed else ""
    evaluated = {prompt.task for prompt in prompts}
    twins = sorted({name for task in evaluated for name in tasks.intersection(trained_as.get(task, ()))})
    if not twins:
        return leveled, [note]
    named = ", ".join(twins[:NAMED]) + ", ..." * (len(twins) > NAMED)
    return leveled, [note, f"Trained on the data of evaluated tasks: {len(twins):,} tasks ({named})"]
