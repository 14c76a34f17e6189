"""Decoding, greedy (paper 4.1) or sampled, until `</s>`, a stop text or a token limit.

Prompts wait in a queue: the longest first and, within a length, next to those with which they share a prefix. The next
of them are prefilled together, packed and with shared prefixes; each is admitted to a row of the KV cache as rows
become free, and stays there until its answer is complete.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax

from optiml_jax.common.errors import UserError
from optiml_jax.inference import kv_cache
from optiml_jax.inference.network import Network
from optiml_jax.inference.paged_cache import PagedCache
from optiml_jax.inference.prefix_sharing import ScoredSequence, lay_out, shared_prefix_length
from optiml_jax.inference.requests import Answer, Prefilled, Request
from optiml_jax.inference.row_cache import RowCache, bucket
from optiml_jax.inference.sampling import GREEDY, Sampling, check
from optiml_jax.model.layers import is_separate


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
    answers = dict(decode_windows(model, [Window(prompts, max_new_tokens, names, stop, sampling)], batch_rows))
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
            yield request.number, request.answer(model)


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
) -> list[Request]:
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
        Request(name, model.cut(prompt, positions - limit), len(prompt), limit, tuple(ends), drawn)
        for name, prompt, limit, ends, drawn in arguments
    ]


class _Batch:
    """The prompts that wait, and the cache in which others are answered."""

    def __init__(self, model: Network, windows: Iterator[list[Request]], max_rows: int) -> None:
        self._model, self._windows, self._max_rows = model, windows, max_rows
        self._queue: collections.deque[Request] = collections.deque()
        self._count = 0  # prompts of the windows that were read
        self._waiting: collections.deque[Prefilled] = collections.deque()
        self._cache = (PagedCache if is_separate(model.params) else RowCache)(model, max_rows)

    def admit_waiting(self) -> bool:
        """Admits as many waiting prompts as the cache has places for; returns False if there is nothing to answer."""
        admitted = []
        while len(self._cache) < self._max_rows and (self._waiting or self._prefill()):
            if not self._cache.reserve(self._waiting[0].request):
                break
            admitted.append(self._waiting.popleft())
        if len(self._cache):
            self._cache.admit(admitted)
        return bool(len(self._cache))

    def decode(self, most: int = kv_cache.STEPS) -> list[Request]:
        """Decodes all rows for at most that many steps, and releases and returns the requests that are complete."""
        if not self._waiting:
            self._fill_queue()
        return self._cache.decode(most, waiting=bool(self._waiting or self._queue))

    def _fill_queue(self) -> None:
        """Reads the next window if the queue is empty."""
        while not self._queue and (window := next(self._windows, None)) is not None:
            for request in window:
                request.number, self._count = self._count, self._count + 1
            # Within a length that rows are rounded to, neighbours share prefixes.
            self._queue.extend(
                sorted(window, key=lambda request: (-bucket(request.length + kv_cache.STEPS), request.ids))
            )

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
                prefilled[i] = Prefilled(requests[i], read, row * length + positions)
        self._waiting.extend(prefilled[i] for i in range(len(requests)))
        return True
