"""What goes wrong with generated answers, whatever their score: outside the labels, empty, cut, repeated."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optiml_jax.evaluation.scores.samples import scored

MOST_LABELS = 20  # a task with more different references than this writes freely
ASKED_A_LABEL = 5  # ... or with fewer prompts a reference
GRAM, FEWEST_WORDS = 4, 12  # words of a run, and of an answer that can be said to repeat itself

CHECKS = ("outside", "empty", "cut", "repeated", "same")


def answer_checks(samples: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Task -> {check: share of its generated answers}, of tasks whose answers are generated.

    "outside": none of the task's labels, None where it has no few labels; "empty"; "cut": met the token limit;
    "repeated": more than half of its runs of four words stand in it before; "same": the most frequent answer. A ranked
    candidate is none of this.
    """
    generated = defaultdict(list)
    for sample in scored(samples):
        if sample["candidates"] is None:
            generated[sample["task"]].append(sample)
    return {task: _of_task(of_task) for task, of_task in generated.items()}


def of_answer(sample: Mapping[str, Any], labels: frozenset[str] | None) -> list[str]:
    """The checks that one answer fails; `labels` as `labels_of` gives them."""
    if sample["candidates"] is not None or sample["score"] is None:
        return []
    text = sample["prediction"].strip()
    failed = {
        "outside": bool(text) and labels is not None and _plain(text) not in labels,
        "empty": not text,
        "cut": bool(sample["truncated"]),
        "repeated": repeats_itself(text),
    }
    return [name for name, on in failed.items() if on]


def labels_of(samples: Sequence[Mapping[str, Any]]) -> frozenset[str] | None:
    """The labels of a task, where its references are a few that come again and again; None: it writes freely."""
    labels = frozenset(_plain(text) for sample in samples for text in sample["references"])
    return labels if len(labels) <= min(MOST_LABELS, len(samples) / ASKED_A_LABEL) else None


def repeats_itself(text: str) -> bool:
    """Whether more than half of the runs of four words stand in the text before."""
    words = text.split()
    if len(words) < FEWEST_WORDS:
        return False
    runs = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return len(set(runs)) < len(runs) / 2


def _of_task(samples: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    labels = labels_of(samples)
    failed = Counter(name for sample in samples for name in of_answer(sample, labels))
    most = Counter(sample["prediction"].strip() for sample in samples).most_common(1)[0][1]
    shares: dict[str, float | None] = {name: failed[name] / len(samples) for name in CHECKS}
    return shares | {"same": most / len(samples)} | ({"outside": None} if labels is None else {})


def _plain(text: str) -> str:
    return text.strip().casefold().rstrip(".")
