"""From scored samples to three levels of generalization, in the order of paper section 4.1.

samples -> (questions of several samples) -> templates -> task -> (sub-tasks of one task) -> benchmarks -> categories ->
levels -> average. Every step is an unweighted mean, but for a question that several samples answer: it is as right as
its worst one. 0-shot and k-shot stay apart up to the category (or level) and are combined there, again by a mean.
All scores are fractions in [0, 1]. Beside each stands an interval that holds 95% (`bootstrap.py`).
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optiml_jax.common.errors import DataError
from optiml_jax.common.files import write_atomically
from optiml_jax.evaluation.metrics import TOGETHER, Metric
from optiml_jax.evaluation.prompts.ledger import LEVELS, OF_A_TASK
from optiml_jax.evaluation.scores.baselines import baselines, floor
from optiml_jax.evaluation.scores.bootstrap import Questions, Resampled, Shares, interval, replicates

Tree = dict[str, "Tree"] | float


def mean(tree: Tree) -> float:
    """Of the branches' means, each weighing the same."""
    return _mean(map(mean, tree.values())) if isinstance(tree, dict) else tree


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)  # fsum: the same bits in any order


def _of_task(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all samples of a task say of it; a ledger's were compared when it was read, those of several were not."""
    for field in OF_A_TASK:
        if any(sample[field] != samples[0][field] for sample in samples):
            values = sorted({str(sample[field]) for sample in samples})
            raise DataError(f"task {samples[0]['task']}: its prompts disagree on {field}: {values}")
    return {field: samples[0][field] for field in OF_A_TASK}


def _task_scores(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What one task is and its scores: over the examples of a template, the templates, the numbers of shots."""
    known, templates = _of_task(samples), _templates(samples)
    shots = _shots(templates)
    return {
        "metric": str(Metric.parse(known["metric"])),
        **{field: known[field] for field in ("level", "category", "benchmark", "group")},
        "score": _mean(shots.values()),
        "shots": shots,
        "templates": templates,
    }


def _task_entry(samples: Sequence[Mapping[str, Any]], resampled: Resampled) -> dict[str, Any]:
    """One task of results.json: its scores, and what they are to be compared with."""
    found = _task_scores(samples)
    together = Metric.parse(samples[0]["metric"]).name in TOGETHER
    values = [(resampled, dict.fromkeys(found["shots"], 1.0))]
    return found | {
        "interval": None if together else interval(replicates(values)),
        "examples": len(samples),
        "baselines": baselines(samples),
        **_contamination(samples),
    }


def resample(name: str, samples: Sequence[Mapping[str, Any]]) -> Resampled:
    """The scores of a task as other draws of its examples give them; those of a metric that needs all predictions
    together stay what they are."""
    if Metric.parse(samples[0]["metric"]).name in TOGETHER:
        return Resampled(name, {k: {"": {(0, ""): score}} for k, score in _shots(_templates(samples)).items()})
    return Resampled(name, questions(samples))


def _contamination(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many samples are contaminated and the score of the others, where it is known."""
    if samples[0]["contaminated"] is None:
        return {}
    clean = [sample for sample in samples if sample["contaminated"] is False]
    score = _mean(_shots(_templates(clean)).values()) if clean else None
    return {"contaminated": len(samples) - len(clean), "clean_score": score}


def _shots(templates: Mapping[str, Mapping[str, list]]) -> dict[str, float]:
    """Number of shots -> the mean of its templates."""
    return {k: _mean(score for score, _ in of_shots.values()) for k, of_shots in templates.items()}


def _templates(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list]]:
    """Number of shots -> template -> [score, how many questions]."""
    metric = Metric.parse(samples[0]["metric"])
    if metric.name not in TOGETHER:
        return {
            k: {name: [_mean(asked.values()), len(asked)] for name, asked in of_shots.items()}
            for k, of_shots in questions(samples).items()
        }
    return {
        k: {
            name: [metric.over([s["prediction"] for s in of], [s["references"] for s in of]), len(of)]
            for name, of in of_shots.items()
        }
        for k, of_shots in _by_template(samples).items()
    }


def _by_template(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list]]:
    """Number of shots -> template -> samples."""
    found: dict[str, dict[str, list]] = {}
    for sample in sorted(samples, key=lambda sample: (sample["shots"], sample["template"])):
        found.setdefault(str(sample["shots"]), {}).setdefault(sample["template"], []).append(sample)
    return found


