"""Aggregates scored samples as the paper does (section 4.1): to tasks, categories, and an average over them.

samples -> (questions of several samples) -> templates -> task -> (sub-tasks of a task) -> benchmarks -> categories ->
average. Every step is an unweighted mean, except that a question with several samples has the score of its worst.
0-shot and k-shot scores are separate up to the category, whose score is their mean. The average is that of Tables 4 to
20: at each number of shots the mean over the columns, which are the categories of each level, and then the mean over
numbers of shots. The mean of the levels' means is reported beside it. Scores are fractions in [0, 1], with intervals of
95% (`intervals.py`).
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optiml_jax.common.files import write_atomically
from optiml_jax.evaluation.scores import trees
from optiml_jax.evaluation.scores.baselines import baselines, floor
from optiml_jax.evaluation.scores.intervals import Interval, Shares, TaskQuestions, over_clusters, over_questions
from optiml_jax.evaluation.scores.task_scores import by_task, contamination, mean, question_scores, task_scores


def score_of(tasks: Mapping[str, dict]) -> Callable[[str, str], float]:
    """The value of `trees.mean`: the score of a task at a number of shots."""
    return lambda name, shots: tasks[name]["shots"][shots]


def _task_entry(
    samples: Sequence[Mapping[str, Any]], questions: TaskQuestions, known: Mapping[str, float | None] | None
) -> dict[str, Any]:
    """Returns the entry of a task in results.json: its scores, interval and baselines."""
    task = task_scores(samples)
    shares = dict.fromkeys(task["shots"], 1 / len(task["shots"]))
    return task | {
        "interval": over_clusters(*questions.clusters(shares), len(questions)),
        "examples": len(samples),
        "questions": len(questions),
        "baselines": baselines(samples) if known is None else dict(known),
        **contamination(samples),
    }


def clusters(
    shares: Mapping[str, Shares], tasks: Mapping[str, dict], questions: Mapping[str, TaskQuestions]
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and means of the clusters of a mean over tasks: its groups of sub-tasks (MMLU) and its other tasks, or
    the sub-tasks if there is a single group."""
    groups = {name: tasks[name]["group"] or name for name in shares}
    if len(set(groups.values())) == 1:
        groups = {name: name for name in shares}
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, by_shots in shares.items():
        weight = math.fsum(by_shots.values())
        weights, means = questions[name].clusters(by_shots)
        sums[groups[name]][0] += weight
        sums[groups[name]][1] += weight * float(weights @ means)
    totals, products = np.array(list(sums.values())).T
    return totals / totals.sum(), products / totals


def uncertainty(
    tree: trees.Tree,
    tasks: Mapping[str, dict],
    questions: Mapping[str, TaskQuestions],
    bounds: tuple[float, float] = (0.0, 1.0),
) -> dict[str, Interval | int]:
    """The intervals of a mean over tasks.

    Args:
      bounds: of the scores.

    Returns:
      {"interval": over tasks, "questions_interval": of these tasks alone, "clusters": number of tasks, where sub-tasks
      of one task count once}
    """
    shares = trees.task_shares(tree)
    weights, means = clusters(shares, tasks, questions)
    of_tasks = [(questions[name], by_shots) for name, by_shots in shares.items()]
    return {
        "interval": over_clusters(weights, means, sum(len(task) for task, _ in of_tasks), bounds),
        "questions_interval": over_questions(of_tasks, bounds),
        "clusters": len(weights),
    }


def _entry(tree: trees.Tree, tasks: Mapping[str, dict], questions: Mapping[str, TaskQuestions]) -> dict[str, Any]:
    """{"score", "interval", "questions_interval", "clusters", "majority", "floor", "tasks"} of a mean over tasks."""
    names = trees.task_shares(tree)
    entry = {"score": trees.mean(tree, score_of(tasks)), **uncertainty(tree, tasks, questions)}
    for field, baseline in (("majority", lambda task: task["baselines"]["majority"]), ("floor", _floor)):
        values = {name: baseline(tasks[name]) for name in names}
        entry[field] = (
            None if None in values.values() else trees.mean(tree, lambda name, _, values=values: values[name])
        )
    return entry | {"tasks": len(names)}


def _floor(task: Mapping[str, Any]) -> float | None:
    return floor(task["baselines"])


def _column_entry(
    tree: dict[str, trees.Tree], tasks: Mapping[str, dict], questions: Mapping[str, TaskQuestions]
) -> dict[str, Any]:
    """The entry of a category, benchmark or average, whose tree starts with the numbers of shots, with its score at
    each ("shots")."""
    by_shots = {shots: trees.mean(tree[shots], score_of(tasks)) for shots in sorted(tree, key=int)}
    return _entry(tree, tasks, questions) | {"shots": by_shots}


def _level_entry(
    tree: dict[str, trees.Tree],
    categories: Mapping[str, dict],
    tasks: Mapping[str, dict],
    questions: Mapping[str, TaskQuestions],
) -> dict[str, Any]:
    """Entry of a level: the mean of its categories, for each number of shots and combined."""
    by_shots = defaultdict(list)
    for entry in categories.values():
        for shots, score in entry["shots"].items():
            by_shots[shots].append(score)
    return _entry(tree, tasks, questions) | {
        "shots": {shots: mean(by_shots[shots]) for shots in sorted(by_shots, key=int)},
        "categories": dict(categories),
    }


