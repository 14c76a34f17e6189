"""Which evaluation examples share a 13-gram with what is trained on (paper 2.3), by task of either side.

Words are runs of bytes between ASCII white space, after ASCII letters are made small and ASCII punctuation is dropped;
other scripts stay as they are. A sequence is an example as it is trained on, or a prompt with its answer and without
demonstrations. 13 words in a row are one 64-bit number, the same whether they come from text or from token ids: a word
is a polynomial in its bytes, which the pieces of a byte-level vocabulary add up to, so that nothing is decoded.

The evaluation side is an index in memory, 8 bytes for each different 13-gram and 4 for each of its examples; the
training side passes by once, a task at a time, whatever its size. Two different 13-grams that meet in one number would
be a false find: of 5 G against 50 M that is expected 0.01 times.
"""

import dataclasses
import functools
import itertools
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from optiml_jax.common.errors import DataError
from optiml_jax.common.files import write_atomically
from optiml_jax.data.store import TOKEN_DTYPE, TokenStore
from optiml_jax.evaluation.prompts.ledger import Prompt
from optiml_jax.tokenizer import join

N = 13
CHUNK = 1 << 17  # tokens, or bytes of text, looked at together: what fits a core's cache
LONGEST = 1 << 23  # tokens of a document in pieces; a longer one is looked at in parts, between which nothing is found
PRIME = 0x9E3779B97F4A7C15  # odd: it has an inverse
INVERSE = pow(PRIME, -1, 1 << 64)
GRAM = {power: np.uint64(pow(0xC2B2AE3D27D4EB4F, power, 1 << 64)) for power in (1, 2, 4)}
LOWER = bytes.maketrans(string.ascii_uppercase.encode(), string.ascii_lowercase.encode())
PUNCTUATION = string.punctuation.encode()
SPACE = b" \t\n\r\x0b\x0c"
WHITE = {bytes([byte]) for byte in SPACE}
UNIT = re.compile(rb"[%b]*[^%b]+|[%b]+" % (SPACE, SPACE, SPACE))  # one word at most, and the white space before it
FILTER_BITS = 16  # of the filter for each 13-gram: one in sixteen of what is not there must be looked up
EXAMPLES = ("evaluation", "example", "train tasks")
HALF = 0.5  # of a task's examples: what more of them share is their wording


def words(text: str) -> list[bytes]:
    """The words of a text, as this module compares them."""
    return text.encode().translate(LOWER, PUNCTUATION).split()


