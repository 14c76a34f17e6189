"""Two evaluations of the same prompts, side by side: is the difference more than luck?

Prompts are paired by their ids. A task whose answers are right or wrong is tested by McNemar's exact test, on the
prompts that one run has right and the other wrong; any other (ROUGE-L, F1) by the paired bootstrap over its examples.
Categories and levels are tested by the bootstrap of `bootstrap.py`, clustered by task, on the difference of the scores
that the paper's aggregation gives; those of one task, as that task. Of many tests some are small by luck: p-values of
tasks, of categories and of levels are corrected by Holm's method (1979), each kind for itself.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from optiml_jax.common.errors import UserError
from optiml_jax.evaluation.metrics import TOGETHER, Metric
from optiml_jax.evaluation.scores.aggregation import level_trees, questions, score_trees, scores, weigh
from optiml_jax.evaluation.scores.bootstrap import Questions, Resampled, Shares, interval, replicates
from optiml_jax.evaluation.scores.samples import scored

REPLICATES = 10_000  # the smallest p-value that a bootstrap can give is 2 over it, and Holm multiplies that
SAME = ("prompt", "references", "candidates", "metric")  # what two samples of one id must agree on


class Paired(NamedTuple):
    """Samples of two runs that answer the same prompts, in the same order, and why others were left out."""

    first: list[Mapping[str, Any]]
    second: list[Mapping[str, Any]]
    left_out: list[str]


def pair(first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]]) -> Paired:
    """Pairs scored samples by id.

    Raises:
      UserError: no prompt is in both.
    """
    ours, theirs = ({sample["id"]: sample for sample in scored(samples)} for samples in (first, second))
    both = [name for name in ours if name in theirs]
    differ = defaultdict(list)
    for name in both:
        for field in SAME:
            if ours[name][field] != theirs[name][field]:
                differ[field].append(name)
                break
    gone = {name for names in differ.values() for name in names}
    left_out = [f"{len(names):,} prompts differ in {field}: {', '.join(names[:3])}" for field, names in differ.items()]
    for which, alone in (("first", len(ours) - len(both)), ("second", len(theirs) - len(both))):
        left_out += [f"{alone:,} prompts were asked in the {which} run alone"] * bool(alone)
    kept = [name for name in both if name not in gone]
    if not kept:
        raise UserError("the two runs have no prompt in common" + "".join(f"; {text}" for text in left_out))
    return Paired([ours[name] for name in kept], [theirs[name] for name in kept], left_out)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    Args:
      only_first, only_second: prompts that this run alone has right.
    """
    discordant = only_first + only_second
    return float(stats.binomtest(only_second, discordant, 0.5).pvalue) if discordant else 1.0


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p-value of "no difference", from replicates of the difference: how far in their tails zero lies."""
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
    """The comparison of paired samples, as the JSON of `tools.compare_runs`.

    Returns:
      {"tasks", "categories", "levels": {name: {"first", "second", "difference", "interval", "test", "p", "p_holm"}},
       "prompts", "changed", "left_out"}; the difference is second - first, in fractions, and its interval holds 95%.
      Tasks also have their metric, how many prompts there are and how many questions one run alone has right
      ("only_first", "only_second"); categories and levels, how many tasks.
    """
    before, after = scores(paired.first), scores(paired.second)
    samples: dict[str, tuple[list, list]] = {name: ([], []) for name in before["tasks"]}
    for side, of_side in enumerate((paired.first, paired.second)):
        for sample in of_side:
            samples[sample["task"]][side].append(sample)
    tasks, resampled = {}, {}
    for name, (ones, others) in samples.items():
        ours, theirs = questions(ones), questions(others)
        resampled[name] = _resample(name, ours, theirs)
        tasks[name] = _sides(before["tasks"][name]["score"], after["tasks"][name]["score"])
        tasks[name] |= _task(resampled[name], Metric.parse(ones[0]["metric"]), len(ones), _pairs(ours, theirs))
    found: dict[str, Any] = {"tasks": tasks}
    trees = {"categories": score_trees(before["tasks"], lambda task: task["category"])}
    trees |= {"levels": level_trees(before["tasks"])}
    for kind, of_kind in trees.items():
        found[kind] = {
            name: _sides(before[kind][name], after[kind][name]) | _together(weigh(tree, resampled), tasks)
            for name, tree in of_kind.items()
        }
    for entries in found.values():
        for entry, p in zip(entries.values(), holm([entry["p"] for entry in entries.values()])):
            entry["p_holm"] = p
    changed = sum(one["score"] != other["score"] for one, other in zip(paired.first, paired.second))
    return found | {"prompts": len(paired.first), "changed": changed, "left_out": paired.left_out}


def _sides(before: float, after: float) -> dict[str, float]:
    return {"first": before, "second": after, "difference": after - before}


def _resample(name: str, ours: Questions, theirs: Questions) -> Resampled:
    """The difference of a task's scores, of many draws of its examples."""
    differences = {
        k: {
            template: {asked: theirs[k][template][asked] - score for asked, score in of_template.items()}
            for template, of_template in of_shots.items()
        }
        for k, of_shots in ours.items()
    }
    return Resampled(name, differences, REPLICATES)


def _pairs(ours: Questions, theirs: Questions) -> list[tuple[float, float]]:
    """The two scores of each question."""
    return [
        (score, theirs[k][template][asked])
        for k, of_shots in ours.items()
        for template, of_template in of_shots.items()
        for asked, score in of_template.items()
    ]


def _task(resampled: Resampled, metric: Metric, prompts: int, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The test of one task."""
    values = replicates([(resampled, dict.fromkeys(resampled.shots, 1.0))])
    found = {
        "metric": str(metric),
        "prompts": prompts,
        "only_first": sum(a == 1.0 > b for a, b in pairs),
        "only_second": sum(b == 1.0 > a for a, b in pairs),
        "interval": None if metric.name in TOGETHER else interval(values),
    }
    if all(score in (0.0, 1.0) for pair in pairs for score in pair):
        return found | {"test": "mcnemar", "p": mcnemar(found["only_first"], found["only_second"])}
    return found | {"test": "bootstrap", "p": bootstrap_p(values)}


def _together(weighed: Sequence[tuple[Resampled, Shares]], tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The test of several tasks."""
    if len(weighed) == 1:
        ((alone, _),) = weighed
        return {"tasks": 1} | {key: tasks[alone.name][key] for key in ("interval", "test", "p")}
    values = replicates(weighed)
    return {"tasks": len(weighed), "interval": interval(values), "test": "bootstrap", "p": bootstrap_p(values)}
