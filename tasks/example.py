"""The types passed between a benchmark's reader, its renderer, and the jobs that write or register the result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import GENERATE
from optiml_jax.tokenizer import join


@dataclass(frozen=True)
class Record:
    """A raw record. `id` is unique in its task and contains no line break; `fields` depend on the benchmark."""

    id: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Template:
    """A way to phrase the records of a task as prompts.

    Attributes:
      id: unique in its task; no "/" and no line break.
      metric: how answers are scored.
      output_type: `RANK` (the model chooses among candidates) or `GENERATE`. Where the candidates of an example do not
        fit, its answer is generated.
      text: source of the prompt for the benchmark's renderer; empty where records contain their instructions.
    """

    id: str
    metric: Metric
    text: str = ""
    output_type: str = GENERATE


@dataclass(frozen=True)
class Example:
    """A rendered example, as plain texts; `optiml_jax.tokenizer.join` joins source and target.

    Attributes:
      id: id of the record.
      source: instructions and input, ending with the delimiter that asks for the output (paper 2.4).
      target: the training target, one of `references`, chosen by the example's id.
      references: every accepted output, without duplicates.
      candidates: the outputs to rank (rank classification), or None: the output is generated.
      separator: text between source and target; one space, unless the source ends in white space.
      stop: texts that end a generated answer, for models that were not trained to end it themselves.
      max_new_tokens: maximum length of a generated answer; None: the limit of the evaluation.
      given: length in characters of each candidate's given prefix, which is not scored; empty: candidates are scored
        whole.
      earlier_turns: learned turns of a conversation before the last: what is said before each answer, and the answer.
        Joined, they are the start of `source`.
      part_of: id of a question that several examples ask together; it is correct if all of them are (MultiRC).
      input_start: offset in the source at which the instructions of the task end. Demonstrations are inserted there; 0
        if each example has its own instructions (paper 2.4).
      demonstration_spans: character ranges of the demonstrations in the source, from the left; a prompt that is too
        long loses them first.
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
    input_start: int = 0
    demonstration_spans: tuple[tuple[int, int], ...] = ()
    earlier_turns: tuple[tuple[str, str], ...] = ()

    def turns(self) -> list[tuple[str, str]]:
        """The example as alternating context and label, as they meet in a row; one pair unless it is a conversation."""
        if not self.earlier_turns:
            return [join(self.source, self.target, self.separator)]
        joined = [join(context, answer) for context, answer in self.earlier_turns]
        start = sum(len(context) + len(answer) for context, answer in joined)
        return [*joined, join(self.source[start:], self.target, self.separator)]


@dataclass(frozen=True)
class Skipped:
    """A record (or a task) that was left out: `where` is "file#record" or a file, `reason` is one line."""

    where: str
    reason: str
