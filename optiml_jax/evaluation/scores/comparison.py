"""Paired comparison of two evaluations of the same prompts.

Prompts are paired by id. The unit of a test is the question, with all its wordings and numbers of shots: `significance`
tosses a coin for each question of a task, or for each task of a category, level or average. P-values are corrected for
multiple tests by Holm's method, separately for tasks, categories, levels and averages. A mean over fewer than five
tasks is not tested, because these tasks say too little about others.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.scores import aggregation, trees
from optiml_jax.evaluation.scores.intervals import (
    MIN_CLUSTERS,
    UNBOUNDED,
    TaskQuestions,
    over_clusters,
)
from optiml_jax.evaluation.scores.samples import scored
from optiml_jax.evaluation.scores.significance import holm, sign_flip, swap
from optiml_jax.evaluation.scores.task_scores import Questions, by_task, question_scores, template_weights

# Fields that must be equal in paired samples.
MUST_AGREE = ("prompt", "references", "candidates", "metric", "pooled")
MUST_AGREE += ("task", "template", "example_id", "shots", "seed", "part_of")


class Paired(NamedTuple):
    """Samples of two runs for the same prompts, in the same order, and why others were left out."""

    first: list[Mapping[str, Any]]
    second: list[Mapping[str, Any]]
    left_out: list[str]


def pair(first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]]) -> Paired:
    """Pairs scored samples by id.

    Raises:
      UserError: the runs have no prompt in common.
    """
    ours, theirs = ({sample["id"]: sample for sample in scored(samples)} for samples in (first, second))
    both = [name for name in ours if name in theirs]
    differ = defaultdict(list)
    for name in both:
        for field in MUST_AGREE:
            if ours[name][field] != theirs[name][field]:
                differ[field].append(name)
                break
    unequal = {name for names in differ.values() for name in names}
    left_out = [f"{len(names):,} prompts differ in {field}: {', '.join(names[:3])}" for field, names in differ.items()]
    for run, count in (("first", len(ours) - len(both)), ("second", len(theirs) - len(both))):
        left_out += [f"{count:,} prompts are only in the {run} run"] * bool(count)
    common = [name for name in both if name not in unequal]
    if not common:
        raise UserError("the two runs have no prompt in common" + "".join(f"; {text}" for text in left_out))
    return Paired([ours[name] for name in common], [theirs[name] for name in common], left_out)


def compare(paired: Paired) -> dict[str, Any]:
    """Compares paired samples; returns the JSON of `tools.compare_runs`.

    Returns:
      {"tasks", "categories", "levels", "averages": {name: {"first", "second", "difference", "interval", "test", "p",
      "p_holm", "clusters"}}, "prompts", "changed", "left_out"}. The difference is second - first, in fractions, with an
      interval of 95%; "clusters" are the questions of a task, and the tasks of the others, which also have the interval
      over the questions of these tasks alone ("questions_interval"). "p" and "interval" are None with fewer than five
      tasks, "interval" also with fewer than five questions.
      Tasks also have their metric, whether a higher score is better, the number of prompts, and the number of questions
      that only one run answers correctly in every wording ("only_first", "only_second").
    """
    before, after = aggregation.scores(paired.first), aggregation.scores(paired.second)
    first, second = by_task(paired.first), by_task(paired.second)
    tasks, questions = {}, {}
    for name in before["tasks"]:
        sides = question_scores(first[name]), question_scores(second[name])
        questions[name] = TaskQuestions(_differences(*sides), first[name][0]["pooled"])
        tasks[name] = _sides(before["tasks"][name]["score"], after["tasks"][name]["score"])
        tasks[name] |= _test_task(name, first[name], second[name], questions[name])
    definitions = {name: Metric.parse(group[0]["metric"]).definition for name, group in first.items()}
    averaged = {name: before["tasks"][name] for name, facts in definitions.items() if facts.bounds == (0.0, 1.0)}
    comparison: dict[str, Any] = {"tasks": tasks}
    for kind, by_name in _trees(before["tasks"], averaged).items():
        comparison[kind] = {
            name: _sides(*(trees.mean(tree, aggregation.score_of(run["tasks"])) for run in (before, after)))
            | _test_mean(tree, before["tasks"], questions)
            for name, tree in by_name.items()
        }
    for entries in comparison.values():
        tested = [entry for entry in entries.values() if entry["p"] is not None]
        for entry in entries.values():
            entry["p_holm"] = None
        for entry, p in zip(tested, holm([entry["p"] for entry in tested])):
            entry["p_holm"] = p
    changed = sum(ours["score"] != theirs["score"] for ours, theirs in zip(paired.first, paired.second))
    return comparison | {"prompts": len(paired.first), "changed": changed, "left_out": paired.left_out}


def _trees(tasks: Mapping[str, dict], averaged: Mapping[str, dict]) -> dict[str, dict[str, trees.Tree]]:
    """Kind -> name -> tree of the tasks that its score averages.

    Args:
      averaged: tasks that count in averages; a perplexity and an accuracy have none.
    """
    categories = trees.build(tasks, lambda task: task["category"])
    return {"categories": categories, "levels": trees.by_level(averaged), "averages": trees.averages(averaged)}


def _sides(before: float, after: float) -> dict[str, float]:
    return {"first": before, "second": after, "difference": after - before}


def _differences(first: Questions, second: Questions) -> Questions:
    """The difference of the scores of each question."""
    return {
        k: {
            template: {question: second[k][template][question] - score for question, score in by_question.items()}
            for template, by_question in templates.items()
        }
        for k, templates in first.items()
    }


def _test_task(
    name: str,
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    questions: TaskQuestions,
) -> dict[str, Any]:
    """Tests the difference of a task."""
    metric = Metric.parse(first[0]["metric"])
    shares = dict.fromkeys(questions.shots, 1 / len(questions.shots))
    weights, differences = questions.clusters(shares)
    right = [_right_questions(side) for side in (first, second)]
    entry = {
        "metric": str(metric),
        "higher_is_better": metric.definition.higher_is_better,
        "prompts": len(first),
        "clusters": len(questions),
        "only_first": len(right[0] - right[1]),
        "only_second": len(right[1] - right[0]),
        "interval": _interval(weights, differences, metric.definition.binary),
    }
    if metric.over_task:
        return entry | {"test": "permutation", "p": _swap(name, first, second)}
    single = metric.definition.binary and questions.prompts == len(questions)
    return entry | {"test": "mcnemar" if single else "sign flip", "p": sign_flip(weights * differences)}


def _interval(weights: np.ndarray, differences: np.ndarray, binary: bool) -> list[float] | None:
    """The interval of the mean difference. For answers that are right or wrong, with one imagined question that only
    the first and one that only the second run answers (Bonett and Price 2012): equal answers are not certainly
    equal."""
    if not binary or len(weights) < MIN_CLUSTERS:
        return over_clusters(weights, differences, len(weights), UNBOUNDED)
    more = np.append(weights, [1 / len(weights)] * 2)
    return over_clusters(more / more.sum(), np.append(differences, [1.0, -1.0]), len(more), (-1.0, 1.0))


def _right_questions(samples: Iterable[Mapping[str, Any]]) -> set[str]:
    """The questions whose every prompt is answered correctly."""
    correct: dict[str, bool] = {}
    for sample in samples:
        question = sample["part_of"] or sample["example_id"]
        correct[question] = correct.get(question, True) and sample["score"] == 1.0
    return {question for question, is_correct in correct.items() if is_correct}


def _swap(name: str, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> float:
    """The p-value of a metric over the task: it is computed again for each draw of swapped answers."""
    index = {question: i for i, question in enumerate(sorted({sample["example_id"] for sample in first}))}
    metric = Metric.parse(first[0]["metric"])
    by_shots: dict[int, dict[str, list[tuple]]] = defaultdict(lambda: defaultdict(list))
    for ours, theirs in zip(first, second):
        pair = ours["prediction"], theirs["prediction"], ours["references"], index[ours["example_id"]]
        by_shots[ours["shots"]][ours["template"]].append(pair)

    def difference(swapped: np.ndarray) -> float:
        means = []
        for templates in by_shots.values():
            sizes = {name: len(group) for name, group in templates.items()}
            weights, mean = template_weights(sizes, first[0]["pooled"]), 0.0
            for template, group in templates.items():
                references = [accepted for _, _, accepted, _ in group]
                ours = [b if swapped[i] else a for a, b, _, i in group]
                theirs = [a if swapped[i] else b for a, b, _, i in group]
                mean += weights[template] * (metric.over(theirs, references) - metric.over(ours, references))
            means.append(mean)
        return float(np.mean(means))

    return swap(name, len(index), difference)


def _test_mean(tree: trees.Tree, tasks: Mapping[str, dict], questions: Mapping[str, TaskQuestions]) -> dict[str, Any]:
    """Tests the difference of a mean over tasks."""
    shares = trees.task_shares(tree)
    weights, differences = aggregation.clusters(shares, tasks, questions)
    entry = {"tasks": len(shares), **aggregation.uncertainty(tree, tasks, questions, UNBOUNDED)}
    if len(weights) < MIN_CLUSTERS:
        return entry | {"test": None, "p": None}
    return entry | {"test": "sign flip", "p": sign_flip(weights * differences)}
