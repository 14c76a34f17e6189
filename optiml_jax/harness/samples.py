"""Reads samples that lm-evaluation-harness wrote with --log_samples, in the format of our own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import DataError, UserError

BINARY = ("acc", "acc_norm", "exact_match")  # metrics whose mean is an accuracy


def files_of(path: Path) -> dict[str, Path]:
    """The newest samples file of each task, in an output folder of the harness or in its subfolders."""
    files: dict[str, Path] = {}
    for file in sorted([*path.glob("samples_*.jsonl"), *path.glob("*/samples_*.jsonl")], key=lambda file: file.name):
        task, _, _ = file.stem.removeprefix("samples_").rpartition("_")  # samples_<task>_<time>, times sort as texts
        files[task] = file
    return files


def read(path: Path, metric: str | None = None) -> list[dict[str, Any]]:
    """Reads the samples of a folder, in the format of `evaluation.scores.samples.score_sample`; they have no level.

    Args:
      metric: which of a task's metrics is the score, such as "acc_norm"; None: the first that is a number.

    Raises:
      DataError: a line was not written by the harness.
      UserError: no task has `metric`.
    """
    samples = []
    for task, file in files_of(path).items():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                sample = _sample(task, json.loads(line), metric)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise DataError(f"{file}:{number}: not a line of lm-evaluation-harness ({error!r})") from None
            if sample is not None:
                samples.append(sample)
    if not samples:
        raise UserError(f"{path}: no sample has the metric {metric}")
    return samples


def _sample(task: str, line: Mapping[str, Any], metric: str | None) -> dict[str, Any] | None:
    names = [name for name in line["metrics"] if isinstance(line.get(name), int | float)]
    name = metric if metric is not None else names[0] if names else None
    if name not in names:
        return None
    score, requests = float(line[name]), [_listed(arguments) for arguments in _listed(line["arguments"])]
    prompt = str(requests[0][0])
    ranked = len(requests) > 1
    candidates = [str(words[1]) for words in requests] if ranked else None
    answers = [_first(answer) for answer in _listed(line["filtered_resps"])]
    scores = list(map(float, answers)) if ranked else None
    prediction = candidates[scores.index(max(scores))] if ranked else str(answers[0])
    filtered = line.get("filter", "none")
    return {
        "id": f"{task}/{filtered}/{line['doc_id']}",
        "benchmark": "lm-eval",
        "task": task,
        "template": filtered,
        "example_id": str(line["doc_id"]),
        "shots": 0,
        "seed": 0,
        "category": task,
        "level": None,
        "group": None,
        "part_of": None,
        "contaminated": None,
        "prompt": prompt,
        "candidates": candidates,
        "references": [str(line["target"])],
        "prediction": prediction,
        "scores": scores,
        "metric": {"name": "accuracy" if name in BINARY else "rouge_l"},
        "score": score,
        "correct": score == 1.0,
    }


def _listed(value: Any) -> Sequence[Any]:
    """Returns a list, also from the form {"gen_args_0": ..., "gen_args_1": ...} that the harness writes to files."""
    return list(value.values()) if isinstance(value, Mapping) else value


def _first(answer: Any) -> Any:
    """The answer itself, or the log-likelihood of [log-likelihood, greedy]."""
    while isinstance(answer, list | tuple):
        answer = answer[0]
    return answer
