"""Scores of one task: samples -> (questions of several samples) -> templates -> numbers of shots (paper section 4.1).

Every step is an unweighted mean, except that a question with several samples has the score of its worst, and that the
templates of a pooled task weigh as much as they have questions, so that its score is the mean over its prompts.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optiml_jax.common.errors import DataError
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import TASK_FIELDS

Questions = Mapping[str, Mapping[str, Mapping[tuple, float]]]  # shots -> template -> (seed, example) -> score


def mean(values: Iterable[float]) -> float:
    """Unweighted mean, with the same bits in any order."""
    values = list(values)
    return math.fsum(values) / len(values)


def by_task(samples: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Task -> its samples, sorted by name."""
    groups = defaultdict(list)
    for sample in samples:
        groups[sample["task"]].append(sample)
    return dict(sorted(groups.items()))


def task_scores(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Description and scores of one task: means over the examples of a template, templates, numbers of shots."""
    fields, templates = _task_fields(samples), _templates(samples)
    shots = _shots(templates, fields["pooled"])
    return {
        "metric": str(Metric.parse(fields["metric"])),
        **{field: fields[field] for field in ("level", "category", "benchmark", "group", "pooled")},
        "score": mean(shots.values()),
        "shots": shots,
        "templates": templates,
    }


def _task_fields(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields that all samples of a task share. A single ledger was checked when it was read; several were not."""
    for field in TASK_FIELDS:
        if any(sample[field] != samples[0][field] for sample in samples):
            values = sorted({str(sample[field]) for sample in samples})
            raise DataError(f"task {samples[0]['task']}: its prompts disagree on {field}: {values}")
    return {field: samples[0][field] for field in TASK_FIELDS}


def contamination(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Number of contaminated samples and the score of the others, where contamination is known."""
    if samples[0]["contaminated"] is None:
        return {}
    clean = [sample for sample in samples if sample["contaminated"] is False]
    score = mean(_shots(_templates(clean), samples[0]["pooled"]).values()) if clean else None
    return {"contaminated": len(samples) - len(clean), "clean_score": score}


def template_weights(questions: Mapping[str, int], pooled: bool) -> dict[str, float]:
    """The weight of each template in the score of a task, with the sum 1.

    Args:
      questions: template -> number of its questions.
    """
    total = sum(questions.values())
    return {name: count / total if pooled else 1 / len(questions) for name, count in questions.items()}


def _shots(templates: Mapping[str, Mapping[str, list]], pooled: bool) -> dict[str, float]:
    """Number of shots -> mean over its templates."""
    if not pooled:
        return {k: mean(score for score, _ in by_name.values()) for k, by_name in templates.items()}
    result = {}
    for k, by_name in templates.items():
        weights = template_weights({name: count for name, (_, count) in by_name.items()}, pooled)
        result[k] = math.fsum(weights[name] * score for name, (score, _) in by_name.items())
    return result


def _templates(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list]]:
    """Number of shots -> template -> [score, number of questions]."""
    metric = Metric.parse(samples[0]["metric"])
    if not metric.over_task:
        return {
            k: {name: [mean(by_question.values()), len(by_question)] for name, by_question in templates.items()}
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
    shift = score - mean(values)
    return {name: value + shift for name, value in zip(names, values)}
