"""Greedy decoding (paper 4.1), to `</s>`, a stop text or a number of tokens.

Prompts wait in a queue, the longest first. The next of them are read together, packed and what they share once; as rows
of the cache become free, what was read of them is put there, until their answers are over.
"""

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.inference import kv_cache
from optiml_jax.inference.network import Network
from optiml_jax.inference.prefix_sharing import Document, lay_out, shared_start
from optiml_jax.inference.ranking import NAN_HINT
from optiml_jax.model import sharding

READ = 8_192  # positions of prompts read together, at most (a single row may be longer)
KEPT = 16_384  # of the cache, at most (as above)
LEAST = 32  # lengths of the cache are rounded up: few programs to compile


class Answer(NamedTuple):
    """Generated ids without `</s>`; `truncated` by the token limit; `prompt_cut`: the prompt lost its start.

    Ids may go on behind a stop text, by less than `kv_cache.STEPS`.
    """

    ids: list[int]
    truncated: bool
    prompt_cut: bool


def greedy(
    model: Network,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    batch_rows: int = 16,
    names: Sequence[str] | None = None,
    stop: Sequence[Sequence[str]] | None = None,
) -> list[Answer]:
    """The most likely next token, again and again, for every prompt.

    Args:
      prompts: ids; cut on the left where prompt and answer exceed the model's positions, but for a leading `</s>`.
      max_new_tokens: the limit, 256 in the paper; of all prompts or of each.
      batch_rows: prompts answered at once, fewer where they are long; it changes no answer.
      names: of the prompts, for messages.
      stop: of each prompt, texts that end its answer.

    Raises:
      UserError: an empty prompt, a limit that leaves no room for one, or logits that are NaN or infinite.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    positions = model.config.max_positions
    for limit in limits:
        if not 0 < limit < positions:
            raise UserError(f"MAX_NEW_TOKENS {limit} must be from 1 to {positions - 1}, the model's positions")
    if not all(len(prompt) for prompt in prompts):
        raise UserError("an empty prompt has no continuation; give it a text or a leading </s>")
    names = names or [f"{i} of {len(prompts)}" for i in range(len(prompts))]
    asked = [
        _Asked(name, model.cut(prompt, positions - limit), limit, tuple(ends))
        for name, prompt, limit, ends in zip(names, prompts, limits, stop or [()] * len(prompts), strict=True)
    ]
    batch = _Batch(model, sorted(asked, key=lambda one: -one.places), batch_rows)
    while batch.fill():
        batch.decode()
    eos = model.tokenizer.eos_id
    answers = []
    for one, prompt in zip(asked, prompts):
        end = one.made.index(eos) if eos in one.made else None
        answers.append(Answer(one.made[:end], end is None and not one.stopped, len(one.ids) < len(prompt)))
    return answers


@dataclasses.dataclass(eq=False)
class _Asked:
    """A prompt and what was made of its answer."""

    name: str
    ids: list[int]
    limit: int
    stop: tuple[str, ...]
    made: list[int] = dataclasses.field(default_factory=list)
    stopped: bool = False

    @property
    def places(self) -> int:
        """In the cache: the last token is not read, and `decode` writes `STEPS` at once."""
        return len(self.ids) + self.limit - 1 + kv_cache.STEPS

    def add(self, tokens: Sequence[int], model: Network) -> bool:
        """Takes what was made; whether the answer is over."""
        for token in tokens:
            if token < 0:
                raise UserError(f"prompt {self.name}: the logits of its answer are not finite; {NAN_HINT}")
            self.made.append(token)
            if token == model.tokenizer.eos_id or len(self.made) == self.limit:
                return True
        if self.stop:
            text = model.tokenizer.decode(self.made)
            self.stopped = any(end in text for end in self.stop)
        return self.stopped


class _Waiting(NamedTuple):
    """A prompt that was read: where in what `cache.read` returned its tokens are, row times length plus place."""

    one: _Asked
    read: tuple
    places: np.ndarray


class _Batch:
    """A cache and whose answers its rows make."""

    def __init__(self, model: Network, asked: list[_Asked], most: int) -> None:
        self._model, self._most = model, most
        self._queue = collections.deque(asked)
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._rows_of: dict[_Asked, int] = {}
        self._cache: kv_cache.Cache | None = None
        self._shape = 0, 0

    def fill(self) -> bool:
        """Gives rows to prompts that wait, as many as there is room for, in a cache as large as they want; whether
        there is anything to do."""
        at_work, fresh = list(self._rows_of), []
        while len(at_work) < self._most and (self._waiting or self._read_ahead()):
            one = self._waiting[0].one
            if at_work and self._rounded(len(at_work) + 1) * _length([*at_work, one]) > KEPT:
                break
            fresh.append(self._waiting.popleft())
            at_work.append(one)
        if at_work:
            self._arrange(self._rounded(len(at_work)), _length(at_work))
            self._admit(fresh)
        return bool(at_work)

    def _read_ahead(self) -> bool:
        """Reads the next prompts of the queue; whether there were any."""
        model, taken, size, last = self._model, [], 0, []
        while self._queue:
            ids = self._queue[0].ids
            size += len(ids) - shared_start(ids, last)
            if taken and size > READ:
                break
            taken.append(self._queue.popleft())
            last = ids
        if not taken:
            return False
        found = {}
        documents = [Document(one.ids, []) for one in taken]
        for batch in lay_out(documents, len(documents), model.tokenizer.pad_id, min(READ, model.most_positions)):
            with jax.set_mesh(model.mesh):
                read = kv_cache.read(model.params, *map(model.place, batch.arrays[:4]), model.config, model.dtype)
            length = batch.arrays[0].shape[1]
            for i, (row, places, _) in batch.places.items():
                found[i] = _Waiting(taken[i], read, row * length + places)
        self._waiting.extend(found[i] for i in range(len(taken)))
        return True

    def _rounded(self, count: int) -> int:
        """Rows of the cache for so many prompts: few shapes, and a lone prompt is not one of sixteen."""
        rows = self._most
        while rows // 2 >= count:
            rows //= 2
        parts = sharding.batch_parts(self._model.mesh.shape)
        return -(-rows // parts) * parts

    def _arrange(self, rows: int, length: int) -> None:
        if (rows, length) == self._shape:
            return
        model, order = self._model, list(self._rows_of.values())
        with jax.set_mesh(model.mesh):
            if order:
                taken = np.array(order + [0] * (rows - len(order)), np.int32)
                self._cache = kv_cache.arrange(self._cache, taken, length)
            else:
                self._cache = kv_cache.empty(rows, length, model.config, model.dtype)
        self._rows_of = {one: row for row, one in enumerate(self._rows_of)}
        self._shape = rows, length

    def _admit(self, fresh: list[_Waiting]) -> None:
        model, (rows, length) = self._model, self._shape
        free = iter(sorted(set(range(rows)) - set(self._rows_of.values())))
        for _, of_one_read in itertools.groupby(fresh, key=lambda waiting: id(waiting.read)):
            prompts = list(of_one_read)
            count = 1 << (len(prompts) - 1).bit_length()
            rows_A, lengths_A = np.full(count, rows, np.int32), np.ones(count, np.int32)
            places_AC = np.zeros((count, length), np.int32)
            for a, (one, _, places) in enumerate(prompts):
                rows_A[a] = self._rows_of[one] = next(free)
                lengths_A[a] = len(places)
                places_AC[a, : len(places)] = places
            with jax.set_mesh(model.mesh):
                self._cache = kv_cache.admit(
                    model.params, self._cache, *prompts[0].read, rows_A, places_AC, lengths_A, model.dtype
                )

    def decode(self) -> None:
        """Goes on with all rows for a while, and lets those go whose answers are over."""
        model, (rows, _) = self._model, self._shape
        left_B = np.zeros(rows, np.int32)
        for one, row in self._rows_of.items():
            left_B[row] = one.limit - len(one.made)
        # Back when a quarter is over, for those that wait; if none waits, when a quarter of the rows will do.
        count = len(self._rows_of)
        rest = count - max(1, count // 4) if self._waiting or self._queue else rows // 4
        enough = np.int32(rows - rest if rest < count else rows)
        with jax.set_mesh(model.mesh):
            made_BG, steps, self._cache = kv_cache.decode(
                model.params, self._cache, left_B, enough, model.config, model.dtype, model.tokenizer.eos_id
            )
        tokens, steps = model.fetch(made_BG).tolist(), int(model.fetch(steps))
        self._rows_of = {one: row for one, row in self._rows_of.items() if not one.add(tokens[row][:steps], model)}


def _length(asked: list[_Asked]) -> int:
    """Of a cache in which all of them have room."""
    return _bucket(max(one.places for one in asked))


def _bucket(length: int) -> int:
    """`length` rounded up to 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, ...: by a quarter at most from 128 on."""
    step = max(LEAST, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step
