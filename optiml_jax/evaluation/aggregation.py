"""From scored samples to three levels of generalization, in the order of paper section 4.1.

samples -> (questions of several samples) -> templates -> task -> (sub-tasks of one task) -> benchmarks -> categories ->
levels -> average. Every step is an unweighted mean, but for a question that several samples answer: it is as right as
its worst one. 0-shot and k-shot stay apart up to the category (or level) and are combined there, again by a mean.
All scores are fractions in [0, 1].
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.errors import DataError
from optiml_jax.evaluation.baselines import baselines
from optiml_jax.evaluation.ledger import LEVELS, OF_A_TASK
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.files import write_atomically

# What is averaged travels as one tuple, so that the majority baseline goes through the same chain as the score.
Values = tuple[float, ...]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)  # fsum: the same bits in any order


def _mean_over_last(rows: Iterable[tuple[tuple, Values]]) -> dict[tuple, Values]:
    """Means of the rows whose keys differ in the last place only; that place is dropped."""
    groups = defaultdict(list)
    for key, values in rows:
        groups[key[:-1]].append(values)
    return {key: tuple(map(_mean, zip(*group))) for key, group in groups.items()}


def _of_task(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all samples of a task say of it; a ledger's were compared when it was read, those of several were not."""
    for field in OF_A_TASK:
        if any(sample[field] != samples[0][field] for sample in samples):
            values = sorted({str(sample[field]) for sample in samples})
            raise DataError(f"task {samples[0]['task']}: its prompts disagree on {field}: {values}")
    return {field: samples[0][field] for field in OF_A_TASK}


def _task_entry(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One task of results.json: over the examples of a template, the templates, the numbers of shots."""
    known, shots = _of_task(samples), _by_shots(samples)
    return {
        "metric": str(Metric.parse(known["metric"])),
        **{field: known[field] for field in ("level", "category", "benchmark")},
        "score": _mean(shots.values()),
        "shots": shots,
        "examples": len(samples),
        "baselines": baselines(samples),
        **_contamination(samples),
    }


def _contamination(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many samples are contaminated and the score of the others, where it is known."""
    if samples[0]["contaminated"] is None:
        return {}
    clean = [sample for sample in samples if sample["contaminated"] is False]
    score = _mean(_by_shots(clean).values()) if clean else None
    return {"contaminated": len(samples) - len(clean), "clean_score": score}


def _by_shots(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Number of shots -> score."""
    questions: dict[tuple, float] = {}
    for sample in samples:
        asked = sample["id"] if sample["part_of"] is None else (sample["seed"], sample["part_of"])
        key = sample["shots"], sample["template"], asked
        questions[key] = min(sample["score"], questions.get(key, math.inf))
    rows = ((key, (score,)) for key, score in questions.items())
    by_shots = _mean_over_last(_mean_over_last(rows).items())
    return {str(k): by_shots[k,][0] for (k,) in sorted(by_shots)}


def _entries(
    tasks: Mapping[str, dict], groups: Mapping[str, str | None], scope: Callable[[dict], Any]
) -> dict[Any, dict]:
    """scope -> {"score", "shots", "majority"}: over sub-tasks, benchmarks, tasks at each number of shots, then shots.

    Args:
      scope: what a task's entry counts for: its category, or its (level, category).
    """
    rows = [
        ((scope(task), shots, groups[name] or name, task["benchmark"], name), (score, task["baselines"]["majority"]))
        for name, task in tasks.items()
        for shots, score in task["shots"].items()
    ]
    across_sub_tasks = _mean_over_last(rows)
    across_benchmarks = _mean_over_last(across_sub_tasks.items())
    across_tasks = _mean_over_last(across_benchmarks.items())
    entries = {
        key: {"score": score, "shots": {}, "majority": majority}
        for (key,), (score, majority) in _mean_over_last(across_tasks.items()).items()
    }
    for (key, shots), (score, _) in across_tasks.items():
        entries[key]["shots"][shots] = score
    return entries


def _level_entry(categories: Mapping[str, dict]) -> dict[str, Any]:
    """A level is the mean of its categories, at each number of shots and combined."""
    rows = (((shots, name), (score,)) for name, entry in categories.items() for shots, score in entry["shots"].items())
    return {
        "score": _mean(entry["score"] for entry in categories.values()),
        "shots": {shots: score for (shots,), (score,) in _mean_over_last(rows).items()},
        "majority": _mean(entry["majority"] for entry in categories.values()),
        "categories": dict(categories),
    }


def aggregate(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of results.json.

    Args:
      samples: scored samples (`samples.score_sample`), in any order. Tasks of one "group" (57 subjects: "mmlu") are
        averaged within their benchmark, then the benchmarks, before the category; those of none stand alone.

    Returns:
      {"tasks": {name: {"metric", "score", "examples", "shots", "level", "category", "benchmark", "baselines"}}, and
       where it is known which examples are contaminated, how many are ("contaminated") and the score of the others
       ("clean_score"),
       "categories": {name: {"score", "shots", "majority", "tasks"}}, "tasks" being how many,
       "levels": {name: {"score", "shots", "majority", "categories": {name: {"score", "shots", "majority"}}}},
       "average": mean of the levels, or None where no task has a level}
      "shots" is {number of demonstrations, as text: score with so many}; "score" combines them.

    Raises:
      DataError: prompts of one task disagree on its metric, level, category, benchmark or group.
    """
    by_task = defaultdict(list)
    for sample in samples:
        by_task[sample["task"]].append(sample)
    tasks = {name: _task_entry(of_task) for name, of_task in sorted(by_task.items())}
    groups = {name: of_task[0]["group"] for name, of_task in by_task.items()}

    categories = _entries(tasks, groups, lambda task: task["category"])
    for name, entry in categories.items():
        entry["tasks"] = sum(task["category"] == name for task in tasks.values())
    by_level = _entries(tasks, groups, lambda task: (task["level"], task["category"]))
    inside = {level: {name: entry for (of, name), entry in by_level.items() if of == level} for level in LEVELS}
    levels = {level: _level_entry(entries) for level, entries in inside.items() if entries}
    average = _mean(entry["score"] for entry in levels.values()) if levels else None
    return {"tasks": tasks, "categories": categories, "levels": levels, "average": average}


def results(
    samples: Iterable[Mapping[str, Any]],
    *,
    weights: str,
    tokenizer: str,
    bos: bool,
    code_version: str,
) -> dict[str, Any]:
    """Everything in results.json: `aggregate`, and what the scores are scores of.

    Args:
      weights: where the weights came from.  tokenizer: its fingerprint.  code_version: of this package.
      bos: whether a `</s>` stood before every prompt.
    """
    about = {"weights": weights, "tokenizer": tokenizer, "bos": bos, "code_version": code_version}
    return about | aggregate(samples)


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes results.json, atomically and with sorted keys: equal scores give equal bytes."""
    write_atomically(path, json.dumps(results, sort_keys=True, indent=2, allow_nan=False) + "\n")
