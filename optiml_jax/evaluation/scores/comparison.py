"""Paired comparison of two evaluations of the same prompts.

Prompts are paired by id. A task whose answers are correct or wrong is tested by McNemar's exact test, on the prompts
that only one run answers correctly; other tasks (ROUGE-L, F1) by the paired bootstrap over their examples. Categories
and levels are tested by the bootstrap of `bootstrap.py`, clustered by task, on the difference of aggregated scores; a
category of one task has that task's test. P-values are corrected for multiple tests by Holm's method (1979), separately
for tasks, categories and levels.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from optiml_jax.common.errors import UserError
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.scores.aggregation import (
    level_trees,
    question_scores,
    score_trees,
    scores,
    task_weights,
)
from optiml_jax.evaluation.scores.bootstrap import Questions, Resampled, Shares, interval, replicates
from optiml_jax.evaluation.scores.samples import scored

REPLICATES = 10_000  # the smallest bootstrap p-value is 2 divided by this, before Holm's correction
MUST_AGREE = ("prompt", "references", "candidates", "metric")  # fields that must be equal in paired samples


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


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    Args:
      only_first, only_second: number of prompts that only this run answers correctly.
    """
    discordant = only_first + only_second
    return float(stats.binomtest(only_second, discordant, 0.5).pvalue) if discordant else 1.0


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p-value of "no difference", from bootstrap replicates of the difference."""
    count = len(differences) + 1
    tails = (np.sum(differences <= 0) + 1) / count, (np.sum(differences >= 0) + 1) / count
    return float(min(1.0, 2 * min(tails)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values, in the order given."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def compare(paired: Paired) -> dict[str, Any]:
    """Compares paired samples; returns the JSON of `tools.compare_runs`.

    Returns:
      {"tasks", "categories", "levels": {name: {"first", "second", "difference", "interval", "test", "p", "p_holm"}},
       "prompts", "changed", "left_out"}; the difference is second - first, in fractions, with an interval of 95%.
      Tasks also have their metric, the number of prompts, and the number of questions that only one run answers
      correctly ("only_first", "only_second"); categories and levels have the number of tasks.
    """
    before, after = scores(paired.first), scores(paired.second)
    samples: dict[str, tuple[list, list]] = {name: ([], []) for name in before["tasks"]}
    for side, run in enumerate((paired.first, paired.second)):
        for sample in run:
            samples[sample["task"]][side].append(sample)
    tasks, resampled = {}, {}
    for name, (ours, theirs) in samples.items():
        first, second = question_scores(ours), question_scores(theirs)
        resampled[name] = _resample(name, first, second)
        tasks[name] = _sides(before["tasks"][name]["score"], after["tasks"][name]["score"])
        tasks[name] |= _test_task(resampled[name], Metric.parse(ours[0]["metric"]), len(ours), _pairs(first, second))
    comparison: dict[str, Any] = {"tasks": tasks}
    trees = {"categories": score_trees(before["tasks"], lambda task: task["category"])}
    trees |= {"levels": level_trees(before["tasks"])}
    for kind, by_name in trees.items():
        comparison[kind] = {
            name: _sides(before[kind][name], after[kind][name]) | _test_mean(task_weights(tree, resampled), tasks)
            for name, tree in by_name.items()
        }
    for entries in comparison.values():
        for entry, p in zip(entries.values(), holm([entry["p"] for entry in entries.values()])):
            entry["p_holm"] = p
    changed = sum(ours["score"] != theirs["score"] for ours, theirs in zip(paired.first, paired.second))
    return comparison | {"prompts": len(paired.first), "changed": changed, "left_out": paired.left_out}


def _sides(before: float, after: float) -> dict[str, float]:
    return {"first": before, "second": after, "difference": after - before}


def _resample(name: str, first: Questions, second: Questions) -> Resampled:
    """Bootstrap replicates of the difference of a task's scores."""
    differences = {
        k: {
            template: {question: second[k][template][question] - score for question, score in by_question.items()}
            for template, by_question in templates.items()
        }
        for k, templates in first.items()
    }
    return Resampled(name, differences, REPLICATES)


def _pairs(first: Questions, second: Questions) -> list[tuple[float, float]]:
    """The two scores of each question."""
    return [
        (score, second[k][template][question])
        for k, templates in first.items()
        for template, by_question in templates.items()
        for question, score in by_question.items()
    ]


def _test_task(
    resampled: Resampled, metric: Metric, prompts: int, pairs: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Tests the difference of one task."""
    values = replicates([(resampled, dict.fromkeys(resampled.shots, 1.0))])
    counts = {
        "metric": str(metric),
        "prompts": prompts,
        "only_first": sum(a == 1.0 > b for a, b in pairs),
        "only_second": sum(b == 1.0 > a for a, b in pairs),
        "interval": None if metric.over_task else interval(values),
    }
    if all(score in (0.0, 1.0) for pair in pairs for score in pair):
        return counts | {"test": "mcnemar", "p": mcnemar(counts["only_first"], counts["only_second"])}
    return counts | {"test": "bootstrap", "p": bootstrap_p(values)}


def _test_mean(weights: Sequence[tuple[Resampled, Shares]], tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Tests the difference of a weighted mean over tasks."""
    if len(weights) == 1:
        ((task, _),) = weights
        return {"tasks": 1} | {key: tasks[task.name][key] for key in ("interval", "test", "p")}
    values = replicates(weights)
    return {"tasks": len(weights), "interval": interval(values), "test": "bootstrap", "p": bootstrap_p(values)}
