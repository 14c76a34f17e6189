"""Diagnostics of generated answers, independent of their score: outside the labels, empty, cut, repeated."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optiml_jax.evaluation.scores.samples import scored

MAX_LABELS = 20  # a task with more different references than this is free text,
PROMPTS_PER_LABEL = 5  # ... and so is one with fewer prompts per reference
GRAM, MIN_WORDS = 4, 12  # words per n-gram, and minimum words of an answer that is checked for repetition

CHECKS = ("outside", "empty", "cut", "repeated", "same")


def diagnose(samples: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Task -> {check: share of its generated answers that fail}, for tasks with generated answers.

    "outside": not one of the task's labels, None for free-text tasks; "empty"; "cut": reached the token limit;
    "repeated": more than half of its 4-grams repeat; "same": share of the most frequent answer. Ranked candidates are
    not checked.
    """
    generated = defaultdict(list)
    for sample in scored(samples):
        if sample["candidates"] is None:
            generated[sample["task"]].append(sample)
    return {task: _diagnose_task(group) for task, group in generated.items()}


def failed_checks(sample: Mapping[str, Any], labels: frozenset[str] | None) -> list[str]:
    """The checks that an answer fails; `labels` as `task_labels` returns them."""
    if sample["candidates"] is not None or sample["score"] is None:
        return []
    text = sample["prediction"].strip()
    failed = {
        "outside": bool(text) and labels is not None and _plain(text) not in labels,
        "empty": not text,
        "cut": bool(sample["truncated"]),
        "repeated": repeats_itself(text),
    }
    return [name for name, fails in failed.items() if fails]


def task_labels(samples: Sequence[Mapping[str, Any]]) -> frozenset[str] | None:
    """The labels of a task, if it has few references that recur; None for free text."""
    labels = frozenset(_plain(text) for sample in samples for text in sample["references"])
    return labels if len(labels) <= min(MAX_LABELS, len(samples) / PROMPTS_PER_LABEL) else None


def repeats_itself(text: str) -> bool:
    """Whether more than half of the text's 4-grams occurred before in it."""
    words = text.split()
    if len(words) < MIN_WORDS:
        return False
    runs = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return len(set(runs)) < len(runs) / 2


def _diagnose_task(samples: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    labels = task_labels(samples)
    failed = Counter(name for sample in samples for name in failed_checks(sample, labels))
    most = Counter(sample["prediction"].strip() for sample in samples).most_common(1)[0][1]
    shares: dict[str, float | None] = {name: failed[name] / len(samples) for name in CHECKS}
    return shares | {"same": most / len(samples)} | ({"outside": None} if labels is None else {})


def _plain(text: str) -> str:
    return text.strip().casefold().rstrip(".")
