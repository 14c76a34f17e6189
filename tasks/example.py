"""What passes between a benchmark's reader, its renderer and whoever writes or registers the result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optiml_jax.evaluation.metrics import Metric


@dataclass(frozen=True)
class Record:
    """One raw record, as read. `id` is unique in its task and holds no line break; `fields` depend on the benchmark."""

    id: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Template:
    """One way to put the records of a task into words.

    Attributes:
      id: unique in its task; no "/" and no line break.
      metric: what answers to it are scored by.
      text: what the benchmark's renderer makes a prompt of; empty where the records bring their instructions.
    """

    id: str
    metric: Metric
    text: str = ""


@dataclass(frozen=True)
class Example:
    """One rendered example, bare text: how source and target meet is `optiml_jax.tokenizer.join`'s business.

    Attributes:
      id: the record's.
      source: instructions and input, ending with the delimiter that asks for the output (paper 2.4).
      target: what is trained on; one of `references`, chosen by the example's id.
      references: every accepted output, without repetitions.
      candidates: the outputs to rank (rank classification), or None: the output is generated.
      separator: between source and target; one space, unless the source ends in white space itself.
      stop: texts that end a generated answer, for models that were not taught to end by themselves.
      max_new_tokens: of a generated answer; None: as many as the evaluation allows.
      given: of each candidate, how many characters at its start are told and not scored; empty: all is scored.
      part_of: where several examples answer one question, its id: it is right when they all are (MultiRC).
      own: where in the source the example's own part begins. What stands before are instructions of the whole task,
        which demonstrations come after; 0 where each example brings its instructions (paper 2.4).
      shown: spans of the source, from the left, that are demonstrations: what a prompt that is too long loses first.
    """

    id: str
    source: str
    target: str
    references: tuple[str, ...]
    candidates: tuple[str, ...] | None = None
    separator: str = " "
    stop: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    given: tuple[int, ...] = ()
    part_of: str | None = None
    own: int = 0
    shown: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A record (or a task) left out: `where` is "file#record" or a file, `reason` fits in a line."""

    where: str
    reason: str
