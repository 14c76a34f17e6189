"""Baselines: the best constant answer and uniform random choice.

They are computed on all prompts of a task's ledger, however many of them are evaluated.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import Prompt

MIN_QUESTIONS = 10  # of a task with a majority baseline: chosen on two, the best constant answer is right on both
CONSTANTS = 20  # most frequent references tried; for equality metrics the first is the best


def ledger_baselines(prompts: Iterable[Prompt]) -> dict[str, dict[str, float | None]]:
    """Baselines of each task of a ledger, by name."""
    by_task = defaultdict(list)
    for prompt in prompts:
        fields = {name: getattr(prompt, name) for name in ("shots", "seed", "template", "part_of", "example_id")}
        fields |= {"candidates": prompt.candidates, "references": prompt.references}
        by_task[prompt.task].append(fields | {"metric": prompt.metric.to_json()})
    return {task: baselines(samples) for task, samples in by_task.items()}


def majority(metric: Metric, references: Sequence[Sequence[str]]) -> float:
    """Mean score of the best constant answer among the 20 most frequent references of the evaluated prompts.

    It is chosen on the prompts it is scored on, so it is slightly stronger than the majority class of the training
    data.

    Args:
      references: the references of each prompt.
    """
    answers = Counter(text for texts in references for text in dict.fromkeys(texts))
    # Prompts with equal references are scored once; classification tasks have few different ones.
    prompts = Counter(map(tuple, references))
    if metric.over_task:
        return max(metric.over([answer] * len(references), references) for answer, _ in answers.most_common(CONSTANTS))
    return max(
        sum(metric(answer, texts) * count for texts, count in prompts.items()) / len(references)
        for answer, _ in answers.most_common(CONSTANTS)
    )


def random_choice(
    metric: Metric, candidates: Iterable[Sequence[str] | None], references: Iterable[Sequence[str]]
) -> float | None:
    """Expected score of a uniformly random candidate (1 / candidates if one is correct); None if a prompt has no
    candidates, or for a metric over the task."""
    if metric.over_task:
        return None
    expected = []
    for choices, texts in zip(candidates, references, strict=True):
        if choices is None:
            return None
        expected.append(sum(metric(choice, texts) for choice in choices) / len(choices))
    return sum(expected) / len(expected)


def baselines(samples: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """{"majority", "random"} for the samples of one task, fractions in [0, 1]; "random" is None without candidates,
    "majority" with fewer than `MIN_QUESTIONS` questions.

    Where several samples make up a question (MultiRC), the constant answer is the candidate at a fixed position,
    because the texts differ between samples.
    """
    metric, references = Metric.parse(samples[0]["metric"]), [sample["references"] for sample in samples]
    enough = len({sample["part_of"] or sample["example_id"] for sample in samples}) >= MIN_QUESTIONS
    if samples[0]["part_of"] is not None and samples[0]["candidates"]:
        by_question = _question_baselines(metric, samples)
        return by_question | ({} if enough else {"majority": None})
    return {
        "majority": majority(metric, references) if enough else None,
        "random": random_choice(metric, [sample["candidates"] for sample in samples], references),
    }


def floor(baselines: Mapping[str, float | None]) -> float | None:
    """The higher of the two baselines, or the one that there is. Where each prompt has candidates of its own (COPA),
    constant answers are rarely correct, and random choice is the baseline to beat."""
    return max((value for value in baselines.values() if value is not None), default=None)


def _question_baselines(metric: Metric, samples: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    questions: dict[Any, list[list[float]]] = {}  # for each sample of a question, the scores of its candidates
    for sample in samples:
        key = sample["shots"], sample["seed"], sample["template"], sample["part_of"]
        scores = [metric(choice, sample["references"]) for choice in sample["candidates"]]
        questions.setdefault(key, []).append(scores)
    positions = range(min(len(sample["candidates"]) for sample in samples))
    constant = (
        sum(all(scores[position] for scores in parts) for parts in questions.values()) for position in positions
    )
    chance = (math.prod(sum(scores) / len(scores) for scores in parts) for parts in questions.values())
    return {"majority": max(constant) / len(questions), "random": sum(chance) / len(questions)}
