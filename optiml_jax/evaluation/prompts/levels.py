"""Levels of generalization for the run that is evaluated (paper section 2.3).

A ledger states the level of a task as it is under its suite's own training mixture, such as `opt_iml`. Another run has
seen other tasks: what it was trained on, `manifest.json` in its MODEL_DIR, decides.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optiml_jax.checkpoints.runs import INIT_WEIGHTS, is_run, read_run_config
from optiml_jax.common.errors import UserError
from optiml_jax.common.tables import counted, first_few
from optiml_jax.data.manifest import RECORD, Manifest
from optiml_jax.evaluation.prompts.ledger import LEVELS, Prompt

FULLY_HELD_OUT, HELD_OUT_TASK, HELD_OUT_INSTANCES = LEVELS


class Training(NamedTuple):
    """The training history of weights.

    Attributes:
      mixtures: of the run, then of the run whose weights it started from, and so on.
      complete: False if the first of these runs started from downloaded weights, whose training data are unknown.
    """

    mixtures: tuple[Manifest, ...]
    complete: bool


def recorded_training(weights: str) -> Training:
    """Reads the training history of `weights` from its MODEL_DIR; empty and incomplete for other weights."""
    path = Path(weights)
    record = path / RECORD if (path / RECORD).exists() else path.parent / RECORD  # `best/` is inside of its run
    if not is_run(weights) or not record.exists():
        return Training((), False)
    try:
        initial = read_run_config(weights)[1]["settings"].get(INIT_WEIGHTS)
    except UserError:  # no complete checkpoint, which loading the weights reports
        initial = None
    return training_of(Manifest.read(record), initial)


def training_of(manifest: Manifest, init_weights: str | None) -> Training:
    """Returns the training history of a run on `manifest` that starts from `init_weights` (None: random weights)."""
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
    names = " after ".join(f"{mixture.name} ({counted(len(mixture.tasks), 'task')})" for mixture in training.mixtures)
    note = f"Levels: for a model trained on {names}"
    note += "" if training.complete else ", after weights whose training is unknown"
    note += f"; at another level than in their suite: {counted(len(changed), 'task')}" if changed else ""
    evaluated = {prompt.task for prompt in prompts}
    twins = sorted({name for task in evaluated for name in tasks.intersection(trained_as.get(task, ()))})
    if not twins:
        return leveled, [note]
    return leveled, [
        note,
        f"Trained on the data of evaluated tasks: {counted(len(twins), 'task')} ({first_few(twins)})",
    ]
