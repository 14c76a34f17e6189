"""The positions that examples take in a row, from their lengths."""

import numpy as np

from optiml_jax.data.settings import Data
from optiml_jax.data.store import SPLIT, Store


def positions(store: Store, data: Data, task: str, examples: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
    """The positions that examples of a task take in a row, at most its length, and their chunk flags: int64, uint8."""
    lengths = store.lengths(task, SPLIT)[examples].astype(np.int64)
    earlier, flags = store.earlier_labels(task, SPLIT), store.chunk_flags(task, SPLIT)
    chunks = np.zeros(len(lengths), np.uint8) if flags is None else flags[examples]
    if earlier is not None:
        numbers = np.arange(len(lengths)) if isinstance(examples, slice) else examples
        lengths = earlier.fitting(numbers, lengths, data.row_length - data.leading_eos)
    lengths = np.minimum(lengths + data.leading_eos * (chunks < 2) - (chunks & 1), data.row_length)
    return lengths, chunks
