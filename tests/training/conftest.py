"""Packed rows for the small model of `tests/conftest.py`."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def batch() -> dict:
    """Eight rows of 64: documents of random length, about a third of each labelled, some padding; uneven over rows."""
    rng = np.random.default_rng(0)
    rows = {name: np.zeros((8, 64), np.int32) for name in ("tokens_BT", "targets_BT", "segment_ids_BT", "positions_BT")}
    rows["label_mask_BT"] = np.zeros((8, 64), bool)
    rows["tokens_BT"][:] = rows["targets_BT"][:] = 1
    for row in range(8):
        start, segment = 0, 1
        while (length := int(rng.integers(1, 30))) + start <= 64:
            here = slice(start, start + length)
            text = rng.integers(4, 256, length + 1)
            rows["tokens_BT"][row, here], rows["targets_BT"][row, here] = text[:-1], text[1:]
            rows["segment_ids_BT"][row, here], rows["positions_BT"][row, here] = segment, np.arange(length)
            if row:  # the first row has no label at all
                rows["label_mask_BT"][row, start + length - max(1, length // 3) : start + length] = True
            start, segment = start + length, segment + 1
    return rows
