"""Prefix sharing: token sequences are laid out in rows so that common prefixes are computed once.

In sorted order each sequence shares a prefix with its neighbour. Together they form a tree, laid out in depth-first
order, in which every token attends to what it would attend to in a row of its own (`model.visibility`). A prompt is
read once for all its candidates, an instruction with its demonstrations once for all prompts of a row; single-token
candidates add no token at all.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optiml_jax.data.packing import pack

MIN_SHARED = 16  # tokens; sequences that share fewer, such as a leading </s>, form separate trees
ROW_LENGTHS = (32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)  # few, to compile few programs


@dataclasses.dataclass(frozen=True)
class ScoredSequence:
    """Token ids to read, and the targets of the last `len(targets)` of them: `targets[-1]` follows `ids[-1]`."""

    ids: list[int]
    targets: list[int]


class Placement(NamedTuple):
    """Location of a sequence: its row, the positions of all its tokens there, and the slots of its targets."""

    row: int
    positions: np.ndarray
    slots: np.ndarray


@dataclasses.dataclass
class PackedRows:
    """A batch of rows of T positions, with up to M targets per position.

    Attributes:
      arrays: tokens, segment ids, positions and `until`, int32 [B, T]; targets, int32 [B, T, M]; a mask of the
        positions with targets, bool [B, T].
      placements: of the sequences in these rows, by their index.
    """

    arrays: tuple[np.ndarray, ...]
    placements: dict[int, Placement]


def lay_out(sequences: Sequence[ScoredSequence], batch_rows: int, pad_id: int, max_positions: int) -> list[PackedRows]:
    """Lays out sequences in batches of at most `batch_rows` rows and `max_positions` (a single row may be longer).

    Trees are packed into rows of the length that leaves the least to compute, and partly filled rows join those of a
    shorter length. Incomplete batches have sizes of powers of two, so that no row is all padding.
    """
    if not sequences:
        return []
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].ids)
    shared = [0] + [shared_prefix_length(sequences[i].ids, sequences[j].ids) for i, j in itertools.pairwise(order)]
    longest = max(len(sequence.ids) for sequence in sequences)
    lengths = [length for length in ROW_LENGTHS if length >= longest] or [longest]
    plans = [_plan(sequences, order, shared, length) for length in lengths]
    rows_by_length = min(plans, key=lambda rows: sum(length * len(group) for length, group in rows.items()))
    batches = []
    for length, rows in rows_by_length.items():
        max_rows = min(batch_rows, max(1, max_positions // length))
        while rows:
            count = max_rows if len(rows) >= max_rows else 1 << len(rows).bit_length() - 1
            batches.append(_assemble(rows[:count], sequences, length, pad_id))
            rows = rows[count:]
    return batches


def shared_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens in the common prefix of two sequences."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    low, high = 0, n - 1  # a[:low] == b[:low], a[: high + 1] != b[: high + 1]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


Tree = list[tuple[int, int]]  # sequences in order, with the length of the prefix each shares with the one before


def _plan(sequences, order, shared, row_length) -> dict[int, list[list[Tree]]]:
    """Packs trees into rows of at most `row_length` tokens; returns the rows by the shortest length that holds them."""
    trees: list[Tree] = []
    sizes: list[int] = []
    for i, common in zip(order, shared):
        length = len(sequences[i].ids)
        if not trees or common < MIN_SHARED or sizes[-1] + length - common > row_length:
            trees.append([(i, 0)])
            sizes.append(length)
        else:
            trees[-1].append((i, common))
            sizes[-1] += length - common
    rows: dict[int, list[list[Tree]]] = {}
    for members in pack(sizes, row_length):
        used = sum(sizes[tree] for tree in members)
        length = min((length for length in ROW_LENGTHS if length >= used), default=row_length)
        rows.setdefault(length, []).append([trees[tree] for tree in members])
    return rows


def _assemble(rows: list[list[Tree]], sequences: Sequence[ScoredSequence], row_length: int, pad_id: int) -> PackedRows:
    shape = len(rows), row_length
    tokens_BT = np.full(shape, pad_id, np.int32)
    segment_ids_BT, positions_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    until_BT = np.full(shape, row_length, np.int32)
    targets_at: dict[tuple[int, int], dict[int, int]] = {}  # (row, position) -> target -> slot
    placements = {}
    for row, trees in enumerate(rows):
        end = 0
        for segment, tree in enumerate(trees, 1):
            start, path = end, np.zeros(0, np.int64)  # positions of the sequence's tokens, by depth
            for i, common in tree:
                branch = sequences[i].ids[common:]
                positions = np.arange(end, end + len(branch))
                until_BT[row, path[common:]] = end
                tokens_BT[row, positions], positions_BT[row, positions] = branch, common + np.arange(len(branch))
                path = np.concatenate([path[:common], positions])
                end += len(branch)
                slots, targets = [], sequences[i].targets
                for position, target in zip(path[len(path) - len(targets) :].tolist(), targets):
                    slot_by_target = targets_at.setdefault((row, position), {})
                    slots.append(slot_by_target.setdefault(target, len(slot_by_target)))
                placements[i] = Placement(row, path, np.array(slots, np.int64))
            segment_ids_BT[row, start:end] = segment
            until_BT[row, path] = end
    max_targets = max(map(len, targets_at.values()), default=1)
    targets_BTM = np.zeros((*shape, 1 << (max_targets - 1).bit_length()), np.int32)
    label_mask_BT = np.zeros(shape, bool)
    for (row, position), slot_by_target in targets_at.items():
        label_mask_BT[row, position] = True
        targets_BTM[row, position, : len(slot_by_target)] = list(slot_by_target)
    return PackedRows((tokens_BT, segment_ids_BT, positions_BT, until_BT, targets_BTM, label_mask_BT), placements)
