"""The batches that all sides of a benchmark process: packed rows of random examples, or of a token store."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.data.loader import Batch, Loader
from optiml_jax.data.lookup import find_manifest
from optiml_jax.data.manifest import Manifest, TaskSize
from optiml_jax.data.settings import Data
from optiml_jax.data.store import Store, TokenStore
from optiml_jax.tokenizer import OPT_EOS_ID, OPT_PAD_ID

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "tasks" / "samples" / "tokenizer"
PAD, EOS, FIRST_WORD = OPT_PAD_ID, OPT_EOS_ID, 4  # the four lowest ids are special
EXAMPLES = 16_384
# Instruction data is short with a long tail (OPT-IML's corpora: about 261 tokens per example on average, plus
# outputs): lognormal with this median and mean; lengths that do not fit a row are drawn again. Means: 198 in rows of
# 512, 287 in rows of 2,048.
MEDIAN, MEAN = 199, 296


class RandomStore:
    """Examples of random ids in memory, read as a token store is (`optiml_jax.data.block_plan.Store`)."""

    tokenizer_fingerprint = "random"

    def __init__(self, vocab_size: int, row_length: int, label_share: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        lengths = np.empty(0)
        while len(lengths) < EXAMPLES:
            drawn = rng.lognormal(np.log(MEDIAN), np.sqrt(2 * np.log(MEAN / MEDIAN)), EXAMPLES)
            lengths = np.concatenate([lengths, drawn[(drawn >= 2) & (drawn < row_length)]])
        self._lengths = lengths[:EXAMPLES].astype(np.uint32)  # at most a row with </s>
        self._starts = np.cumsum(self._lengths) - self._lengths
        # The closing </s> is a label too.
        self._targets = np.maximum(1, np.round(label_share * (self._lengths + 1)) - 1).astype(np.int64)
        self._ids = rng.integers(FIRST_WORD, vocab_size, int(self._lengths.sum()), np.uint16)

    def stats(self, task: str, split: str) -> dict:
        return {
            "examples": EXAMPLES,
            "longest_label": int(self._targets.max()),
            "longest_label_example": int(self._targets.argmax()),
        }

    def lengths(self, task: str, split: str) -> np.ndarray:
        return self._lengths

    def label_starts(self, task: str, split: str) -> np.ndarray:
        return self._lengths - self._targets

    def input_starts(self, task: str, split: str) -> None:
        return None

    def record_starts(self, task: str, split: str) -> None:
        return None

    def chunk_flags(self, task: str, split: str) -> None:
        return None

    def earlier_labels(self, task: str, split: str) -> None:
        return None

    def read(self, task: str, split: str, i: int) -> tuple[np.ndarray, int]:
        length = int(self._lengths[i])
        return self._ids[self._starts[i] : self._starts[i] + length], length - int(self._targets[i])

    def read_many(self, split: str, examples: Sequence[tuple[str, int]]) -> list[tuple[np.ndarray, int]]:
        return [self.read(task, split, i) for task, i in examples]


def source(flags: argparse.Namespace, vocab_size: int) -> tuple[Store, Manifest, int, int]:
    """Returns store, manifest, and the ids of padding and `</s>`."""
    if flags.cache_dir is None:
        if vocab_size > 2**16:
            raise UserError(f"--vocab_size={vocab_size}: a token store holds ids below {2**16}")
        store = RandomStore(vocab_size, flags.row_length, flags.label_share, flags.seed)
        return store, Manifest("random", (TaskSize("random", "random", "random", EXAMPLES),)), PAD, EOS
    store = TokenStore.open(find_manifest(flags.cache_dir, flags.mixture))
    if store.vocab_size > vocab_size:
        raise UserError(
            f"{flags.cache_dir}: has {store.vocab_size} ids, the model {vocab_size}; choose a different --model"
        )
    tokenizer = store.load_tokenizer()
    return store, store.manifest, tokenizer.pad_id, tokenizer.eos_id


def loader(
    flags: argparse.Namespace, store: Store, manifest: Manifest, pad: int, eos: int, prefetch: int = 0
) -> Loader:
    """Returns the loader of training over `source`."""
    data = Data(
        manifest.name,
        flags.cache_dir or "",
        row_length=flags.row_length,
        batch_rows=flags.rows,
        seed=flags.seed,
        prefetch=prefetch,
    )
    return Loader(store, manifest, data, pad_id=pad, eos_id=eos)


def batches(flags: argparse.Namespace, vocab_size: int) -> list[Batch]:
    """Returns the first `flags.steps` batches of training."""
    with loader(flags, *source(flags, vocab_size)) as rows:
        return [next(rows) for _ in range(flags.steps)]


def describe(batches: list[Batch], flags: argparse.Namespace) -> str:
    """Returns one line with the source of the rows and their contents."""
    documents = sum(len(row) for batch in batches for row in batch.examples)
    tokens = sum(batch.real_tokens for batch in batches)
    labels = sum(batch.local_label_tokens for batch in batches)
    origin = f"{flags.mixture} of {flags.cache_dir}" if flags.cache_dir else "random ids, lognormal lengths"
    return (
        f"{len(batches)} batches of {flags.rows} rows of {flags.row_length} ({origin}): {documents} documents of "
        f"{tokens / documents:.0f} tokens on average, rows {tokens / len(batches) / flags.rows / flags.row_length:.1%} "
        f"full, {labels / tokens:.1%} of the tokens are labels"
    )
