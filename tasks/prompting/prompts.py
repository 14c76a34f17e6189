"""Prompts with task-level instructions: one of several wordings per example, drawn by the example's id (paper 2.4).

The paper states the eight delimiters (footnote 5), that one is sampled for each example "to mitigate overfitting", and
that none is added after instructions that end in ":". That the definition may start with "Instructions:" or "Task:" and
the instance with "Input:" is not stated, only seen in the Super-NaturalInstructions prompts of Figures 7-16 (three, one
and three of ten). Here each is drawn uniformly and independently. Definition and instance are joined by a line break,
as in the figures.

All functions are pure: an example has the same prompt in every run, cache and process.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

DELIMITERS = ("\nAnswer:", " Answer:", "\nA:", " A:", "\nOutput:", " Output:", "\nanswer:", "\noutput:")
OPENERS = ("Instructions: ", "Task: ", "")
MARKERS = ("Input: ", "")


def draw(purpose: str, task: str, example_id: str) -> int:
    """64 pseudo-random bits that depend only on the arguments; different purposes are independent."""
    text = "\0".join((purpose, task, example_id))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def pick(purpose: str, task: str, example_id: str, options: Sequence[T]) -> T:
    """Picks one of `options`, uniformly over example ids."""
    return options[draw(purpose, task, example_id) % len(options)] if len(options) > 1 else options[0]


def task_level_source(
    task: str, example_id: str, definition: str, text: str, indented: bool = False
) -> tuple[str, int]:
    """Source for a benchmark with one definition per task: opener, definition, line break, marker, input, delimiter.

    Args:
      indented: the white space at the start of `text` remains.

    Returns:
      The source, and the offset of the input in it (`Example.input_start`).
    """
    instructions = pick("opener", task, example_id, OPENERS) + definition.strip()
    input_start = len(instructions)
    if text := text.rstrip() if indented else text.strip():
        instructions += "\n" + pick("marker", task, example_id, MARKERS) + text
    return with_delimiter(task, example_id, instructions), input_start


def with_delimiter(task: str, example_id: str, instructions: str) -> str:
    """Appends a delimiter to instructions, unless they end in ":" (paper 2.4)."""
    instructions = instructions.rstrip()
    return (
        instructions if instructions.endswith(":") else instructions + pick("delimiter", task, example_id, DELIMITERS)
    )
