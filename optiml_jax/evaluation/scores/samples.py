"""Scored samples: prompt, answer and score, each a line of samples.jsonl."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from optiml_jax.common import typed_json
from optiml_jax.common.errors import DataError, UserError
from optiml_jax.common.files import write_atomically
from optiml_jax.common.typed_json import Count
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import LEVELS, TASK_FIELDS, Prompt

AGAIN = "evaluate again with this version"
BLIND = "rouge_l only sees ASCII letters and digits, and no reference has any: the score is 0 even if equal"


class Sample(TypedDict):
    """A line of samples.jsonl: what its readers use of what `score_sample` writes."""

    id: str
    benchmark: str
    task: str
    template: str
    example_id: str
    shots: Count
    demonstrations: Count
    seed: Count
    category: str
    level: Literal[*LEVELS] | None
    group: str | None
    part_of: str | None
    contaminated: bool | None
    pooled: NotRequired[bool]
    prompt: str
    candidates: list[str] | None
    references: list[str]
    prediction: str | None
    scores: list[float] | None
    token_scores: list[list[tuple[str, float]]] | None
    metric: str | dict[str, Any]
    score: float | None
    correct: bool
    truncated: bool
    prompt_cut: bool
    remark: str | None


def score_sample(
    prompt: Prompt,
    prediction: str | None,
    *,
    scores: Sequence[float] | None = None,
    token_scores: Sequence[Sequence[tuple[str, float]]] | None = None,
    truncated: bool = False,
    prompt_cut: bool = False,
    dropped: int = 0,
    remark: str | None = None,
) -> dict[str, Any]:
    """Scores an answer; returns a line of samples.jsonl.

    Args:
      prediction: the best candidate, or the generated text without the separator; None if the prompt could not be
        answered, which gives no score.
      scores: what candidates were ranked by, in the order of `prompt.candidates`; None for generation.
      token_scores: for each candidate, its tokens and their log-probabilities, to four decimals.
      truncated: whether generation reached the token limit before `</s>`.
      prompt_cut: whether the prompt was too long and lost its start.
      dropped: number of demonstrations dropped because the prompt was too long.
      remark: a problem of the prompt.

    Raises:
      UserError: a score is NaN or infinite, and cannot be ranked.
    """
    if scores is not None and not all(map(math.isfinite, scores)):
        raise UserError(
            f"prompt {prompt.id}: candidate scores {list(map(float, scores))} cannot be ranked; NaN in the weights?"
        )
    score = None if prediction is None else prompt.metric(prediction, prompt.references)
    if score == 0 and remark is None and not prompt.metric.sees(prompt.references):
        remark = BLIND
    return {
        "id": prompt.id,
        "benchmark": prompt.benchmark,
        "task": prompt.task,
        "template": prompt.template,
        "example_id": prompt.example_id,
        "shots": prompt.shots,
        "demonstrations": len(prompt.demonstration_ids) - dropped,
        "seed": prompt.seed,
        "category": prompt.category,
        "level": prompt.level,
        "group": prompt.group,
        "part_of": prompt.part_of,
        "contaminated": prompt.contaminated,
        "pooled": prompt.pooled,
        "prompt": prompt.without(dropped),
        "candidates": None if prompt.candidates is None else list(prompt.candidates),
        "references": list(prompt.references),
        "prediction": prediction,
        "scores": None if scores is None else [float(score) for score in scores],
        "token_scores": token_scores,
        "metric": prompt.metric.to_json(),
        "score": score,
        "correct": score == 1.0,
        "truncated": truncated,
        "prompt_cut": prompt_cut,
        "remark": remark,
    }


def scored(samples: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The samples that have a score."""
    return [sample for sample in samples if sample["score"] is not None]


def find_samples(source: str | Path) -> Path:
    """Finds the samples.jsonl of an OUTPUT_DIR, or of a MODEL_DIR with a single evaluation; or `source` itself.

    Raises:
      UserError: there is none, or several to choose from.
    """
    path = Path(source)
    for file in (path, path / "samples.jsonl"):
        if file.is_file():
            return file
    evaluations = sorted({*path.glob("evaluation/samples.jsonl"), *path.glob("evaluation/*/samples.jsonl")})
    if len(evaluations) > 1:
        choices = ", ".join(str(file.parent) for file in evaluations)
        raise UserError(f"{source}: has several evaluations; choose one of {choices}")
    if evaluations:
        return evaluations[0]
    raise UserError(f"{source}: has no samples.jsonl; give the OUTPUT_DIR of a finished evaluation")


def read_samples(path: str | Path) -> list[Sample]:
    """Reads the lines of a samples.jsonl.

    Raises:
      DataError: the file cannot be read or has no sample; a line is not a sample, or is there twice; or samples of one
        task disagree about the task. The message names the line.
    """
    lines: dict[str, int] = {}
    first: dict[str, Sample] = {}
    samples = []
    for number, sample in typed_json.read_lines(path, Sample, AGAIN):
        sample.setdefault("pooled", False)  # as scores were before there was a choice
        if problem := _problem(sample, lines, first.setdefault(sample["task"], sample)):
            raise DataError(f"{path}:{number}: {problem}; {AGAIN}")
        lines[sample["id"]] = number
        samples.append(sample)
    if not samples:
        raise DataError(f"{path}: has no sample; {AGAIN}")
    return samples


def _problem(sample: Sample, lines: Mapping[str, int], first: Sample) -> str | None:
    """Describes what is wrong with a sample whose fields have the right types; returns None if nothing is.

    Args:
      lines: line of each sample before it, by id.
      first: the first sample of its task.
    """
    if sample["id"] in lines:
        return f"sample {sample['id']} is already in line {lines[sample['id']]}"
    for field in TASK_FIELDS:
        if sample[field] != first[field]:
            return f"task {sample['task']} has {field} {sample[field]} here and {first[field]} in an earlier line"
    try:
        low, high = Metric.parse(sample["metric"]).definition.bounds
    except UserError as error:
        return str(error)
    score = sample["score"]
    if score is not None and not low <= score <= high:
        return f"score {score} is not between {low:g} and {high:g}"
    if score is not None and sample["prediction"] is None:
        return "a score without a prediction"
    if sample["scores"] is not None and len(sample["scores"]) != len(sample["candidates"] or ()):
        return f"{len(sample['scores'])} scores of {len(sample['candidates'] or ())} candidates"
    return None


def write_samples(path: str | Path, samples: Iterable[Mapping[str, Any]]) -> None:
    """Writes samples.jsonl, atomically."""
    write_atomically(path, "".join(json.dumps(sample) + "\n" for sample in samples))
