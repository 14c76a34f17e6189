"""Reads samples that lm-evaluation-harness wrote with --log_samples, in the format of our own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.common import typed_json
from optiml_jax.common.errors import DataError, UserError
from optiml_jax.evaluation.metrics import REPORTED

# Metrics of answers that are right or wrong.
BINARY = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
PROGRAM = "lm-evaluation-harness"


def folder_of(path: Path) -> Path | None:
    """The folder with the samples of one model: `path`, or its only subfolder with samples; None if there is none.

    Raises:
      UserError: it has the samples of several models.
    """
    folders = sorted({file.parent for file in (*path.glob("samples_*.jsonl"), *path.glob("*/samples_*.jsonl"))})
    if len(folders) > 1:
        raise UserError(f"{path}: has the samples of several models; choose one of {', '.join(map(str, folders))}")
    return folders[0] if folders else None


def read(folder: Path, metric: str | None = None) -> list[dict[str, Any]]:
    """Reads the newest samples of each task, in the format of `evaluation.scores.samples.score_sample`; they have no
    level.

    Args:
      metric: which of a task's metrics is the score, such as "acc_norm"; None: the first that is a number.

    Raises:
      DataError: a line was not written by the harness.
      UserError: no task has `metric`.
    """
    files: dict[str, Path] = {}
    for file in sorted(folder.glob("samples_*.jsonl")):
        task, _, _ = file.stem.removeprefix("samples_").rpartition("_")  # samples_<task>_<time>, times sort as texts
        files[task] = file
    facts = _facts(folder)
    samples = []
    for task, file in files.items():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                sample = _sample(task, typed_json.loads(line), metric, facts)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise DataError(f"{file}:{number}: not a line of {PROGRAM} ({error!r})") from None
            if sample is not None:
                samples.append(sample)
    if not samples:
        raise UserError(f"{folder}: no sample has the metric {metric}")
    return samples


def _facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads numbers of shots and directions of metrics from results_<time>.json, the newest for each task: {"n-shot":
    {task: number}, "higher_is_better": {task: {metric: bool}}}."""
    facts: dict[str, dict[str, Any]] = {"n-shot": {}, "higher_is_better": {}}
    for file in sorted(folder.glob("results_*.json")):
        try:
            results = typed_json.loads(file.read_text(encoding="utf-8"))
            for name, by_task in facts.items():
                by_task |= results.get(name) or {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{file}: not the results of {PROGRAM} ({error!r})") from None
    return facts


def _sample(
    task: str, line: Mapping[str, Any], metric: str | None, facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
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
    direction = (facts["higher_is_better"].get(task) or {}).get(name)
    reported = {"name": name, REPORTED: PROGRAM, "higher_is_better": direction is not False, "binary": name in BINARY}
    return {
        "id": f"{task}/{filtered}/{line['doc_id']}",
        "benchmark": "lm-eval",
        "task": task,
        "template": filtered,
        "example_id": str(line["doc_id"]),
        "shots": int(facts["n-shot"].get(task) or 0),
        "seed": 0,
        "category": task,
        "level": None,
        "group": None,
        "part_of": None,
        "contaminated": None,
        "pooled": False,
        "prompt": prompt,
        "candidates": candidates,
        "references": [str(line["target"])],
        "prediction": prediction,
        "scores": scores,
        "metric": reported,
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
