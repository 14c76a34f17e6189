"""`overlap`: training ids per second, looked up in the 13-grams of an evaluation, compared with Python sets of words.

All sides start from the same ids, as a token store has them, and return the number of 13-grams in both. The ids are
random tokens of ASCII words, so that decoding is lossless. Peers: tuples of decoded words in a set, and the hashed
13-grams looked up by `np.isin` instead of filter and search.
"""

import argparse
import itertools

import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.tokenizer import Tokenizer
from tasks.decontamination import overlap
from tasks.decontamination.overlap import EvaluationExample, Index, N, TokenHashes
from tools.speed.rounds import Side, interleave, row
from tools.speed.rows import FIRST_WORD, MEAN

PLANTED = 100  # every PLANTED-th train sequence is an evaluation example


def compare(flags: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """Returns a row for each peer, and lines that describe the measurement."""
    if min(flags.train_tokens, flags.eval_tokens) < 100 * MEAN:
        raise UserError(f"--train_tokens and --eval_tokens must be at least {100 * MEAN}")
    tokenizer = Tokenizer.load(flags.tokenizer)
    rng = np.random.default_rng(flags.seed)
    written = tokenizer.token_bytes()
    ids = np.array([i for i, piece in enumerate(written) if i >= FIRST_WORD and piece and piece.isascii()], np.uint16)
    evaluated = rng.choice(ids, (int(flags.eval_tokens) // MEAN, MEAN))
    train = rng.choice(ids, (int(flags.train_tokens) // MEAN, MEAN))
    train[::PLANTED] = evaluated[rng.integers(0, len(evaluated), len(train[::PLANTED]))]
    texts = [tokenizer.decode(ids) for ids in evaluated]
    index = Index.build([EvaluationExample(0, str(i), (text,)) for i, text in enumerate(texts)])
    vocabulary = TokenHashes.from_bytes(written)
    step = max(1, overlap.CHUNK // MEAN)
    chunks = [train[start : start + step] for start in range(0, len(train), step)]

    def grams(chunk: np.ndarray) -> np.ndarray:
        return overlap.grams(chunk.ravel(), np.arange(0, chunk.size, MEAN), vocabulary)[0]

    def ours() -> int:
        return sum(len(index.match(grams(chunk))) for chunk in chunks)

    def isin() -> int:
        return sum(int(np.isin(grams(chunk), index.grams).sum()) for chunk in chunks)

    seen = set(itertools.chain.from_iterable(map(_tuples, texts)))

    def in_python() -> int:
        return sum(gram in seen for ids in train for gram in _tuples(tokenizer.decode(ids)))

    sides = [] if flags.no_peer else [Side("a Python set", in_python), Side("np.isin", isin)]
    mine = Side("ours", ours)
    interleave(mine, sides, flags.rounds)
    result = [
        row(f"overlap: a filter and a search; {peer.name if peer else 'no peer'}", "ids/s", train.size, mine, peer)
        | {"exact": peer.first == mine.first if peer else None}
        for peer in sides or [None]
    ]
    notes = [f"{train.size:,} ids against {len(index.grams):,} different {N}-grams, {mine.first:,} found; one process"]
    return result, notes


def _tuples(text: str) -> list[tuple[bytes, ...]]:
    result = overlap.words(text)
    return list(zip(*(result[start:] for start in range(N))))