def questions(samples: Sequence[Mapping[str, Any]]) -> Questions:
    """Number of shots -> template -> (seed, example) -> score, of one task.

    Several samples that ask one question are one example, and as right as the worst of them.
    """
    found: dict[str, dict[str, dict]] = {}
    for k, of_shots in _by_template(samples).items():
        found[k] = {}
        for name, of_template in of_shots.items():
            scores = found[k][name] = {}
            for sample in of_template:
                asked = sample["seed"], sample["part_of"] or sample["example_id"]
                scores[asked] = min(sample["score"], scores.get(asked, math.inf))
    return found


def grow(
    tasks: Mapping[str, dict], within: Callable[[dict], Any], leaf: Callable[[dict, str], float]
) -> dict[Any, dict[str, Tree]]:
    """What is averaged: category (or what `within` says) -> shots -> task or group -> benchmark -> sub-task -> leaf.

    Args:
      within: what a task's entry counts for: its category, or its (level, category).
      leaf: of a task's entry at a number of shots.
    """
    trees: dict[Any, dict] = {}
    for name, task in tasks.items():
        for shots in task["shots"]:
            branch = trees
            for part in (within(task), shots, task["group"] or name, task["benchmark"]):
                branch = branch.setdefault(part, {})
            branch[name] = leaf(task, shots)
    return trees


def weigh(tree: Tree, resampled: Mapping[str, Resampled]) -> list[tuple[Resampled, Shares]]:
    """The tasks of a tree that `grow` grew, or of several with names, and what each weighs in its mean."""
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    for path, share in _leaves(tree, 1.0, ()):
        shots, _, _, task = path[-4:]
        shares[task][shots] = share
    return [(resampled[task], of_task) for task, of_task in shares.items()]


