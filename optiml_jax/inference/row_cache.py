"""Requests in rows of one length: decoding in plain JAX."""

from collections.abc import Sequence

import jax
import numpy as np

from optiml_jax.inference import kv_cache
from optiml_jax.inference.batch_cache import BatchCache, padded, read_together
from optiml_jax.inference.network import Network
from optiml_jax.inference.requests import Prefilled, Request
from optiml_jax.model import sharding

LENGTH_STEP = 32  # cache lengths are rounded up to a multiple, to compile few programs


class RowCache(BatchCache):
    """A KV cache of rows that are as long as the longest request needs."""

    def __init__(self, model: Network, max_rows: int) -> None:
        super().__init__(model, max_rows)
        self._row_length = 0

    def reserve(self, request: Request) -> bool:
        positions = self._rounded(len(self) + 1) * self._length([*self._rows, *self._reserved, request])
        fits = not len(self) or positions <= self._model.capacity.cache_positions
        if fits:
            self._reserved.append(request)
        return fits

    def admit(self, prefilled: Sequence[Prefilled]) -> None:
        self._reserved = []
        active = [*self._rows, *(each.request for each in prefilled)]
        self._resize(self._rounded(len(active)), self._length(active))
        free = iter(sorted(set(range(self._row_count)) - set(self._rows.values())))
        for prompts in read_together(prefilled):
            self._rows |= {each.request: next(free) for each in prompts}
            self._copy(prompts)

    def _rounded(self, count: int) -> int:
        """Rows of the cache for `count` prompts: halved from the maximum as often as they fit, to compile few
        programs."""
        rows = self._max_rows
        while rows // 2 >= count:
            rows //= 2
        parts = sharding.batch_parts(self._model.mesh.shape)
        return -(-rows // parts) * parts

    def _length(self, requests: Sequence[Request]) -> int:
        """Length of a cache that holds all the requests: `kv_cache.decode` writes `STEPS` tokens at once."""
        return bucket(max(request.length for request in requests) + kv_cache.STEPS)

    def _resize(self, rows: int, length: int) -> None:
        if (rows, length) == (self._row_count, self._row_length):
            return
        model, order = self._model, list(self._rows.values())
        with jax.set_mesh(model.mesh):
            if order:
                kept_rows = np.array(order + [0] * (rows - len(order)), np.int32)
                self._cache = kv_cache.resize(self._cache, kept_rows, length)
            else:
                self._cache = kv_cache.empty(rows, length, model.config, model.dtype)
        self._rows = {request: row for row, request in enumerate(self._rows)}
        self._row_count, self._row_length = rows, length

    def _copy(self, prompts: Sequence[Prefilled]) -> None:
        """Copies prompts that were read together into the rows of their requests."""
        model = self._model
        rows_A, lengths_A, _, sampling = padded(prompts, self._rows, self._row_count)
        positions_AC = np.zeros((len(rows_A), self._row_length), np.int32)
        for a, each in enumerate(prompts):
            positions_AC[a, : len(each.positions)] = each.positions
        with jax.set_mesh(model.mesh):
            self._cache = kv_cache.admit(
                model.params, self._cache, *prompts[0].read, rows_A, positions_AC, lengths_A, sampling, model.dtype
            )


def bucket(length: int) -> int:
    """`length` rounded up to 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, ...: by at most a quarter from 128 on."""
    step = max(LENGTH_STEP, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step
