"""Decoding, greedy (paper 4.1) or sampled, until `</s>`, a stop text or a token limit.

Prompts wait in a queue, by length, longest first, and next to those with which they share a prefix. The next of them
are prefilled together, packed and with shared prefixes; each is admitted to a row of the KV cache as rows become free,
and stays there until its answer is complete.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.inference import cache_attention, kv_cache
from optiml_jax.inference.network import Network
from optiml_jax.inference.prefix_sharing import ScoredSequence, lay_out, shared_prefix_length
from optiml_jax.inference.ranking import NAN_HINT
from optiml_jax.inference.sampling import GREEDY, Rows, Sampling, check
from optiml_jax.model import sharding
from optiml_jax.model.layers import is_separate

LENGTH_STEP = 32  # cache lengths are rounded up to a multiple, to compile few programs


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


def decode(
    model: Network,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    batch_rows: int | None = None,
    names: Sequence[str] | None = None,
    stop: Sequence[Sequence[str]] | None = None,
    sampling: Sequence[Sampling] | None = None,
) -> list[Answer]:
    """Generates the next token repeatedly, for every prompt.

    Args:
      prompts: ids; cut on the left, after a leading `</s>`, where prompt and answer exceed the model's positions.
      max_new_tokens: the limit (256 in the paper), one for all prompts or one per prompt.
      batch_rows: prompts answered at once, fewer where they are long; None: as many as memory allows. It changes no
        answer.
      names: of the prompts, for messages.
      stop: for each prompt, texts that end its answer.
      sampling: of each prompt; None takes the most likely tokens.

    Raises:
      UserError: a prompt is empty, a limit leaves no room for the prompt, a sampling is out of range, or logits are NaN
        or infinite.
    """
    answers: dict[int, Answer] = {}
    window = Window(prompts, max_new_tokens, names, stop, sampling)
    answers.update(decode_windows(model, [window], batch_rows))
    return [answers[index] for index in range(len(prompts))]


class Window(NamedTuple):
    """Prompts that are sorted together; arguments as in `decode`."""

    prompts: Sequence[Sequence[int]]
    max_new_tokens: int | Sequence[int]
    names: Sequence[str] | None = None
    stop: Sequence[Sequence[str]] | None = None
    sampling: Sequence[Sampling] | None = None


def decode_windows(
    model: Network, windows: Iterable[Window], batch_rows: int | None = None
) -> Iterator[tuple[int, Answer]]:
    """Yields the number of each prompt, counted over all windows, and its answer, as answers are completed.

    Rows that become free take prompts of the next window, which is read when the queue is empty: no row waits for the
    longest answer of a window. Arguments and errors as in `decode`.
    """
    batch = _Batch(model, (_requests(model, *window) for window in windows), batch_rows or model.capacity.rows)
    while batch.admit_waiting():
        for request in batch.decode():
            yield batch.number(request), request.answer(model)


def stream(
    model: Network,
    prompt: Sequence[int],
    max_new_tokens: int,
    steps: int,
    sampling: Sampling = GREEDY,
) -> Iterator[Answer]:
    """Yields the answer to one prompt as it grows, by at most `steps` tokens; arguments and errors as in `decode`."""
    requests = _requests(model, [prompt], max_new_tokens, None, None, [sampling])
    batch = _Batch(model, iter([requests]), max_rows=1)
    while batch.admit_waiting():
        batch.decode(steps)
        yield requests[0].answer(model)


def _requests(
    model: Network,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    names: Sequence[str] | None,
    stop: Sequence[Sequence[str]] | None,
    sampling: Sequence[Sampling] | None,
) -> "list[_Request]":
    """Checks the arguments of `decode` and cuts the prompts to the model's positions."""
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    positions = model.config.max_positions
    for limit in limits:
        if not 0 < limit < positions:
            raise UserError(f"MAX_NEW_TOKENS {limit} must be from 1 to {positions - 1}, the model's positions")
    if not all(len(prompt) for prompt in prompts):
        raise UserError("an empty prompt has no continuation; give it text or a leading </s>")
    names = names or [f"{i} of {len(prompts)}" for i in range(len(prompts))]
    sampling = sampling or [GREEDY] * len(prompts)
    for each in sampling:
        check(each)
    arguments = zip(names, prompts, limits, stop or [()] * len(prompts), sampling, strict=True)
    return [
        _Request(name, model.cut(prompt, positions - limit), len(prompt), limit, tuple(ends), drawn)
        for name, prompt, limit, ends, drawn in arguments
    ]


