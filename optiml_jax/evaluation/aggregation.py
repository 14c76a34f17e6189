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
from optiml_jax.evaluation.metrics import TOGETHER, Metric
from optiml_jax.files import write_atomically

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


def _task_entry(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One task of results.json: over the examples of a template, the templates, the numbers of shots."""
    known, templates = _of_task(samples), _templates(samples)
    shots = _shots(templates)
    return {
        "metric": str(Metric.parse(known["metric"])),
        **{field: known[field] for field in ("level", "category", "benchmark", "group")},
        "score": _mean(shots.values()),
        "shots": shots,
        "templates": templates,
        "examples": len(samples),
        "baselines": baselines(samples),
        **_contamination(samples),
    }


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
    metric, found = Metric.parse(samples[0]["metric"]), defaultdict(lambda: defaultdict(list))
    for sample in sorted(samples, key=lambda sample: (sample["shots"], sample["template"])):
        found[str(sample["shots"])][sample["template"]].append(sample)
    return {k: {name: _template(metric, of) for name, of in of_shots.items()} for k, of_shots in found.items()}


def _template(metric: Metric, samples: Sequence[Mapping[str, Any]]) -> list:
    """[score, how many questions] of the samples of a template."""
    if metric.name in TOGETHER:
        together = metric.over([s["prediction"] for s in samples], [s["references"] for s in samples])
        return [together, len(samples)]
    questions: dict[Any, float] = {}
    for sample in samples:
        asked = sample["id"] if sample["part_of"] is None else (sample["seed"], sample["part_of"])
        questions[asked] = min(sample["score"], questions.get(asked, math.inf))
    return [_mean(questions.values()), len(questions)]


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


def _entries(tasks: Mapping[str, dict], within: Callable[[dict], Any]) -> dict[Any, dict]:
    """Category (or what `within` says) -> {"score", "shots", "majority"}."""
    scores = grow(tasks, within, lambda task, shots: task["shots"][shots])
    floors = grow(tasks, within, lambda task, _: task["baselines"]["majority"])
    return {
        name: {
            "score": mean(tree),
            "shots": {shots: mean(tree[shots]) for shots in sorted(tree, key=int)},
            "majority": mean(floors[name]),
        }
        for name, tree in scores.items()
    }


def _level_entry(categories: Mapping[str, dict]) -> dict[str, Any]:
    """A level is the mean of its categories, at each number of shots and combined."""
    by_shots = defaultdict(list)
    for entry in categories.values():
        for shots, score in entry["shots"].items():
            by_shots[shots].append(score)
    return {
        "score": _mean(entry["score"] for entry in categories.values()),
        "shots": {shots: _mean(by_shots[shots]) for shots in sorted(by_shots, key=int)},
        "majority": _mean(entry["majority"] for entry in categories.values()),
        "categories": dict(categories),
    }


def aggregate(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of results.json.

    Args:
      samples: scored samples (`samples.score_sample`), in any order. Tasks of one "group" (57 subjects: "mmlu") are
        averaged within their benchmark, then the benchmarks, before the category; those of none stand alone.

    Returns:
      {"tasks": {name: {"metric", "score", "examples", "shots", "templates", "level", "category", "benchmark", "group",
       "baselines"}}, and where it is known which examples are contaminated, how many are ("contaminated") and the score
       of the others ("clean_score"); "templates" is {shots: {template: [score, questions]}},
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
    categories = _entries(tasks, lambda task: task["category"])
    for name, entry in categories.items():
        entry["tasks"] = sum(task["category"] == name for task in tasks.values())
    by_level = _entries(tasks, lambda task: (task["level"], task["category"]))
    inside = {level: {name: entry for (of, name), entry in by_level.items() if of == level} for level in LEVELS}
    levels = {level: _level_entry(entries) for level, entries in inside.items() if entries}
    average = _mean(entry["score"] for entry in levels.values()) if levels else None
    return {"tasks": tasks, "categories": categories, "levels": levels, "average": average}


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
      ranked_by: what candidates were ranked by (`ranked_by.RANKED_BY`).
    """
    about = {"weights": weights, "tokenizer": tokenizer, "bos": bos, "ranked_by": ranked_by}
    return about | {"code_version": code_version} | aggregate(samples)


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes results.json, atomically and with sorted keys: equal scores give equal bytes."""
    write_atomically(path, json.dumps(results, sort_keys=True, indent=2, allow_nan=False) + "\n")
