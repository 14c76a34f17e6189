"""Aggregates scored samples to three levels of generalization, in the order of paper section 4.1.

samples -> (questions of several samples) -> templates -> task -> (sub-tasks of a task) -> benchmarks -> categories ->
levels -> average. Every step is an unweighted mean, except that a question with several samples has the score of its
worst. 0-shot and k-shot scores are separate up to the category (or level), where their mean is taken. All scores are
fractions in [0, 1], with intervals of 95% (`bootstrap.py`).
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
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import LEVELS, TASK_FIELDS
from optiml_jax.evaluation.scores.baselines import baselines, floor
from optiml_jax.evaluation.scores.bootstrap import Questions, Resampled, Shares, interval, replicates

Tree = dict[str, "Tree"] | float


def mean(tree: Tree) -> float:
    """Unweighted mean of the branches' means."""
    return _mean(map(mean, tree.values())) if isinstance(tree, dict) else tree


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)  # fsum gives the same bits in any order


def _task_fields(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields that all samples of a task share. A single ledger was checked when it was read; several were not."""
    for field in TASK_FIELDS:
        if any(sample[field] != samples[0][field] for sample in samples):
            values = sorted({str(sample[field]) for sample in samples})
            raise DataError(f"task {samples[0]['task']}: its prompts disagree on {field}: {values}")
    return {field: samples[0][field] for field in TASK_FIELDS}


def _task_scores(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Description and scores of one task: means over the examples of a template, templates, numbers of shots."""
    fields, templates = _task_fields(samples), _templates(samples)
    shots = _shots(templates)
    return {
        "metric": str(Metric.parse(fields["metric"])),
        **{field: fields[field] for field in ("level", "category", "benchmark", "group")},
        "score": _mean(shots.values()),
        "shots": shots,
        "templates": templates,
    }


def _task_entry(samples: Sequence[Mapping[str, Any]], resampled: Resampled) -> dict[str, Any]:
    """Returns the entry of a task in results.json: its scores, interval and baselines."""
    task = _task_scores(samples)
    over_task = Metric.parse(samples[0]["metric"]).over_task
    values = [(resampled, dict.fromkeys(task["shots"], 1.0))]
    return task | {
        "interval": None if over_task else interval(replicates(values)),
        "examples": len(samples),
        "baselines": baselines(samples),
        **_contamination(samples),
    }


def resample(name: str, samples: Sequence[Mapping[str, Any]]) -> Resampled:
    """Bootstrap replicates of a task's scores; constant for a metric that is computed over the task."""
    if Metric.parse(samples[0]["metric"]).over_task:
        return Resampled(name, {k: {"": {(0, ""): score}} for k, score in _shots(_templates(samples)).items()})
    return Resampled(name, question_scores(samples))


def _contamination(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Number of contaminated samples and the score of the others, where contamination is known."""
    if samples[0]["contaminated"] is None:
        return {}
    clean = [sample for sample in samples if sample["contaminated"] is False]
    score = _mean(_shots(_templates(clean)).values()) if clean else None
    return {"contaminated": len(samples) - len(clean), "clean_score": score}


def _shots(templates: Mapping[str, Mapping[str, list]]) -> dict[str, float]:
    """Number of shots -> mean over its templates."""
    return {k: _mean(score for score, _ in by_name.values()) for k, by_name in templates.items()}


def _templates(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list]]:
    """Number of shots -> template -> [score, number of questions]."""
    metric = Metric.parse(samples[0]["metric"])
    if not metric.over_task:
        return {
            k: {name: [_mean(by_question.values()), len(by_question)] for name, by_question in templates.items()}
            for k, templates in question_scores(samples).items()
        }
    return {
        k: {
            name: [metric.over([s["prediction"] for s in group], [s["references"] for s in group]), len(group)]
            for name, group in templates.items()
        }
        for k, templates in _by_template(samples).items()
    }


def _by_template(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list]]:
    """Number of shots -> template -> samples."""
    groups: dict[str, dict[str, list]] = {}
    for sample in sorted(samples, key=lambda sample: (sample["shots"], sample["template"])):
        groups.setdefault(str(sample["shots"]), {}).setdefault(sample["template"], []).append(sample)
    return groups


def question_scores(samples: Sequence[Mapping[str, Any]]) -> Questions:
    """Number of shots -> template -> (seed, example) -> score, of one task.

    Several samples of one question count as one example, with the score of the worst.
    """
    by_shots: dict[str, dict[str, dict]] = {}
    for k, templates in _by_template(samples).items():
        by_shots[k] = {}
        for name, group in templates.items():
            scores = by_shots[k][name] = {}
            for sample in group:
                question = sample["seed"], sample["part_of"] or sample["example_id"]
                scores[question] = min(sample["score"], scores.get(question, math.inf))
    return by_shots


def build_trees(
    tasks: Mapping[str, dict], within: Callable[[dict], Any], leaf: Callable[[dict, str], float]
) -> dict[Any, dict[str, Tree]]:
    """Trees to be averaged: category (or result of `within`) -> shots -> task or group -> benchmark -> sub-task ->
    leaf.

    Args:
      within: what a task's entry counts for: its category, or its (level, category).
      leaf: value of a task's entry at a number of shots.
    """
    trees: dict[Any, dict] = {}
    for name, task in tasks.items():
        for shots in task["shots"]:
            branch = trees
            for part in (within(task), shots, task["group"] or name, task["benchmark"]):
                branch = branch.setdefault(part, {})
            branch[name] = leaf(task, shots)
    return trees


def task_weights(tree: Tree, resampled: Mapping[str, Resampled]) -> list[tuple[Resampled, Shares]]:
    """The tasks of a tree of `build_trees`, or of named trees, with their weights in the tree's mean."""
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    for path, share in _leaves(tree, 1.0, ()):
        shots, _, _, task = path[-4:]
        shares[task][shots] = share
    return [(resampled[task], by_shots) for task, by_shots in shares.items()]


def _leaves(tree: Tree, share: float, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if not isinstance(tree, dict):
        yield path, share
        return
    for name, branch in tree.items():
        yield from _leaves(branch, share / len(tree), (*path, name))


def score_trees(tasks: Mapping[str, dict], within: Callable[[dict], Any]) -> dict[Any, dict[str, Tree]]:
    """`build_trees` with the tasks' scores."""
    return build_trees(tasks, within, lambda task, shots: task["shots"][shots])


def level_trees(tasks: Mapping[str, dict]) -> dict[str, dict[str, Tree]]:
    """Level, hardest first -> category -> its tree; levels without tasks are left out."""
    trees = score_trees(tasks, lambda task: (task["level"], task["category"]))
    by_level = {level: {name: tree for (owner, name), tree in trees.items() if owner == level} for level in LEVELS}
    return {level: categories for level, categories in by_level.items() if categories}


def _entries(
    tasks: Mapping[str, dict], resampled: Mapping[str, Resampled], within: Callable[[dict], Any]
) -> dict[Any, dict]:
    """Category (or result of `within`) -> {"score", "interval", "shots", "majority", "floor", "tasks"}."""
    majorities = build_trees(tasks, within, lambda task, _: task["baselines"]["majority"])
    floors = build_trees(tasks, within, lambda task, _: floor(task["baselines"]))
    return {
        name: {
            "score": mean(tree),
            "interval": interval(replicates(task_weights(tree, resampled))),
            "shots": {shots: mean(tree[shots]) for shots in sorted(tree, key=int)},
            "majority": mean(majorities[name]),
            "floor": mean(floors[name]),
            "tasks": sum(within(task) == name for task in tasks.values()),
        }
        for name, tree in score_trees(tasks, within).items()
    }


def _level_entry(categories: Mapping[str, dict], values: np.ndarray) -> dict[str, Any]:
    """Entry of a level: the mean of its categories, for each number of shots and combined.

    Args:
      values: bootstrap replicates of its score.
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
    """Task -> its samples, sorted by name."""
    groups = defaultdict(list)
    for sample in samples:
        groups[sample["task"]].append(sample)
    return dict(sorted(groups.items()))


def scores(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of `aggregate` without intervals and baselines, which take longer to compute.

    Returns:
      {"tasks": {name: {"metric", "score", "shots", "templates", "level", "category", "benchmark", "group"}},
       "categories", "levels": {name: score}, "average": of the levels, None if no task has one}
    """
    tasks = {name: _task_scores(group) for name, group in _by_task(samples).items()}
    levels = {level: mean(tree) for level, tree in level_trees(tasks).items()}
    return {
        "tasks": tasks,
        "categories": {name: mean(tree) for name, tree in score_trees(tasks, lambda task: task["category"]).items()},
        "levels": levels,
        "average": _mean(levels.values()) if levels else None,
    }


def aggregate(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Computes the scores of results.json.

    Args:
      samples: scored samples (`samples.score_sample`), in any order. Tasks of one "group" (57 subjects: "mmlu") are
        averaged within their benchmark, then over benchmarks, before the category; tasks without a group stand alone.

    Returns:
      A dictionary of
        "tasks": {name: {"metric", "score", "interval", "examples", "shots", "templates", "level", "category",
          "benchmark", "group", "baselines"}}, with "templates" as {shots: {template: [score, questions]}}. Where it is
          known which examples are contaminated, also their number ("contaminated") and the score of the others
          ("clean_score").
        "categories", "benchmarks": {name: {"score", "interval", "shots", "majority", "floor", "tasks"}}, with the
          number of tasks.
        "levels": {name: {"score", "interval", "shots", "majority", "floor", "categories": as above}}.
        "average", "average_interval": mean of the levels; None if no task has a level.
      "shots" is {number of demonstrations, as a string: score}; "score" combines them. "interval" is [low, high] of 95%
      (None for a metric over the task), "floor" the mean of the higher of each task's baselines.

    Raises:
      DataError: prompts of one task disagree on its metric, level, category, benchmark or group.
    """
    by_task = _by_task(samples)
    resampled = {name: resample(name, group) for name, group in by_task.items()}
    tasks = {name: _task_entry(group, resampled[name]) for name, group in by_task.items()}
    by_level = _entries(tasks, resampled, lambda task: (task["level"], task["category"]))
    trees = level_trees(tasks)
    values = {level: replicates(task_weights(tree, resampled)) for level, tree in trees.items()}
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
    """The content of results.json: `aggregate`, and what the scores belong to.

    Args:
      weights: where the weights came from.  tokenizer: its fingerprint.  code_version: of this package.
      bos: text before every prompt, or None.
      ranked_by: score that candidates were ranked by (`normalization.RANKED_BY`).
    """
    about = {"weights": weights, "tokenizer": tokenizer, "bos": bos, "ranked_by": ranked_by}
    return about | {"code_version": code_version} | aggregate(samples)


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes results.json atomically, with sorted keys, so that equal scores give equal bytes."""
    write_atomically(path, json.dumps(results, sort_keys=True, indent=2, allow_nan=False) + "\n")
