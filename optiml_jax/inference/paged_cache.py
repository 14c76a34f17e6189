"""Requests in a KV cache of pages: decoding with the kernel of `cache_attention`.

Rows of any length share the pages of their device, and rows with the same leading tokens share the pages that hold
them: they are stored once and read once. A request has all pages that it can need from the start, so that none waits
for another in the middle of its answer.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from optiml_jax.inference import kv_cache
from optiml_jax.inference.batch_cache import BatchCache, padded, read_together
from optiml_jax.inference.cache_attention import PAGE, Reads, plan_reads
from optiml_jax.inference.network import Network
from optiml_jax.inference.requests import Prefilled, Request
from optiml_jax.model import sharding
from optiml_jax.model.config import OPTConfig

FEWEST = 256  # tokens that are copied at once are rounded up to a power of two, from here on


@dataclasses.dataclass
class _Place:
    """Where a request is: its device, its pages there, and how many of them hold tokens of earlier requests."""

    device: int
    pages: list[int]
    shared: int


class _Pages:
    """The pages of one device."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._users: collections.Counter[int] = collections.Counter()
        self._page_of: dict[int, int] = {}  # by what `prefix_numbers` says of its content
        self._number_of: dict[int, int] = {}

    def take(self, numbers: Sequence[int], count: int) -> tuple[list[int], int] | None:
        """Takes `count` pages, of which the first hold the tokens that `numbers` identify.

        Returns:
          The pages, and how many of them were in use with that content already; None if too few are free.
        """
        pages = []
        for number in numbers:
            if number not in self._page_of:
                break
            pages.append(self._page_of[number])
        shared = len(pages)
        if count - shared > len(self._free):
            return None
        pages += [self._free.pop() for _ in range(count - shared)]
        for number, page in zip(numbers[shared:], pages[shared:]):
            self._page_of[number], self._number_of[page] = page, number
        self._users.update(pages)
        return pages, shared

    def give_back(self, pages: Sequence[int]) -> None:
        """Ends one use of each page; those without another are free."""
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                self._free.append(page)
                self._page_of.pop(self._number_of.pop(page, None), None)


class PagedCache(BatchCache):
    """A KV cache of pages. Needs parameters with one array per layer."""

    def __init__(self, model: Network, max_rows: int) -> None:
        devices = sharding.batch_parts(model.mesh.shape)
        super().__init__(model, -(-max_rows // devices) * devices)
        self._most = most_pages(model.config)
        rows = self._max_rows // devices
        self._page_count = min(rows * self._most, page_count(model.config, model.capacity.cache_positions // devices))
        self._pages = [_Pages(self._page_count) for _ in range(devices)]
        self._places: dict[Request, _Place] = {}

    def reserve(self, request: Request) -> bool:
        """Reserves the pages of a request on the device with the fewest requests that has enough of them."""
        numbers, count = prefix_numbers(request.ids), -(-request.length // PAGE)
        loads = collections.Counter(place.device for place in self._places.values())
        for device in sorted(range(len(self._pages)), key=lambda device: loads[device]):
            if loads[device] >= self._max_rows // len(self._pages):
                break
            if (taken := self._pages[device].take(numbers, count)) is not None:
                self._places[request] = _Place(device, *taken)
                self._reserved.append(request)
                return True
        return False

    def _release(self, request: Request) -> None:
        super()._release(request)
        place = self._places.pop(request)
        self._pages[place.device].give_back(place.pages)

    def _rounded(self, count: int) -> int:
        """Rows for `count` prompts on every device: quartered from the maximum, since each number of rows is a program
        of its own."""
        rows = self._max_rows // len(self._pages)
        while rows // 4 >= count:
            rows //= 4
        return rows * len(self._pages)

    def admit(self, prefilled: Sequence[Prefilled]) -> None:
        self._reserved = []
        loads = collections.Counter(place.device for place in self._places.values())
        self._set_rows(self._rounded(max(loads.values())))
        each_device = self._row_count // len(self._pages)
        used = set(self._rows.values())
        for request, *_ in prefilled:
            first = self._places[request].device * each_device
            self._rows[request] = next(row for row in range(first, first + each_device) if row not in used)
            used.add(self._rows[request])
        for prompts in read_together(prefilled):
            self._copy(prompts)

    def _set_rows(self, rows: int) -> None:
        """Changes the number of rows; pages stay where they are."""
        if rows == self._row_count:
            return
        model = self._model
        each_device, count = rows // len(self._pages), collections.Counter()
        new_rows = {}
        for request in self._rows:
            device = self._places[request].device
            new_rows[request] = device * each_device + count[device]
            count[device] += 1
        with jax.set_mesh(model.mesh):
            if self._cache is None:
                pages = self._page_count * len(self._pages)
                self._cache = kv_cache.empty_pages(pages, PAGE, rows, model.config, model.dtype)
            else:
                old_rows = np.zeros(rows, np.int32)
                for request, row in new_rows.items():
                    old_rows[row] = self._rows[request]
                self._cache = kv_cache.select_rows(self._cache, old_rows)
        self._rows, self._row_count = new_rows, rows

    def _copy(self, prompts: Sequence[Prefilled]) -> None:
        model, page_count = self._model, self._page_count
        rows_A, lengths_A, last_A, sampling = padded(prompts, self._rows, self._row_count)
        sources, targets = [], []
        for request, _, positions in prompts:
            place = self._places[request]
            copied = np.arange(place.shared * PAGE, len(positions))
            pages = place.device * page_count + np.asarray(place.pages, np.int32)[copied // PAGE]
            sources.append(positions[copied])
            targets.append(np.stack([pages, copied % PAGE]))
        source, target = np.concatenate(sources), np.concatenate(targets, 1)
        count = max(FEWEST, 1 << max(0, len(source) - 1).bit_length())
        source_M = np.zeros(count, np.int32)
        target_2M = np.full((2, count), page_count * len(self._pages), np.int32)  # beyond the last page
        source_M[: len(source)], target_2M[:, : len(source)] = source, target
        with jax.set_mesh(model.mesh):
            self._cache = kv_cache.admit_to_pages(
                model.params,
                self._cache,
                *prompts[0].read,
                source_M,
                target_2M,
                rows_A,
                lengths_A,
                last_A,
                sampling,
                model.dtype,
            )

    def _reads(self) -> Reads:
        tables: list[Sequence[int]] = [()] * self._row_count
        for request, row in self._rows.items():
            filled = len(request.ids) + len(request.generated) + kv_cache.STEPS
            tables[row] = self._places[request].pages[: -(-filled // PAGE)]
        return plan_reads(tables, self._most, len(self._pages))


def page_count(config: OPTConfig, positions: int) -> int:
    """Pages of a device with room for so many positions, but at least for one prompt of the longest length."""
    return max(most_pages(config), positions // PAGE)


def most_pages(config: OPTConfig) -> int:
    """Pages of a row of the longest length."""
    return -(-config.max_positions // PAGE)


def prefix_numbers(ids: Sequence[int]) -> list[int]:
    """Numbers that identify the whole pages of a prompt, each with all tokens before it: 64 bits of a hash."""
    digest, numbers = b"", []
    for end in range(PAGE, len(ids) + 1, PAGE):
        digest = hashlib.blake2b(digest + np.asarray(ids[end - PAGE : end], np.int32).tobytes()).digest()
        numbers.append(int.from_bytes(digest[:8], "little"))
    return numbers
