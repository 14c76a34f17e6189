"""Requests in the rows of a KV cache: what its two layouts, `row_cache` and `paged_cache`, have in common."""

import abc
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from optiml_jax.inference import kv_cache
from optiml_jax.inference.cache_attention import Reads
from optiml_jax.inference.network import Network
from optiml_jax.inference.requests import Prefilled, Request
from optiml_jax.inference.sampling import GREEDY, Rows


class BatchCache(abc.ABC):
    """The KV cache of a batch, and which requests its rows answer.

    A request first reserves its place, then it is admitted with its prefilled prompt, and released when it is complete.
    """

    def __init__(self, model: Network, max_rows: int) -> None:
        self._model, self._max_rows = model, max_rows
        self._rows: dict[Request, int] = {}  # row by request
        self._reserved: list[Request] = []
        self._cache: kv_cache.Cache | None = None
        self._row_count = 0

    def __len__(self) -> int:
        """Number of requests, admitted or with a reserved place."""
        return len(self._rows) + len(self._reserved)

    @abc.abstractmethod
    def reserve(self, request: Request) -> bool:
        """Reserves a place, if there is one; an empty cache always has one."""

    @abc.abstractmethod
    def admit(self, prefilled: Sequence[Prefilled]) -> None:
        """Copies the prompts of the requests with a reserved place into the cache; resizes it, if that is due."""

    def decode(self, most: int, waiting: bool) -> list[Request]:
        """Decodes all rows, and releases and returns the requests that are complete.

        Args:
          most: steps, up to `kv_cache.STEPS`.
          waiting: whether prompts wait for a row.
        """
        model, rows = self._model, self._row_count
        left_B, sampling = np.zeros(rows, np.int32), [GREEDY] * rows
        for request, row in self._rows.items():
            left_B[row] = request.limit - len(request.generated)
            sampling[row] = request.sampling
        # Return to the host when a quarter of the active rows have finished or, with nothing waiting, when a
        # quarter-size batch suffices.
        count = len(self._rows)
        rest = count - max(1, count // 4) if waiting else rows // 4
        enough = np.int32(rows - rest if rest < count else rows)
        with jax.set_mesh(model.mesh):
            generated_BG, steps, self._cache = kv_cache.decode(
                model.params,
                self._cache,
                left_B,
                enough,
                np.int32(min(most, kv_cache.STEPS)),
                Rows.of(sampling),
                self._reads(),
                model.config,
                model.dtype,
                model.tokenizer.eos_id,
            )
        tokens, steps = model.fetch(generated_BG).tolist(), int(model.fetch(steps))
        complete = [request for request, row in self._rows.items() if request.add(tokens[row][:steps], model)]
        for request in complete:
            self._release(request)
        return complete

    def _reads(self) -> Reads | None:
        """The pages that `cache_attention` reads in the next steps; None for a cache without pages."""
        return None

    def _release(self, request: Request) -> None:
        del self._rows[request]


def padded(
    prompts: Sequence[Prefilled], rows: dict[Request, int], beyond: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Rows | None]:
    """Rows, lengths, the position of the last token as read, and sampling of prompts that are admitted together.

    Their number is rounded up to a power of two, to compile few programs; the rest gets the row `beyond`, in which
    nothing is written.
    """
    count = 1 << (len(prompts) - 1).bit_length()
    rows_A, lengths_A, last_A = np.full(count, beyond, np.int32), np.ones(count, np.int32), np.zeros(count, np.int32)
    for a, (request, _, positions) in enumerate(prompts):
        rows_A[a], lengths_A[a], last_A[a] = rows[request], len(positions), positions[-1]
    sampling = [each.request.sampling for each in prompts] + [GREEDY] * (count - len(prompts))
    return rows_A, lengths_A, last_A, Rows.of(sampling)


def read_together(prefilled: Sequence[Prefilled]) -> Iterator[list[Prefilled]]:
    """Groups of prompts that were read together."""
    for _, group in itertools.groupby(prefilled, key=lambda each: id(each.read)):
        yield list(group)