@dataclasses.dataclass(eq=False)
class _Request:
    """A prompt and the tokens generated for it so far.

    Attributes:
      ids: of the prompt, cut to the model's positions.
      prompt_length: before it was cut.
      limit: of generated tokens.
    """

    name: str
    ids: list[int]
    prompt_length: int
    limit: int
    stop: tuple[str, ...]
    sampling: Sampling
    generated: list[int] = dataclasses.field(default_factory=list)
    stopped: bool = False

    @functools.cached_property
    def prefixes(self) -> list[int]:
        """Identifies the whole blocks of the prompt, for `cache_attention.plan_reads`."""
        return cache_attention.block_prefixes(self.ids)

    @property
    def cache_length(self) -> int:
        """Positions needed in the cache: the last token is not read, and `kv_cache.decode` writes `STEPS` at once."""
        return len(self.ids) + self.limit - 1 + kv_cache.STEPS

    @property
    def order(self) -> tuple:
        """The order of the queue. In caches of the same length, neighbours share prefixes."""
        return -bucket(self.cache_length), self.ids

    def answer(self, model: Network) -> Answer:
        """The answer so far."""
        eos = model.tokenizer.eos_id
        end = self.generated.index(eos) if eos in self.generated else None
        return Answer(self.generated[:end], end is None and not self.stopped, len(self.ids) < self.prompt_length)

    def add(self, tokens: Sequence[int], model: Network) -> bool:
        """Appends generated tokens; returns whether the answer is complete."""
        for token in tokens:
            if token < 0:
                raise UserError(f"prompt {self.name}: the logits of its answer are not finite; {NAN_HINT}")
            self.generated.append(token)
            if token == model.tokenizer.eos_id or len(self.generated) == self.limit:
                return True
        if self.stop:
            text = model.tokenizer.decode(self.generated)
            self.stopped = any(end in text for end in self.stop)
        return self.stopped


class _Prefilled(NamedTuple):
    """A prefilled prompt; `positions`: of its tokens in the result of `kv_cache.read`, as row * length + position."""

    request: _Request
    read: tuple
    positions: np.ndarray


