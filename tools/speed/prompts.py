"""Random prompts with the lengths of real suites, for `evaluate`."""

import functools
from collections.abc import Callable

import numpy as np

from tools.speed.rows import EOS, FIRST_WORD

Pairs = list[tuple[list[int], list[int]]]  # contexts and candidates
Written = tuple[list[list[int]], list[int]]  # prompts, and the length of each answer


def _ids(rng: np.random.Generator, count: int, vocab_size: int) -> list[int]:
    return [EOS, *rng.integers(FIRST_WORD, vocab_size, count - 1).tolist()]


def _choices(
    rng: np.random.Generator,
    prompts: int,
    vocab_size: int,
    context: tuple[int, int],
    candidates: int,
    answer: tuple[int, int],
) -> Pairs:
    """Makes contexts and candidates of random lengths in the given ranges, the last excluded."""
    return [
        (ids, rng.integers(FIRST_WORD, vocab_size, rng.integers(*answer)).tolist())
        for length in rng.integers(*context, prompts)
        for ids in [_ids(rng, length, vocab_size)]
        for _ in range(candidates)
    ]


def _shots(rng: np.random.Generator, prompts: int, vocab_size: int) -> Pairs:
    """Makes prompts of five shared demonstrations, a question and four letters, as in MMLU."""
    shared = _ids(rng, 500, vocab_size)
    letters = rng.choice(np.arange(FIRST_WORD, vocab_size), 4, replace=False).tolist()
    questions = [rng.integers(FIRST_WORD, vocab_size, n).tolist() for n in rng.integers(60, 120, prompts)]
    return [(shared + question, [letter]) for question in questions for letter in letters]


KINDS: dict[str, Callable[[np.random.Generator, int, int], Pairs]] = {
    # passages, as in RACE or COSMOS QA; a sentence and two continuations, as in PIQA
    "long contexts, 5 candidates": functools.partial(_choices, context=(250, 450), candidates=5, answer=(4, 12)),
    "short contexts, 2 candidates": functools.partial(_choices, context=(8, 40), candidates=2, answer=(8, 28)),
    "5 shots, 4 letters": _shots,
}


def _lengths(rng: np.random.Generator, prompts: int, new: int) -> list[int]:
    """Returns lengths of answers, of which most are short."""
    return np.clip(rng.geometric(min(1, 4 / new), prompts), 1, new).tolist()


def _alike(rng: np.random.Generator, prompts: int, new: int, vocab_size: int) -> Written:
    return [_ids(rng, n, vocab_size) for n in rng.integers(20, 200, prompts)], [new] * prompts


def _own(rng: np.random.Generator, prompts: int, new: int, vocab_size: int) -> Written:
    return _alike(rng, prompts, new, vocab_size)[0], _lengths(rng, prompts, new)


def _instructed(rng: np.random.Generator, prompts: int, new: int, vocab_size: int) -> Written:
    """Makes prompts of a shared definition, two shared demonstrations and an input, as in Super-NaturalInstructions."""
    shared = _ids(rng, 300, vocab_size)
    inputs = [rng.integers(FIRST_WORD, vocab_size, n).tolist() for n in rng.integers(20, 150, prompts)]
    return [shared + text for text in inputs], _lengths(rng, prompts, new)


WRITTEN: dict[str, Callable[[np.random.Generator, int, int, int], Written]] = {
    "answers of one length": _alike,
    "own answers": _own,
    "2 shots, own answers": _instructed,
}
