"""Objectives: which tokens of an example are labels, so that the loss is over their predictions (paper 2.1, Figure 6).

An objective is a function from the boundaries of an example to its label spans. The last span always ends with the
example, and includes its closing `</s>`; each earlier one ends an answer of a conversation, and is followed by `</s>`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Span = tuple[int, int]  # start and end, in tokens of the example


class Boundaries(NamedTuple):
    """The boundaries of an example with its demonstrations, in tokens.

    Attributes:
      length: of everything, without `</s>`.
      answers: span of each answer of the example itself; several in a conversation.
      first_demonstration: where the answer of the first demonstration starts; None without demonstrations.
    """

    length: int
    answers: Sequence[Span]
    first_demonstration: int | None = None


def label(example: Boundaries) -> Sequence[Span]:
    """The answers of the example: the paper's loss, and MetaICL's of Min et al. (2021)."""
    return example.answers


def suffix(example: Boundaries) -> Sequence[Span]:
    """The answer of the first demonstration, and everything after it (Figure 6). Without demonstrations, as `label`."""
    if example.first_demonstration is None:
        return example.answers
    return ((example.first_demonstration, example.length),)


def document(example: Boundaries) -> Sequence[Span]:
    """Everything, as in pre-training."""
    return ((0, example.length),)


OBJECTIVES: dict[str, Callable[[Boundaries], Sequence[Span]]] = {
    "label": label,
    "suffix": suffix,
    "document": document,
}