class _Batch:
    """The KV cache, and which requests its rows answer."""

    def __init__(self, model: Network, windows: Iterator[list[_Request]], max_rows: int) -> None:
        self._model, self._max_rows = model, max_rows
        self._windows = windows
        self._queue: collections.deque[_Request] = collections.deque()
        self._numbers: dict[_Request, int] = {}
        self._count = 0
        self._waiting: collections.deque[_Prefilled] = collections.deque()
        self._row_by_request: dict[_Request, int] = {}
        self._cache: kv_cache.Cache | None = None
        self._shape = 0, 0

    def admit_waiting(self) -> bool:
        """Admits as many waiting prompts as fit, in a cache resized to hold them; returns False if none is left."""
        model, active, admitted = self._model, list(self._row_by_request), []
        while len(active) < self._max_rows and (self._waiting or self._prefill()):
            request = self._waiting[0].request
            if (
                active
                and self._rounded(len(active) + 1) * self._length([*active, request]) > model.capacity.cache_positions
            ):
                break
            admitted.append(self._waiting.popleft())
            active.append(request)
        if active:
            self._resize(self._rounded(len(active)), self._length(active))
            self._admit(admitted)
        return bool(active)

    def _prefill(self) -> bool:
        """Prefills the next prompts of the queue; returns False if there are none."""
        model, requests, size, last = self._model, [], 0, []
        self._fill_queue()
        while self._queue:
            ids = self._queue[0].ids
            size += len(ids) - shared_prefix_length(ids, last)
            if requests and size > model.capacity.prefill_positions:
                break
            requests.append(self._queue.popleft())
            last = ids
        if not requests:
            return False
        prefilled = {}
        sequences = [ScoredSequence(request.ids, []) for request in requests]
        max_positions = min(model.capacity.prefill_positions, model.capacity.positions)
        for batch in lay_out(sequences, len(sequences), model.tokenizer.pad_id, max_positions):
            with jax.set_mesh(model.mesh):
                read = kv_cache.read(model.params, *map(model.place, batch.arrays[:4]), model.config, model.dtype)
            length = batch.arrays[0].shape[1]
            for i, (row, positions, _) in batch.placements.items():
                prefilled[i] = _Prefilled(requests[i], read, row * length + positions)
        self._waiting.extend(prefilled[i] for i in range(len(requests)))
        return True

    def _fill_queue(self) -> None:
        """Reads the next window if the queue is empty."""
        while not self._queue and (window := next(self._windows, None)) is not None:
            self._numbers |= {request: self._count + index for index, request in enumerate(window)}
            self._count += len(window)
            self._queue.extend(sorted(window, key=lambda request: request.order))

    def number(self, request: _Request) -> int:
        """Forgets a request and returns its number, counted over all windows."""
        return self._numbers.pop(request)

    def _rounded(self, count: int) -> int:
        """Rows of the cache for `count` prompts: halved from the maximum as often as they fit, to compile few
        programs."""
        rows = self._max_rows
        while rows // 2 >= count:
            rows //= 2
        parts = sharding.batch_parts(self._model.mesh.shape)
        return -(-rows // parts) * parts

    def _resize(self, rows: int, length: int) -> None:
        if (rows, length) == self._shape:
            return
        model, order = self._model, list(self._row_by_request.values())
        with jax.set_mesh(model.mesh):
            if order:
                kept_rows = np.array(order + [0] * (rows - len(order)), np.int32)
                self._cache = kv_cache.resize(self._cache, kept_rows, length)
            else:
                self._cache = kv_cache.empty(rows, length, model.config, model.dtype)
        self._row_by_request = {request: row for row, request in enumerate(self._row_by_request)}
        self._shape = rows, length

    def _admit(self, admitted: list[_Prefilled]) -> None:
        model, (rows, length) = self._model, self._shape
        free = iter(sorted(set(range(rows)) - set(self._row_by_request.values())))
        for _, group in itertools.groupby(admitted, key=lambda prefilled: id(prefilled.read)):
            prompts = list(group)
            count = 1 << (len(prompts) - 1).bit_length()
            rows_A, lengths_A = np.full(count, rows, np.int32), np.ones(count, np.int32)
            sampling = [prefilled.request.sampling for prefilled in prompts]
            positions_AC = np.zeros((count, length), np.int32)
            for a, (request, _, positions) in enumerate(prompts):
                rows_A[a] = self._row_by_request[request] = next(free)
                lengths_A[a] = len(positions)
                positions_AC[a, : len(positions)] = positions
            with jax.set_mesh(model.mesh):
                drawn = Rows.of(sampling + [GREEDY] * (count - len(prompts)))
                self._cache = kv_cache.admit(
                    model.params, self._cache, *prompts[0].read, rows_A, positions_AC, lengths_A, drawn, model.dtype
                )

    def _length(self, requests: list[_Request]) -> int:
        """Length of a cache that holds all the requests."""
        smallest = cache_attention.BLOCK if is_separate(self._model.params) else LENGTH_STEP
        return bucket(max(request.cache_length for request in requests), smallest)

    def _plan_reads(self) -> cache_attention.Reads | None:
        """What the kernel reads in the next call; None where none is used."""
        if not is_separate(self._model.params):
            return None
        rows, length = self._shape
        prefixes, filled = [()] * rows, np.zeros(rows, np.int32)
        for request, row in self._row_by_request.items():
            prefixes[row] = request.prefixes
            filled[row] = len(request.ids) + len(request.generated) + kv_cache.STEPS
        devices = sharding.batch_parts(self._model.mesh.shape)
        return cache_attention.plan_reads(prefixes, filled, length, devices)

    def decode(self, most: int = kv_cache.STEPS) -> list[_Request]:
        """Decodes all rows for at most that many steps, and releases and returns the requests that are complete."""
        model, (rows, _) = self._model, self._shape
        left_B, sampling = np.zeros(rows, np.int32), [GREEDY] * rows
        for request, row in self._row_by_request.items():
            left_B[row] = request.limit - len(request.generated)
            sampling[row] = request.sampling
        # Return to the host when a quarter of the active rows have finished or, with nothing waiting, when a
        # quarter-size batch suffices.
        if not self._waiting:
            self._fill_queue()
        count = len(self._row_by_request)
        rest = count - max(1, count // 4) if self._waiting or self._queue else rows // 4
        enough = np.int32(rows - rest if rest < count else rows)
        with jax.set_mesh(model.mesh):
            generated_BG, steps, self._cache = kv_cache.decode(
                model.params,
                self._cache,
                left_B,
                enough,
                np.int32(min(most, kv_cache.STEPS)),
                Rows.of(sampling),
                self._plan_reads(),
                model.config,
                model.dtype,
                model.tokenizer.eos_id,
            )
        tokens, steps = model.fetch(generated_BG).tolist(), int(model.fetch(steps))
        complete = [request for request, row in self._row_by_request.items() if request.add(tokens[row][:steps], model)]
        for request in complete:
            del self._row_by_request[request]
        return complete


def bucket(length: int, smallest: int = LENGTH_STEP) -> int:
    """`length` rounded up to 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, ...: by at most a quarter from 128 on.

    Args:
      smallest: a power of two of which the result is a multiple.
    """
    step = max(smallest, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step
