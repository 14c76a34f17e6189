"""Prompts on their way through decoding."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.inference.network import Network
from optiml_jax.inference.ranking import NAN_HINT
from optiml_jax.inference.sampling import Sampling


class Answer(NamedTuple):
    """A generated answer.

    Attributes:
      ids: without `</s>`; may continue beyond a stop text by less than `kv_cache.STEPS`.
      truncated: whether the token limit ended it.
      prompt_cut: whether the prompt lost its start.
    """

    ids: list[int]
    truncated: bool
    prompt_cut: bool


@dataclasses.dataclass(eq=False)
class Request:
    """A prompt and the tokens generated for it so far.

    Attributes:
      name: for messages.
      ids: of the prompt, cut to the model's positions.
      prompt_length: before it was cut.
      limit: of generated tokens.
      stop: texts that end the answer.
      number: of the prompt, counted over all windows.
    """

    name: str
    ids: list[int]
    prompt_length: int
    limit: int
    stop: tuple[str, ...]
    sampling: Sampling
    number: int = 0
    generated: list[int] = dataclasses.field(default_factory=list)
    stopped: bool = False

    @property
    def length(self) -> int:
        """Positions of the prompt and the longest answer; the last token is not read."""
        return len(self.ids) + self.limit - 1

    def answer(self, model: Network) -> Answer:
        """The answer so far."""
        eos = model.tokenizer.eos_id
        end = self.generated.index(eos) if eos in self.generated else None
        return Answer(
            self.generated[:end], end is None and len(self.generated) == self.limit, len(self.ids) < self.prompt_length
        )

    def add(self, tokens: Sequence[int], model: Network) -> bool:
        """Appends generated tokens; returns whether the answer is complete.

        Raises:
          UserError: logits were not finite.
        """
        for token in tokens:
            if token < 0:
                raise UserError(f"prompt {self.name}: the logits of its answer are not finite; {NAN_HINT}")
            self.generated.append(token)
            if token == model.tokenizer.eos_id or len(self.generated) == self.limit:
                return True
        if self.stop:
            # A text that ends among the new tokens starts at most its number of bytes before them.
            longest = max(len(end.encode()) for end in self.stop)
            text = model.tokenizer.decode(self.generated[-len(tokens) - longest :])
            self.stopped = any(end in text for end in self.stop)
        return self.stopped


class Prefilled(NamedTuple):
    """A prefilled prompt.

    Attributes:
      read: the result of `kv_cache.read`; the same object for prompts that were read together.
      positions: of its tokens in that result, as row * length + position.
    """

    request: Request
    read: tuple
    positions: np.ndarray
