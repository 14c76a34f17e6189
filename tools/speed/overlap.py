"""`overlap`: ids of a training side a second, looked up in an evaluation's 13-grams, beside sets of words in Python.

All sides start from the same ids, as a token store has them, and end with how many 13-grams are in both. The ids are
random ones of ASCII pieces, so that they decode to what they were. Peers: the ids
decoded, and tuples of words in a set; and our numbers of 13-grams looked up by `np.isin` instead of filter and search.
"""

import argparse
import itertools

import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.tokenizer import Tokenizer
from tasks.decontamination import overlap
from tasks.decontamination.overlap import Example, Index, N, Pieces
from tools.speed.rounds import Side, interleave, row
from tools.speed.rows import FIRST_WORD, MEAN

PLANTED = 100  # one in so many train sequences is an evaluation example


def compare(flags: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """A row for each peer, and lines that say what was measured."""
    if min(flags.train_tokens, flags.eval_tokens) < 100 * MEAN:
        raise UserError(f"--train_tokens and --eval_tokens must be at least {100 * MEAN}")
    tokenizer = Tokenizer.load(flags.tokenizer)
    rng = np.random.default_rng(flags.seed)
    written = tokenizer.pieces()
    ids = np.array([i for i, piece in enumerate(written) if i >= FIRST_WORD and piece and piece.isascii()], np.uint16)
    asked = rng.choice(ids, (int(flags.eval_tokens) // MEAN, MEAN))
    train = rng.choice(ids, (int(flags.train_tokens) // MEAN, MEAN))
    train[::PLANTED] = asked[rng.integers(0, len(asked), len(train[::PLANTED]))]
    texts = [tokenizer.decode(ids) for ids in asked]
    index = Index.build([Example(0, str(i), (text,)) for i, text in enumerate(texts)])
    pieces = Pieces.of(written)
    step = max(1, overlap.CHUNK // MEAN)
    chunks = [train[start : start + step] for start in range(0, len(train), step)]

    def grams(chunk: np.ndarray) -> np.ndarray:
        return overlap.grams(chunk.ravel(), np.arange(0, chunk.size, MEAN), pieces)[0]

    def ours() -> int:
        return sum(len(index.match(grams(chunk))) for chunk in chunks)

    def isin() -> int:
        return sum(int(np.isin(grams(chunk), index.grams).sum()) for chunk in chunks)

    known = set(itertools.chain.from_iterable(map(_tuples, texts)))

    def in_python() -> int:
        return sum(gram in known for ids in train for gram in _tuples(tokenizer.decode(ids)))

    sides = [] if flags.no_peer else [Side("a Python set", in_python), Side("np.isin", isin)]
    mine = Side("ours", ours)
    interleave(mine, sides, flags.rounds)
    found = [
        row(f"overlap: a filter and a search; {peer.name if peer else 'no peer'}", "ids/s", train.size, mine, peer)
        | {"exact": peer.first == mine.first if peer else None}
        for peer in sides or [None]
    ]
    notes = [f"{train.size:,} ids against {len(index.grams):,} different {N}-grams, {mine.first:,} found; one process"]
    return found, notes


def _tuples(text: str) -> list[tuple[bytes, ...]]:
    found = overlap.words(text)
    return list(zip(*(found[place:] for place in range(N))))
