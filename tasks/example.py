"""What passes between a benchmark's reader, its renderer and whoever writes or registers the result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """One raw record, as read. `id` is unique in its task and holds no line break; `fields` depend on the benchmark."""

    id: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One rendered example, bare text: how source and target meet is `optiml_jax.opt.tokenizer.join`'s business.

    Attributes:
      source: instructions and input, ending with the delimiter that asks for the output (paper 2.4).
      target: what is trained on; one of `references`, chosen by the example's id.
      references: every accepted output, without repetitions.
      candidates: the outputs to rank (rank classification), or None: the output is generated.
    """

    id: str
    source: str
    target: str
    references: tuple[str, ...]
    candidates: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Skipped:
    """A record (or a task) left out: `where` is "file#record" or a file, `reason` fits in a line."""

    where: str
    reason: str
