"""Prompts of task-level instructions: one of a few wordings an example, drawn by the example's id (paper 2.4).

The paper states the eight delimiters (footnote 5), that one is sampled for each example "to mitigate overfitting", and
that none is inserted after instructions that end in ":". It nowhere states that the definition may open with
"Instructions:" or "Task:" and the instance with "Input:"; that is only seen in the Super-NaturalInstructions prompts of
Figures 7-16 (three, one and three of ten). We draw each uniformly and independently. Definition and instance meet in a
line break, as the figures are set.

Everything here is a pure function of its arguments: an example has the same prompt in every run, cache and process.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

DELIMITERS = ("\nAnswer:", " Answer:", "\nA:", " A:", "\nOutput:", " Output:", "\nanswer:", "\noutput:")
OPENERS = ("Instructions: ", "Task: ", "")
MARKERS = ("Input: ", "")


def draw(purpose: str, task: str, example_id: str) -> int:
    """64 uniform bits that depend on nothing else; purposes are independent of each other."""
    text = "\0".join((purpose, task, example_id))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def pick(purpose: str, task: str, example_id: str, options: Sequence[T]) -> T:
    """One of `options`, uniformly over example ids."""
    return options[draw(purpose, task, example_id) % len(options)]


def task_level_source(task: str, example_id: str, definition: str, text: str) -> tuple[str, int]:
    """Source of a benchmark with one definition a task: opener, definition, line break, marker, input, delimiter.

    Returns:
      The source, and where the example's own part of it begins (`Example.own`).
    """
    instructions = pick("opener", task, example_id, OPENERS) + definition.strip()
    own = len(instructions)
    if text := text.strip():
        instructions += "\n" + pick("marker", task, example_id, MARKERS) + text
    return with_delimiter(task, example_id, instructions), own


def with_delimiter(task: str, example_id: str, instructions: str) -> str:
    """Instructions ready for their output: a delimiter unless they end in ":" (paper 2.4)."""
    instructions = instructions.rstrip()
    return (
        instructions if instructions.endswith(":") else instructions + pick("delimiter", task, example_id, DELIMITERS)
    )
