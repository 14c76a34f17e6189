"""Aggregates scored samples as the paper does (section 4.1): to tasks, categories, and an average over them.

samples -> (questions of several samples) -> templates -> task -> (sub-tasks of a task) -> benchmarks -> categories ->
average. Every step is an unweighted mean, except that a question with several samples has the score of its worst.
0-shot and k-shot scores are separate up to the category, whose score is their mean. The average is that of Tables 4 to
20: at each number of shots the mean over the columns, which are the categories of each level, and then the mean over
numbers of shots. The mean of the levels' means is reported beside it. Scores are fractions in [0, 1], with intervals of
95% (`intervals.py`).
"""

import functools
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
from optiml_jax.evaluation.scores.intervals import (
    Interval,
    Questions,
    Shares,
    TaskQuestions,
    over_clusters,
    over_questions,
)

AVERAGES = ("average", "benchmark_average", "level_average")  # what `scores` and `aggregate` average to
Tree = dict[Any, "Tree"] | float
Cell = tuple[str, str]  # a task at a number of shots


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


def _task_entry(
    samples: Sequence[Mapping[str, Any]], questions: TaskQuestions, known: Mapping[str, float | None] | None
) -> dict[str, Any]:
    """Returns the entry of a task in results.json: its scores, interval and baselines."""
    task = _task_scores(samples)
    shares = dict.fromkeys(task["shots"], 1 / len(task["shots"]))
    return task | {
        "interval": over_clusters(*questions.clusters(shares), len(questions)),
        "examples": len(samples),
        "questions": len(questions),
        "baselines": baselines(samples) if known is None else dict(known),
        **_contamination(samples),
    }


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
            for k, templates in _worst_scores(samples).items()
        }
    return {
        k: {name: [_over(metric, group), len(group)] for name, group in templates.items()}
        for k, templates in _by_template(samples).items()
    }


def _over(metric: Metric, group: Sequence[Mapping[str, Any]]) -> float:
    return metric.over([sample["prediction"] for sample in group], [sample["references"] for sample in group])


def _by_template(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list]]:
    """Number of shots -> template -> samples."""
    groups: dict[str, dict[str, list]] = {}
    for sample in sorted(samples, key=lambda sample: (sample["shots"], sample["template"])):
        groups.setdefault(str(sample["shots"]), {}).setdefault(sample["template"], []).append(sample)
    return groups


def question_scores(samples: Sequence[Mapping[str, Any]]) -> Questions:
    """Number of shots -> template -> (seed, example) -> score, of one task.

    Several samples of one question count as one example, with the score of the worst. For a metric over the task it is
    the jackknife's pseudo-value of the question, whose mean is the score and whose spread is that of the score.
    """
    metric = Metric.parse(samples[0]["metric"])
    if not metric.over_task:
        return _worst_scores(samples)
    return {
        k: {name: _pseudo_values(metric, group) for name, group in templates.items()}
        for k, templates in _by_template(samples).items()
    }


def _worst_scores(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict]]:
    by_shots: dict[str, dict[str, dict]] = {}
    for k, templates in _by_template(samples).items():
        by_shots[k] = {}
        for name, group in templates.items():
            scores = by_shots[k][name] = {}
            for sample in group:
                question = sample["seed"], sample["part_of"] or sample["example_id"]
                scores[question] = min(sample["score"], scores.get(question, math.inf))
    return by_shots


def _pseudo_values(metric: Metric, group: Sequence[Mapping[str, Any]]) -> dict[tuple, float]:
    """The jackknife's pseudo-values (Quenouille 1956), shifted so that their mean is the score."""
    count, score = len(group), _over(metric, group)
    names = [(sample["seed"], sample["example_id"]) for sample in group]
    if count == 1:
        return {names[0]: score}
    pairs = [(sample["prediction"], tuple(sample["references"])) for sample in group]

    @functools.cache  # equal answers have equal pseudo-values
    def without(pair: tuple) -> float:
        index = pairs.index(pair)
        return _over(metric, [*group[:index], *group[index + 1 :]])

    values = [count * score - (count - 1) * without(pair) for pair in pairs]
    shift = score - _mean(values)
    return {name: value + shift for name, value in zip(names, values)}


def build_trees(
    tasks: Mapping[str, dict], within: Callable[[dict], Any], leaf: Callable[[str, str], Tree | Cell]
) -> dict[Any, dict[str, Tree]]:
    """Trees to be averaged: category (or result of `within`) -> shots -> task or group -> benchmark -> sub-task ->
    leaf.

    Args:
      within: what a task's entry counts for: its category, or its (level, category).
      leaf: of a task's name and a number of shots.
    """
    trees: dict[Any, dict] = {}
    for name, task in tasks.items():
        for shots in task["shots"]:
            branch = trees
            for part in (within(task), shots, task["group"] or name, task["benchmark"]):
                branch = branch.setdefault(part, {})
            branch[name] = leaf(name, shots)
    return trees