def _mixed(x: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of `x` (the finalizer of splitmix64), in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


_BYTES = [int(value) for value in _mixed(np.arange(1, 257, dtype=np.uint64))]


class Pieces(NamedTuple):
    """What words are put together from: a vocabulary, or the 256 bytes.

    Attributes:
      hashes: uint64 [V], of the bytes of a piece that belong to a word.
      lengths: uint32 [V], how many these are.
      breaks: bool [V], whether a word begins with the piece (or none is: it is white space).
      several: bool [V], of the few pieces with white space behind other bytes: they are those of `parts` in a row.
      parts: such a piece -> others, numbered from V on.
    """

    hashes: np.ndarray
    lengths: np.ndarray
    breaks: np.ndarray
    several: np.ndarray
    parts: Mapping[int, tuple[int, ...]]

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> "Pieces":
        """Of the bytes of each piece."""
        single, parts = list(pieces), {}
        for number, piece in enumerate(pieces):
            if len(found := UNIT.findall(piece)) > 1:
                parts[number] = tuple(range(len(single), len(single) + len(found)))
                single += found
        kept = [
            b"" if number in parts else piece.translate(LOWER, PUNCTUATION + SPACE)
            for number, piece in enumerate(single)
        ]
        several = np.zeros(len(single), bool)
        several[list(parts)] = True
        return cls(
            np.array([_hash(piece) for piece in kept], np.uint64),
            np.array([len(piece) for piece in kept], np.uint32),
            np.array([piece[:1] in WHITE for piece in single], bool),
            several,
            parts,
        )

    def split(self, tokens: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same sequences of pieces that are one each."""
        places = np.flatnonzero(self.several[tokens])
        if not len(places):
            return tokens, starts
        whole, parts = np.split(tokens.astype(np.int64), places), [self.parts[int(tokens[place])] for place in places]
        joined = [whole[0]] + [np.concatenate((part, run[1:])) for part, run in zip(parts, whole[1:])]
        more = np.cumsum([0, *(len(part) - 1 for part in parts)])
        return np.concatenate(joined), starts + more[np.searchsorted(places, starts, "left")]


def _hash(word: bytes) -> int:
    """The polynomial of a word's bytes modulo 2**64."""
    return functools.reduce(lambda hashed, byte: (hashed * PRIME + _BYTES[byte]) % (1 << 64), word, 0)


@functools.cache
def of_bytes() -> Pieces:
    """The pieces of UTF-8 text."""
    return Pieces.of([bytes([byte]) for byte in range(256)])


@functools.lru_cache(maxsize=4)
def _powers(base: int, bits: int) -> np.ndarray:
    """base ** 0, 1, ... modulo 2**64: uint64 [2**bits]."""
    found = np.full(1 << bits, base, np.uint64)
    found[0] = 1
    return np.multiply.accumulate(found)


def grams(tokens: np.ndarray, starts: np.ndarray, pieces: Pieces, goes_on: np.ndarray | None = None):
    """The 13-grams of sequences that lie end to end.

    Args:
      tokens: ids, [n].
      starts: where each sequence starts, [s], ascending from 0.
      goes_on: of each sequence, whether it is the next piece of the one before, whose last token is its first; [s].

    Returns:
      uint64 [g], and the number of the sequence that each is in, [g].
    """
    tokens, starts = pieces.split(tokens, starts)
    hashes, lengths, breaks = pieces.hashes[tokens], pieces.lengths[tokens], pieces.breaks[tokens]
    breaks[starts] = True
    first = np.zeros(len(tokens), np.int32)
    first[starts] = 1
    if goes_on is not None and goes_on.any():
        again = starts[goes_on]
        hashes[again], lengths[again], breaks[again], first[again] = 0, 0, False, 0
    # With S[i] the sum of hash * PRIME**-end over the pieces up to i, a word is (S[last] - S[before]) * PRIME**end.
    ends = np.cumsum(lengths, dtype=np.int64)
    bits = max(20, int(ends[-1]).bit_length())  # the same table for every full chunk
    hashes *= _powers(INVERSE, bits)[ends]
    sums = np.cumsum(hashes, dtype=np.uint64)
    begins = np.flatnonzero(breaks)
    lasts = np.append(begins[1:], len(tokens)) - 1
    before = begins - 1
    sum_before, end_before = sums[before], ends[before]
    if before[0] < 0:
        sum_before[0], end_before[0] = 0, 0
    last_ends = ends[lasts]
    hashed = (sums[lasts] - sum_before) * _powers(PRIME, bits)[last_ends]
    kept = last_ends > end_before
    hashed, sequence = _mixed(hashed[kept]), (np.cumsum(first) - 1)[begins[kept]]
    if len(hashed) < N:
        return hashed[:0], sequence[:0]
    one, count = hashed, len(hashed) - N + 1
    two = one[:-1] * GRAM[1] + one[1:]
    four = two[:-2] * GRAM[2] + two[2:]
    eight = four[:-4] * GRAM[4] + four[4:]
    found = (eight[:count] * GRAM[4] + four[8 : 8 + count]) * GRAM[1] + one[12 : 12 + count]  # 13 = 8 + 4 + 1
    whole = sequence[:count] == sequence[N - 1 :]
    return _mixed(found[whole]), sequence[:count][whole]


class Example(NamedTuple):
    """An evaluation example: the task's number, its name in the task, the texts that it is asked in."""

    task: int
    id: str
    texts: tuple[str, ...]


def examples(prompts: Iterable[Prompt]) -> tuple[list[str], list[Example]]:
    """The tasks of ledgers, and their examples, task by task: prompts without demonstrations, each with an answer that
    is right."""
    tasks: dict[str, int] = {}
    found: dict[tuple[int, str], dict[str, None]] = {}
    for prompt in prompts:
        task = tasks.setdefault(prompt.task, len(tasks))
        text = "".join(join(prompt.without(len(prompt.demonstration_spans)), prompt.references[0], prompt.separator))
        found.setdefault((task, prompt.example_id), {})[text] = None
    return list(tasks), [Example(*key, tuple(found[key])) for key in sorted(found, key=lambda key: key[0])]


def write_examples(path: Path, tasks: Sequence[str], found: Sequence[Example], shared: Mapping[int, int]) -> None:
    """Writes every task that was looked at, then which of its examples share more than wording with how many tasks.

    Args:
      shared: number of an example -> train tasks.
    """
    looked_at = [f"{task}\t\t" for task in tasks]
    lines = [f"{tasks[found[number].task]}\t{found[number].id}\t{count}" for number, count in sorted(shared.items())]
    write_atomically(path, "\n".join(["\t".join(EXAMPLES), *looked_at, *lines]) + "\n")


def read_examples(path: str | os.PathLike) -> dict[str, frozenset[str]]:
    """Task -> ids of its contaminated examples, of every task that was looked at.

    Raises:
      DataError: it is not what `write_examples` wrote.
    """
    try:
        header, *lines = Path(path).read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        if tuple(header.split("\t")) != EXAMPLES or any(len(row) != len(EXAMPLES) for row in rows):
            raise ValueError(f"the columns are not {', '.join(EXAMPLES)}")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no list of examples of tools.find_overlap ({error})") from None
    found: dict[str, set[str]] = {}
    for task, example, _ in rows:
        found.setdefault(task, set()).update([example] if example else [])
    return {task: frozenset(ids) for task, ids in found.items()}


@dataclasses.dataclass(frozen=True)
class Index:
    """The 13-grams of evaluation examples.

    Attributes:
      grams: uint64 [g], ascending, each once.
      first: int64 [g + 1]: the examples of gram i are owners[first[i] : first[i + 1]].
      owners: uint32 [o]: number of an example, shifted left; the lowest bit says that the gram is the wording of its
        task, which more than half of the task's examples have.
      filter: uint8 [2**k / 8], a bit for each value of the highest k bits that a gram has.
    """

    grams: np.ndarray
    first: np.ndarray
    owners: np.ndarray
    filter: np.ndarray

    @classmethod
    def build(cls, found: Sequence[Example]) -> "Index":
        """Of examples, those of a task one after the other."""
        first, parts = 0, []
        for _, group in itertools.groupby(found, key=lambda example: example.task):
            own = list(group)
            parts.append(_of_task(first, own))
            first += len(own)
        every = np.concatenate([part[0] for part in parts] or [np.empty(0, np.uint64)])
        owners = np.concatenate([part[1] for part in parts] or [np.empty(0, np.uint32)])
        order = np.argsort(every, kind="stable")
        every, owners = every[order], owners[order]
        begins = np.flatnonzero(_new(every))
        unique = every[begins]
        bits = max(16, (FILTER_BITS * len(unique)).bit_length())
        places = unique >> np.uint64(64 - bits)
        filter_ = np.zeros(1 << (bits - 3), np.uint8)
        np.bitwise_or.at(filter_, (places >> np.uint64(3)).astype(np.int64), _bit(places))
        return cls(unique, np.append(begins, len(every)), owners, filter_)

    def save(self, directory: Path) -> None:
        """To files that other processes map."""
        for field in dataclasses.fields(self):
            np.save(directory / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, directory: Path) -> "Index":
        """What `save` wrote, mapped: processes share it."""
        return cls(*(np.load(directory / f"{field.name}.npy", mmap_mode="r") for field in dataclasses.fields(cls)))

    def match(self, found: np.ndarray) -> np.ndarray:
        """Positions in `grams` of those of these 13-grams that are there."""
        bits = int(len(self.filter) * 8).bit_length() - 1
        places = found >> np.uint64(64 - bits)
        maybe = found[(self.filter[(places >> np.uint64(3)).astype(np.int64)] & _bit(places)) != 0]
        positions = np.searchsorted(self.grams, maybe)
        positions[positions == len(self.grams)] = 0
        return positions[self.grams[positions] == maybe] if len(self.grams) else positions[:0]

    def shared(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the examples that have one of these grams: any, and one that is not their task's wording."""
        begins, counts = self.first[positions], self.first[positions + 1] - self.first[positions]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        owners = self.owners[np.repeat(begins, counts) + within]
        return np.unique(owners >> 1), np.unique(owners[owners & 1 == 0] >> 1)


def _bit(places: np.ndarray) -> np.ndarray:
    return np.left_shift(np.uint8(1), (places & np.uint64(7)).astype(np.uint8))


def _new(*columns: np.ndarray) -> np.ndarray:
    """Of sorted rows, which differ from the one before: bool [rows]."""
    found = np.zeros(len(columns[0]), bool)
    found[:1] = True
    for column in columns:
        found[1:] |= column[1:] != column[:-1]
    return found


def _of_task(first: int, found: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of 13-gram and owner of one task's examples, numbered from `first`."""
    texts = [(text.encode(), number) for number, example in enumerate(found) for text in example.texts]
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for chunk in _chunks([len(text) + 1 for text, _ in texts]):
        raw = np.frombuffer(b"\n".join(text for text, _ in texts[chunk]) + b"\n", np.uint8)
        starts = np.cumsum([0, *(len(text) + 1 for text, _ in texts[chunk][:-1])])
        hashed, sequence = grams(raw, starts, of_bytes())
        parts.append((hashed, np.array([number for _, number in texts[chunk]], np.int64)[sequence]))
    hashed, owner = (np.concatenate(column) for column in zip(*parts))
    order = np.lexsort((owner, hashed))
    hashed, owner = hashed[order], owner[order]
    new = _new(hashed, owner)
    hashed, owner = hashed[new], owner[new]
    _, which, counts = np.unique(hashed, return_inverse=True, return_counts=True)
    wording = counts[which] > max(1, HALF * len(found))
    return hashed, ((owner + first) << 1 | wording).astype(np.uint32)


def _chunks(lengths: Sequence[int], heads: np.ndarray | None = None) -> Iterator[slice]:
    """Runs of sequences of about `CHUNK` in all. Only where `heads` says so may one start, up to `LONGEST`."""
    start = total = 0
    for number, length in enumerate(lengths):
        if total and total + length > (CHUNK if heads is None or heads[number] else LONGEST):
            yield slice(start, number)
            start, total = number, 0
        total += length
    if total:
        yield slice(start, len(lengths))


def of_store(store: TokenStore, task: str, split: str, pieces: Pieces, index: Index) -> tuple[np.ndarray, int]:
    """What of the index a task of a token store has: positions in `index.grams`, each once; and its tokens."""
    every, flags = store.index(task, split), store.pieces(task, split)
    goes_on = None if flags is None else (flags & 2) != 0
    found = [np.empty(0, np.int64)]
    for path, shard in store.shards(task, split):
        rows, own = every[shard], None if goes_on is None else goes_on[shard]
        with path.open("rb") as file:
            for chunk in _chunks(rows["length"].tolist(), None if own is None else ~own):
                here = rows[chunk]
                tokens = np.fromfile(file, TOKEN_DTYPE, int(here["length"].sum(dtype=np.int64)))
                starts = (here["offset"] - here["offset"][0]).astype(np.int64)
                hashed, _ = grams(tokens, starts, pieces, None if own is None else own[chunk])
                found.append(np.unique(index.match(hashed)))
    return np.unique(np.concatenate(found)), int(every["length"].sum(dtype=np.int64))
