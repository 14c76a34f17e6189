"""What no model is needed for: the best constant answer and the random choice, the floor under every score."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optiml_jax.evaluation.metrics import TOGETHER, Metric

CONSTANTS = 20  # most frequent references tried; for equality metrics the first already is the best


def majority(metric: Metric, references: Sequence[Sequence[str]]) -> float:
    """Mean score of the best constant answer among the 20 most frequent references of the evaluated prompts.

    It sees the answers it is scored on, so it is a little harder to beat than the majority class of the training data.

    Args:
      references: the references of each prompt.
    """
    answers = Counter(text for texts in references for text in dict.fromkeys(texts))
    # Equal sets of references need one scoring: classification tasks have a handful of them.
    prompts = Counter(map(tuple, references))
    if metric.name in TOGETHER:
        return max(metric.over([answer] * len(references), references) for answer, _ in answers.most_common(CONSTANTS))
    return max(
        sum(metric(answer, texts) * count for texts, count in prompts.items()) / len(references)
        for answer, _ in answers.most_common(CONSTANTS)
    )


def random_choice(
    metric: Metric, candidates: Iterable[Sequence[str] | None], references: Iterable[Sequence[str]]
) -> float | None:
    """Expected score of a uniformly random candidate (1 / candidates where one is right); None if a prompt has none, or
    where predictions are scored together."""
    if metric.name in TOGETHER:
        return None
    expected = []
    for choices, texts in zip(candidates, references, strict=True):
        if choices is None:
            return None
        expected.append(sum(metric(choice, texts) for choice in choices) / len(choices))
    return sum(expected) / len(expected)


def baselines(samples: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """{"majority", "random"} of the samples of one task, fractions in [0, 1]; "random" is None without candidates.

    Where a question is right when all its samples are (MultiRC), the constant answer is the candidate at one place:
    the texts differ from sample to sample.
    """
    metric, references = Metric.parse(samples[0]["metric"]), [sample["references"] for sample in samples]
    if samples[0]["part_of"] is not None and samples[0]["candidates"]:
        return _of_questions(metric, samples)
    return {
        "majority": majority(metric, references),
        "random": random_choice(metric, [sample["candidates"] for sample in samples], references),
    }


def floor(baselines: Mapping[str, float | None]) -> float:
    """The higher of the two: where each prompt has candidates of its own (COPA), a constant answer is hardly ever
    right, and chance is what there is to beat."""
    return max(known for known in baselines.values() if known is not None)


def _of_questions(metric: Metric, samples: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    questions: dict[Any, list[list[float]]] = {}  # of each of a question's samples, the scores of its candidates
    for sample in samples:
        key = sample["shots"], sample["seed"], sample["template"], sample["part_of"]
        scores = [metric(choice, sample["references"]) for choice in sample["candidates"]]
        questions.setdefault(key, []).append(scores)
    places = range(min(len(sample["candidates"]) for sample in samples))
    constant = (sum(all(scores[place] for scores in of) for of in questions.values()) for place in places)
    chance = (math.prod(sum(scores) / len(scores) for scores in of) for of in questions.values())
    return {"majority": max(constant) / len(questions), "random": sum(chance) / len(questions)}