def score_trees(tasks: Mapping[str, dict], within: Callable[[dict], Any]) -> dict[Any, dict[str, Tree]]:
    """`build_trees` with the tasks' scores."""
    return build_trees(tasks, within, lambda name, shots: tasks[name]["shots"][shots])


def mean_of_cells(tree: Tree, tasks: Mapping[str, dict]) -> float:
    """`mean` of a tree whose leaves are cells."""
    if not isinstance(tree, dict):
        name, shots = tree
        return tasks[name]["shots"][shots]
    return _mean(mean_of_cells(branch, tasks) for branch in tree.values())


def task_shares(tree: Tree) -> dict[str, dict[str, float]]:
    """Task -> number of shots -> its weight in the mean of a tree whose leaves are cells."""
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    for (task, shots), share in _leaves(tree, 1.0):
        shares[task][shots] = share
    return dict(shares)


def _leaves(tree: Tree | Cell, share: float) -> Iterator[tuple[Cell, float]]:
    if not isinstance(tree, dict):
        yield tree, share
        return
    for branch in tree.values():
        yield from _leaves(branch, share / len(tree))


def _cell(name: str, shots: str) -> Cell:
    return name, shots


def _column(task: Mapping[str, Any]) -> tuple:
    return task["level"], task["category"]


def averaged(tasks: Mapping[str, dict], leaf: Callable[[str, str], Tree | Cell], kind: str = "category") -> dict:
    """The tree of the paper's average: shots -> (level, category) -> as in `build_trees`.

    Tasks without a level count only if no task has one.

    Args:
      kind: "category", as in Table 4, or "benchmark", as in Table 5.
    """
    levelled = any(task["level"] for task in tasks.values())
    counted = {name: task for name, task in tasks.items() if task["level"] or not levelled}
    tree: dict[str, dict] = defaultdict(dict)
    for column, by_shots in build_trees(counted, lambda task: (task["level"], task[kind]), leaf).items():
        for shots, branch in by_shots.items():
            tree[shots][column] = branch
    return {shots: tree[shots] for shots in sorted(tree, key=int)}


def level_trees(tasks: Mapping[str, dict], leaf: Callable[[str, str], Tree | Cell]) -> dict[str, dict[str, Tree]]:
    """Level, hardest first -> category -> its tree; levels without tasks are left out."""
    trees = build_trees(tasks, _column, leaf)
    by_level = {level: {name: tree for (owner, name), tree in trees.items() if owner == level} for level in LEVELS}
    return {level: categories for level, categories in by_level.items() if categories}


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
    tree: Tree,
    tasks: Mapping[str, dict],
    questions: Mapping[str, TaskQuestions],
    bounds: tuple[float, float] = (0.0, 1.0),
) -> dict[str, Interval | int]:
    """The intervals of a mean over tasks.

    Args:
      tree: of cells.  bounds: of the scores.

    Returns:
      {"interval": over tasks, "questions_interval": of these tasks alone, "clusters": number of tasks, where sub-tasks
      of one task count once}
    """
    shares = task_shares(tree)
    weights, means = clusters(shares, tasks, questions)
    of_tasks = [(questions[name], by_shots) for name, by_shots in shares.items()]
    return {
        "interval": over_clusters(weights, means, sum(len(task) for task, _ in of_tasks), bounds),
        "questions_interval": over_questions(of_tasks, bounds),
        "clusters": len(weights),
    }


def _entry(
    trees: Callable[[Callable[[str, str], Any]], Tree],
    tasks: Mapping[str, dict],
    questions: Mapping[str, TaskQuestions],
) -> dict[str, Any]:
    """{"score", "interval", "questions_interval", "clusters", "majority", "floor", "tasks"} of a mean over tasks.

    Args:
      trees: leaf -> the tree, as `build_trees` makes it.
    """
    cells = trees(_cell)
    names = task_shares(cells)
    entry = {
        "score": mean(trees(lambda name, shots: tasks[name]["shots"][shots])),
        **uncertainty(cells, tasks, questions),
    }
    for field, value in (("majority", lambda baselines: baselines["majority"]), ("floor", floor)):
        values = {name: value(tasks[name]["baselines"]) for name in names}
        known = all(number is not None for number in values.values())
        entry[field] = mean(trees(lambda name, _, values=values: values.get(name))) if known else None
    return entry | {"tasks": len(names)}