def _leaves(tree: Tree, share: float, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if not isinstance(tree, dict):
        yield path, share
        return
    for name, branch in tree.items():
        yield from _leaves(branch, share / len(tree), (*path, name))


def score_trees(tasks: Mapping[str, dict], within: Callable[[dict], Any]) -> dict[Any, dict[str, Tree]]:
    """`grow` with the tasks' scores."""
    return grow(tasks, within, lambda task, shots: task["shots"][shots])


def level_trees(tasks: Mapping[str, dict]) -> dict[str, dict[str, Tree]]:
    """Level, hardest first -> category -> its tree, of the levels that have tasks."""
    trees = score_trees(tasks, lambda task: (task["level"], task["category"]))
    inside = {level: {name: tree for (of, name), tree in trees.items() if of == level} for level in LEVELS}
    return {level: of_level for level, of_level in inside.items() if of_level}


def _entries(
    tasks: Mapping[str, dict], resampled: Mapping[str, Resampled], within: Callable[[dict], Any]
) -> dict[Any, dict]:
    """Category (or what `within` says) -> {"score", "interval", "shots", "majority", "floor", "tasks"}."""
    majorities = grow(tasks, within, lambda task, _: task["baselines"]["majority"])
    floors = grow(tasks, within, lambda task, _: floor(task["baselines"]))
    return {
        name: {
            "score": mean(tree),
            "interval": interval(replicates(weigh(tree, resampled))),
            "shots": {shots: mean(tree[shots]) for shots in sorted(tree, key=int)},
            "majority": mean(majorities[name]),
            "floor": mean(floors[name]),
            "tasks": sum(within(task) == name for task in tasks.values()),
        }
        for name, tree in score_trees(tasks, within).items()
    }


def _level_entry(categories: Mapping[str, dict], values: np.ndarray) -> dict[str, Any]:
    """A level is the mean of its categories, at each number of shots and combined.

    Args:
      values: its replicates.
    """
    by_shots = defaultdict(list)
    for entry in categories.values():
        for shots, score in entry["shots"].items():
            by_shots[shots].append(score)
    return {
        "score": _mean(entry["score"] for entry in categories.values()),
        "interval": interval(values),
        "shots": {shots: _mean(by_shots[shots]) for shots in sorted(by_shots, key=int)},
        **{name: _mean(entry[name] for entry in categories.values()) for name in ("majority", "floor")},
        "categories": dict(categories),
    }


def _by_task(samples: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Task -> its samples, by name."""
    found = defaultdict(list)
    for sample in samples:
        found[sample["task"]].append(sample)
    return dict(sorted(found.items()))


def scores(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of `aggregate` alone, without intervals and baselines, which take longer than they do.

    Returns:
      {"tasks": {name: {"metric", "score", "shots", "templates", "level", "category", "benchmark", "group"}},
       "categories", "levels": {name: score}, "average": of the levels, None where no task has one}
    """
    tasks = {name: _task_scores(of_task) for name, of_task in _by_task(samples).items()}
    levels = {level: mean(tree) for level, tree in level_trees(tasks).items()}
    return {
        "tasks": tasks,
        "categories": {name: mean(tree) for name, tree in score_trees(tasks, lambda task: task["category"]).items()},
        "levels": levels,
        "average": _mean(levels.values()) if levels else None,
    }


def aggregate(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of results.json.

    Args:
      samples: scored samples (`samples.score_sample`), in any order. Tasks of one "group" (57 subjects: "mmlu") are
        averaged within their benchmark, then the benchmarks, before the category; those of none stand alone.

    Returns:
      {"tasks": {name: {"metric", "score", "interval", "examples", "shots", "templates", "level", "category",
       "benchmark", "group", "baselines"}}, and where it is known which examples are contaminated, how many are
       ("contaminated") and the score of the others ("clean_score"); "templates" is
       {shots: {template: [score, questions]}},
       "categories", "benchmarks": {name: {"score", "interval", "shots", "majority", "floor", "tasks"}}, "tasks" being
       how many,
       "levels": {name: {"score", "interval", "shots", "majority", "floor", "categories": as above}},
       "average": mean of the levels, "average_interval"; None where no task has a level}
      "shots" is {number of demonstrations, as text: score with so many}; "score" combines them. "interval" is
      [low, high] of 95% (None of a metric that needs all predictions together), "floor" the mean of the higher of each
      task's baselines.

    Raises:
      DataError: prompts of one task disagree on its metric, level, category, benchmark or group.
    """
    by_task = _by_task(samples)
    resampled = {name: resample(name, of_task) for name, of_task in by_task.items()}
    tasks = {name: _task_entry(of_task, resampled[name]) for name, of_task in by_task.items()}
    by_level = _entries(tasks, resampled, lambda task: (task["level"], task["category"]))
    trees = level_trees(tasks)
    values = {level: replicates(weigh(tree, resampled)) for level, tree in trees.items()}
    levels = {
        level: _level_entry({c: by_level[level, c] for c in tree}, values[level]) for level, tree in trees.items()
    }
    return {
        "tasks": tasks,
        "categories": _entries(tasks, resampled, lambda task: task["category"]),
        "benchmarks": _entries(tasks, resampled, lambda task: task["benchmark"]),
        "levels": levels,
        "average": _mean(entry["score"] for entry in levels.values()) if levels else None,
        "average_interval": interval(np.mean(list(values.values()), 0)) if levels else None,
    }


def results(
    samples: Iterable[Mapping[str, Any]],
    *,
    weights: str,
    tokenizer: str,
    bos: str | None,
    ranked_by: str,
    code_version: str,
) -> dict[str, Any]:
    """Everything in results.json: `aggregate`, and what the scores are scores of.

    Args:
      weights: where the weights came from.  tokenizer: its fingerprint.  code_version: of this package.
      bos: what stood before every prompt.
      ranked_by: what candidates were ranked by (`normalization.RANKED_BY`).
    """
    about = {"weights": weights, "tokenizer": tokenizer, "bos": bos, "ranked_by": ranked_by}
    return about | {"code_version": code_version} | aggregate(samples)


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes results.json, atomically and with sorted keys: equal scores give equal bytes."""
    write_atomically(path, json.dumps(results, sort_keys=True, indent=2, allow_nan=False) + "\n")