def _averages(tasks: Mapping[str, dict], questions: Mapping[str, TaskQuestions]) -> dict[str, dict]:
    """Entries of the averages; those over columns with the number of columns at each number of shots."""
    entries = {}
    for name, tree in trees.averages(tasks).items():
        if name == "level_average":
            entries[name] = _entry(tree, tasks, questions)
        else:
            columns = {shots: len(branches) for shots, branches in tree.items()}
            entries[name] = _column_entry(tree, tasks, questions) | {"columns": columns}
    return entries


def scores(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of `aggregate` without intervals and baselines, which take longer to compute.

    Returns:
      {"tasks": {name: {"metric", "score", "shots", "templates", "level", "category", "benchmark", "group", "pooled"}},
       "categories", "levels": {name: score}, "average", "benchmark_average", "level_average": scores, None if there is
       nothing to average}
    """
    tasks = {name: task_scores(group) for name, group in by_task(samples).items()}

    def means(by_name: Mapping[str, trees.Tree]) -> dict[str, float]:
        return {name: trees.mean(tree, score_of(tasks)) for name, tree in by_name.items()}

    return {
        "tasks": tasks,
        "categories": means(trees.build(tasks, lambda task: task["category"])),
        "levels": means(trees.by_level(tasks)),
        **dict.fromkeys(trees.AVERAGES),
        **means(trees.averages(tasks)),
    }


def aggregate(
    samples: Iterable[Mapping[str, Any]], known_baselines: Mapping[str, Mapping[str, float | None]] = {}
) -> dict[str, Any]:
    """Computes the scores of results.json.

    Args:
      samples: scored samples (`samples.score_sample`), in any order. Tasks of one "group" (57 subjects: "mmlu") are
        averaged within their benchmark, then over benchmarks, before the category; tasks without a group stand alone.
      known_baselines: of tasks, computed on more prompts than the evaluated ones; those of other tasks are computed on
        the samples.

    Returns:
      A dictionary of
        "tasks": {name: {"metric", "score", "interval", "examples", "questions", "shots", "templates", "level",
          "category", "benchmark", "group", "pooled", "baselines"}}, with "templates" as {shots: {template: [score,
          questions]}}. Where it is known which examples are contaminated, also their number ("contaminated") and the
          score of the others ("clean_score").
        "categories", "benchmarks": {name: ENTRY}; "levels": {name: ENTRY with "categories": {name: ENTRY}}.
        "averages": {"average", "benchmark_average": ENTRY with "columns", the number of columns averaged at each number
          of shots; "level_average": ENTRY without "shots"}; those that there are. "average": the score of the first.
      An ENTRY is {"score", "interval", "questions_interval", "clusters", "shots", "majority", "floor", "tasks"}:
      "shots" is {number of demonstrations, as a string: score} and "score" combines them; "interval" is [low, high] of
      95% over tasks, None with fewer than five clusters; "questions_interval" is that of these tasks alone; "floor" is
      the mean of the higher of each task's baselines, None if a task has too few questions for one.

    Raises:
      DataError: prompts of one task disagree on its metric, level, category, benchmark or group.
    """
    groups = by_task(samples)
    questions = {name: TaskQuestions(question_scores(group), group[0]["pooled"]) for name, group in groups.items()}
    tasks = {name: _task_entry(group, questions[name], known_baselines.get(name)) for name, group in groups.items()}

    def entries(column: Callable[[dict], Any]) -> dict[Any, dict]:
        return {name: _column_entry(tree, tasks, questions) for name, tree in trees.build(tasks, column).items()}

    by_column = entries(trees.level_and_category)
    averages = _averages(tasks, questions)
    return {
        "tasks": tasks,
        "categories": entries(lambda task: task["category"]),
        "benchmarks": entries(lambda task: task["benchmark"]),
        "levels": {
            level: _level_entry(tree, {name: by_column[level, name] for name in tree}, tasks, questions)
            for level, tree in trees.by_level(tasks).items()
        },
        "average": averages["average"]["score"] if averages else None,
        "averages": averages,
    }


def results(
    samples: Iterable[Mapping[str, Any]],
    about: Mapping[str, Any],
    known_baselines: Mapping[str, Mapping[str, float | None]] = {},
) -> dict[str, Any]:
    """The content of results.json: `aggregate`, and what the scores belong to.

    Args:
      about: settings of the evaluation by name; "weights" (where they came from), "tokenizer" (its fingerprint), "bos"
        (text before every prompt, or None), "ranked_by" and "code_version" are shown in reports.
      known_baselines: as in `aggregate`.
    """
    return dict(about) | aggregate(samples, known_baselines)


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes results.json atomically, with sorted keys, so that equal scores give equal bytes."""
    write_atomically(path, json.dumps(results, sort_keys=True, indent=2, allow_nan=False) + "\n")