def _entries(
    tasks: Mapping[str, dict], questions: Mapping[str, TaskQuestions], within: Callable[[dict], Any]
) -> dict[Any, dict]:
    """Category (or result of `within`) -> its entry, with its score at each number of shots ("shots")."""
    members: dict[Any, dict] = defaultdict(dict)
    for name, task in tasks.items():
        members[within(task)][name] = task
    entries = {}
    for column, group in members.items():
        entry = _entry(
            lambda leaf, column=column, group=group: build_trees(group, within, leaf)[column], group, questions
        )
        tree = score_trees(group, within)[column]
        entries[column] = entry | {"shots": {shots: mean(tree[shots]) for shots in sorted(tree, key=int)}}
    return entries


def _average(tasks: Mapping[str, dict], questions: Mapping[str, TaskQuestions], kind: str) -> dict[str, Any]:
    """Entry of the paper's average, with the average and the number of columns at each number of shots."""
    tree = averaged(tasks, lambda name, shots: tasks[name]["shots"][shots], kind)
    return _entry(lambda leaf: averaged(tasks, leaf, kind), tasks, questions) | {
        "shots": {shots: mean(columns) for shots, columns in tree.items()},
        "columns": {shots: len(columns) for shots, columns in tree.items()},
    }


def _level_entry(
    level: str, categories: Mapping[str, dict], tasks: Mapping[str, dict], questions: Mapping[str, TaskQuestions]
) -> dict[str, Any]:
    """Entry of a level: the mean of its categories, for each number of shots and combined."""
    by_shots = defaultdict(list)
    for entry in categories.values():
        for shots, score in entry["shots"].items():
            by_shots[shots].append(score)
    return _entry(lambda leaf: level_trees(tasks, leaf)[level], tasks, questions) | {
        "shots": {shots: _mean(by_shots[shots]) for shots in sorted(by_shots, key=int)},
        "categories": dict(categories),
    }


def by_task(samples: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Task -> its samples, sorted by name."""
    groups = defaultdict(list)
    for sample in samples:
        groups[sample["task"]].append(sample)
    return dict(sorted(groups.items()))


def scores(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of `aggregate` without intervals and baselines, which take longer to compute.

    Returns:
      {"tasks": {name: {"metric", "score", "shots", "templates", "level", "category", "benchmark", "group"}},
       "categories", "levels": {name: score}, "average", "benchmark_average", "level_average": scores, None if there is
       nothing to average}
    """
    tasks = {name: _task_scores(group) for name, group in by_task(samples).items()}

    def leaf(name: str, shots: str) -> float:
        return tasks[name]["shots"][shots]

    levels = {level: mean(tree) for level, tree in level_trees(tasks, leaf).items()}
    return {
        "tasks": tasks,
        "categories": {name: mean(tree) for name, tree in score_trees(tasks, lambda task: task["category"]).items()},
        "levels": levels,
        "average": mean(averaged(tasks, leaf)) if tasks else None,
        "benchmark_average": mean(averaged(tasks, leaf, "benchmark")) if tasks else None,
        "level_average": _mean(levels.values()) if levels else None,
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
          "category", "benchmark", "group", "baselines"}}, with "templates" as {shots: {template: [score, questions]}}.
          Where it is known which examples are contaminated, also their number ("contaminated") and the score of the
          others ("clean_score").
        "categories", "benchmarks": {name: ENTRY}; "levels": {name: ENTRY with "categories": {name: ENTRY}}.
        "averages": {"average", "benchmark_average": ENTRY with "columns", the number of columns averaged at each number
        of
          shots; "level_average": ENTRY without "shots"}; those that there are. "average": the score of the first.
      An ENTRY is {"score", "interval", "questions_interval", "clusters", "shots", "majority", "floor", "tasks"}:
      "shots" is {number of demonstrations, as a string: score} and "score" combines them; "interval" is [low, high] of
      95% over tasks, None with fewer than five clusters; "questions_interval" is that of these tasks alone; "floor" is
      the mean of the higher of each task's baselines, None if a task has too few questions for one.

    Raises:
      DataError: prompts of one task disagree on its metric, level, category, benchmark or group.
    """
    groups = by_task(samples)
    questions = {name: TaskQuestions(question_scores(group)) for name, group in groups.items()}
    tasks = {name: _task_entry(group, questions[name], known_baselines.get(name)) for name, group in groups.items()}
    by_column = _entries(tasks, questions, _column)
    levels = {
        level: _level_entry(level, {name: by_column[level, name] for name in tree}, tasks, questions)
        for level, tree in level_trees(tasks, _cell).items()
    }
    averages = {}
    if tasks:
        averages["average"] = _average(tasks, questions, "category")
        averages["benchmark_average"] = _average(tasks, questions, "benchmark")
    if levels:
        averages["level_average"] = _entry(lambda leaf: level_trees(tasks, leaf), tasks, questions)
    return {
        "tasks": tasks,
        "categories": _entries(tasks, questions, lambda task: task["category"]),
        "benchmarks": _entries(tasks, questions, lambda task: task["benchmark"]),
        "levels": levels,
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
