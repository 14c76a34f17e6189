"""Documents that start alike, laid out in rows so that what they share is computed once.

Sorted, each document shares its start with its neighbour: together they are a tree, written in depth-first order, where
every token sees what it would see alone (`model.visibility`). So a prompt is read once for all its candidates, and an
instruction with its demonstrations once for all prompts of a row; candidates of one token add no token at all.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optiml_jax.data.packing import pack

LEAST_SHARED = 16  # tokens; documents that share fewer, such as a leading </s>, are trees of their own
ROWS = (32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)  # lengths of rows: few programs to compile


@dataclasses.dataclass(frozen=True)
class Document:
    """`ids` are read; the last of them are asked about what follows: `targets[-1]`, if any, follows `ids[-1]`."""

    ids: list[int]
    targets: list[int]


class Place(NamedTuple):
    """Where a document lies: its row, the places of all its tokens in it, and the slots of its targets."""

    row: int
    tokens: np.ndarray
    slots: np.ndarray


@dataclasses.dataclass
class Rows:
    """A batch of rows; T positions, M targets of a position at most.

    Attributes:
      arrays: tokens, segment ids, positions and `until`, int32 [B, T]; targets [B, T, M]; which positions have some,
        bool [B, T].
      places: of the documents of these rows, by their number.
    """

    arrays: tuple[np.ndarray, ...]
    places: dict[int, Place]


def lay_out(documents: Sequence[Document], batch_rows: int, pad_id: int, most_positions: int) -> list[Rows]:
    """All documents in batches of at most `batch_rows` rows and `most_positions` (a single row may be longer).

    Trees are packed into rows of the length that leaves the least to compute, and rows that are not full join those of
    a shorter length. Rows that do not fill a batch come in powers of two: no row is padding alone.
    """
    order = sorted(range(len(documents)), key=lambda i: documents[i].ids)
    shared = [0] + [shared_start(documents[i].ids, documents[j].ids) for i, j in itertools.pairwise(order)]
    longest = max(len(document.ids) for document in documents)
    lengths = [length for length in ROWS if length >= longest] or [longest]
    planned = [_plan(documents, order, shared, length) for length in lengths]
    alike = min(planned, key=lambda rows: sum(length * len(some) for length, some in rows.items()))
    batches = []
    for length, rows in alike.items():
        most = min(batch_rows, max(1, most_positions // length))
        while rows:
            count = most if len(rows) >= most else 1 << len(rows).bit_length() - 1
            batches.append(_emit(rows[:count], documents, length, pad_id))
            rows = rows[count:]
    return batches


def shared_start(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two documents share at their start."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    low, high = 0, n - 1  # a[:low] == b[:low], a[: high + 1] != b[: high + 1]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


Tree = list[tuple[int, int]]  # documents in order, with the tokens that each shares with the one before


def _plan(documents, order, shared, row_length) -> dict[int, list[list[Tree]]]:
    """Rows of trees, of at most `row_length` tokens, by the shortest length that holds them."""
    trees: list[Tree] = []
    sizes: list[int] = []
    for i, common in zip(order, shared):
        length = len(documents[i].ids)
        if not trees or common < LEAST_SHARED or sizes[-1] + length - common > row_length:
            trees.append([(i, 0)])
            sizes.append(length)
        else:
            trees[-1].append((i, common))
            sizes[-1] += length - common
    rows: dict[int, list[list[Tree]]] = {}
    for members in pack(sizes, row_length):
        used = sum(sizes[tree] for tree in members)
        length = min((length for length in ROWS if length >= used), default=row_length)
        rows.setdefault(length, []).append([trees[tree] for tree in members])
    return rows


def _emit(rows: list[list[Tree]], documents: Sequence[Document], row_length: int, pad_id: int) -> Rows:
    shape = len(rows), row_length
    tokens_BT = np.full(shape, pad_id, np.int32)
    segment_ids_BT, positions_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    until_BT = np.full(shape, row_length, np.int32)
    asked: dict[tuple[int, int], dict[int, int]] = {}  # (row, position) -> target -> slot
    places = {}
    for row, trees in enumerate(rows):
        end = 0
        for segment, tree in enumerate(trees, 1):
            start, path = end, np.zeros(0, np.int64)  # places of the document's tokens, by depth
            for i, common in tree:
                fresh = documents[i].ids[common:]
                here = np.arange(end, end + len(fresh))
                until_BT[row, path[common:]] = end
                tokens_BT[row, here], positions_BT[row, here] = fresh, common + np.arange(len(fresh))
                path = np.concatenate([path[:common], here])
                end += len(fresh)
                found, targets = [], documents[i].targets
                for position, target in zip(path[len(path) - len(targets) :].tolist(), targets):
                    slots = asked.setdefault((row, position), {})
                    found.append(slots.setdefault(target, len(slots)))
                places[i] = Place(row, path, np.array(found, np.int64))
            segment_ids_BT[row, start:end] = segment
            until_BT[row, path] = end
    most = max(map(len, asked.values()), default=1)
    targets_BTM = np.zeros((*shape, 1 << (most - 1).bit_length()), np.int32)
    label_mask_BT = np.zeros(shape, bool)
    for (row, position), slots in asked.items():
        label_mask_BT[row, position] = True
        targets_BTM[row, position, : len(slots)] = list(slots)
    return Rows((tokens_BT, segment_ids_BT, positions_BT, until_BT, targets_BTM, label_mask_BT), places)
