"""Finds evaluation examples that share a 13-gram with the training data (paper 2.3), by pairs of tasks.

Words are runs of bytes between ASCII white space, after lower-casing ASCII letters and dropping ASCII punctuation;
other scripts are unchanged. A sequence is a training example, or a prompt with its answer and without demonstrations. A
13-gram is a 64-bit hash, the same from text and from token ids: a word's hash is a polynomial in its bytes, composed
from the hashes of its tokens, so that nothing is decoded.

The evaluation side is an index in memory, 8 bytes per different 13-gram and 4 per example that has it; the training
side is read once, one task at a time, whatever its size. Two different 13-grams with equal hashes would be a false
match: for 5 G against 50 M, 0.01 are expected.
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
from optiml_jax.data.permutation import mix
from optiml_jax.data.store import TOKEN_DTYPE, TokenStore
from optiml_jax.evaluation.prompts.ledger import Prompt
from optiml_jax.tokenizer import join

N = 13
CHUNK = 1 << 17  # tokens, or bytes of text, processed together, to fit a core's cache
LONGEST = 1 << 23  # tokens of a chunked document processed together; no 13-gram is found across such blocks
PRIME = 0x9E3779B97F4A7C15  # odd: it has an inverse
INVERSE = pow(PRIME, -1, 1 << 64)
GRAM = {power: np.uint64(pow(0xC2B2AE3D27D4EB4F, power, 1 << 64)) for power in (1, 2, 4)}
LOWER = bytes.maketrans(string.ascii_uppercase.encode(), string.ascii_lowercase.encode())
PUNCTUATION = string.punctuation.encode()
SPACE = b" \t\n\r\x0b\x0c"
WHITE = {bytes([byte]) for byte in SPACE}
UNIT = re.compile(rb"[%b]*[^%b]+|[%b]+" % (SPACE, SPACE, SPACE))  # at most one word, with the white space before it
FILTER_BITS = 16  # of the filter per 13-gram: one in sixteen absent 13-grams passes it
EXAMPLES = ("evaluation", "example", "train tasks")
HALF = 0.5  # a 13-gram that more of a task's examples have is the task's wording


def words(text: str) -> list[bytes]:
    """The words of a text, as this module compares them."""
    return text.encode().translate(LOWER, PUNCTUATION).split()


_BYTES = [int(value) for value in mix(np.arange(1, 257, dtype=np.uint64))]


class TokenHashes(NamedTuple):
    """Hashes of the tokens of a vocabulary, or of the 256 bytes, from which hashes of words are composed.

    Attributes:
      hashes: uint64 [V], of the bytes of a token that belong to a word.
      lengths: uint32 [V], number of those bytes.
      breaks: bool [V], whether the token starts with white space, which ends a word.
      several: bool [V], whether the token has white space after other bytes; it is then replaced by its `parts`.
      parts: such a token -> the ids of its parts, from V on.
    """

    hashes: np.ndarray
    lengths: np.ndarray
    breaks: np.ndarray
    several: np.ndarray
    parts: Mapping[int, tuple[int, ...]]

    @classmethod
    def from_bytes(cls, tokens: Sequence[bytes]) -> "TokenHashes":
        """Computes the hashes from the bytes of each token."""
        single, parts = list(tokens), {}
        for number, token in enumerate(tokens):
            if len(units := UNIT.findall(token)) > 1:
                parts[number] = tuple(range(len(single), len(single) + len(units)))
                single += units
        word_bytes = [
            b"" if number in parts else token.translate(LOWER, PUNCTUATION + SPACE)
            for number, token in enumerate(single)
        ]
        several = np.zeros(len(single), bool)
        several[list(parts)] = True
        return cls(
            np.array([_hash(token) for token in word_bytes], np.uint64),
            np.array([len(token) for token in word_bytes], np.uint32),
            np.array([token[:1] in WHITE for token in single], bool),
            several,
            parts,
        )

    def split(self, tokens: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Replaces tokens by their parts, and adjusts the starts of sequences."""
        positions = np.flatnonzero(self.several[tokens])
        if not len(positions):
            return tokens, starts
        whole, parts = np.split(tokens.astype(np.int64), positions), [self.parts[int(tokens[i])] for i in positions]
        joined = [whole[0]] + [np.concatenate((part, run[1:])) for part, run in zip(parts, whole[1:])]
        added = np.cumsum([0, *(len(part) - 1 for part in parts)])
        return np.concatenate(joined), starts + added[np.searchsorted(positions, starts, "left")]


def _hash(word: bytes) -> int:
    """Polynomial in a word's bytes modulo 2**64."""
    return functools.reduce(lambda hashed, byte: (hashed * PRIME + _BYTES[byte]) % (1 << 64), word, 0)


@functools.cache
def byte_hashes() -> TokenHashes:
    """The hashes of single bytes, for UTF-8 text."""
    return TokenHashes.from_bytes([bytes([byte]) for byte in range(256)])


@functools.lru_cache(maxsize=4)
def _powers(base: int, bits: int) -> np.ndarray:
    """base ** 0, 1, ... modulo 2**64: uint64 [2**bits]."""
    powers = np.full(1 << bits, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def grams(tokens: np.ndarray, starts: np.ndarray, vocabulary: TokenHashes, continues: np.ndarray | None = None):
    """The 13-grams of sequences that lie end to end.

    Args:
      tokens: ids, [n].
      starts: where each sequence starts, [s], ascending from 0.
      continues: whether each sequence is the next chunk of the one before, whose last token is its first; [s].

    Returns:
      uint64 [g], and the number of the sequence that each is in, [g].
    """
    tokens, starts = vocabulary.split(tokens, starts)
    hashes, lengths, breaks = vocabulary.hashes[tokens], vocabulary.lengths[tokens], vocabulary.breaks[tokens]
    breaks[starts] = True
    first = np.zeros(len(tokens), np.int32)
    first[starts] = 1
    if continues is not None and continues.any():
        repeated = starts[continues]
        hashes[repeated], lengths[repeated], breaks[repeated], first[repeated] = 0, 0, False, 0
    # With S[i] the sum of hash * PRIME**-end over the tokens up to i, a word is (S[last] - S[before]) * PRIME**end.
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
    nonempty = last_ends > end_before
    hashed, sequence = mix(hashed[nonempty]), (np.cumsum(first) - 1)[begins[nonempty]]
    if len(hashed) < N:
        return hashed[:0], sequence[:0]
    single, count = hashed, len(hashed) - N + 1
    two = single[:-1] * GRAM[1] + single[1:]
    four = two[:-2] * GRAM[2] + two[2:]
    eight = four[:-4] * GRAM[4] + four[4:]
    thirteen = (eight[:count] * GRAM[4] + four[8 : 8 + count]) * GRAM[1] + single[12 : 12 + count]  # 13 = 8 + 4 + 1
    whole = sequence[:count] == sequence[N - 1 :]
    return mix(thirteen[whole]), sequence[:count][whole]


class EvaluationExample(NamedTuple):
    """An evaluation example: the task's number, its id in the task, and the texts of its prompts."""

    task: int
    id: str
    texts: tuple[str, ...]


def examples(prompts: Iterable[Prompt]) -> tuple[list[str], list[EvaluationExample]]:
    """The tasks of ledgers and their examples, task by task, with prompts without demonstrations, each with a
    reference."""
    tasks: dict[str, int] = {}
    texts: dict[tuple[int, str], dict[str, None]] = {}
    for prompt in prompts:
        task = tasks.setdefault(prompt.task, len(tasks))
        text = "".join(join(prompt.without(len(prompt.demonstration_spans)), prompt.references[0], prompt.separator))
        texts.setdefault((task, prompt.example_id), {})[text] = None
    keys = sorted(texts, key=lambda key: key[0])
    return list(tasks), [EvaluationExample(*key, tuple(texts[key])) for key in keys]


def write_examples(
    path: Path, tasks: Sequence[str], evaluated: Sequence[EvaluationExample], shared: Mapping[int, int]
) -> None:
    """Writes the checked tasks, then their examples that share more than wording with training, and with how many
    tasks.

    Args:
      shared: number of an example -> number of training tasks.
    """
    checked = [f"{task}\t\t" for task in tasks]
    lines = [f"{tasks[evaluated[i].task]}\t{evaluated[i].id}\t{count}" for i, count in sorted(shared.items())]
    write_atomically(path, "\n".join(["\t".join(EXAMPLES), *checked, *lines]) + "\n")


def read_examples(path: str | os.PathLike) -> dict[str, frozenset[str]]:
    """Task -> ids of its contaminated examples, for every checked task.

    Raises:
      DataError: the file was not written by `write_examples`.
    """
    try:
        header, *lines = Path(path).read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        if tuple(header.split("\t")) != EXAMPLES or any(len(row) != len(EXAMPLES) for row in rows):
            raise ValueError(f"the columns are not {', '.join(EXAMPLES)}")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a list of examples of tools.find_overlap ({error})") from None
    ids: dict[str, set[str]] = {}
    for task, example, _ in rows:
        ids.setdefault(task, set()).update([example] if example else [])
    return {task: frozenset(examples) for task, examples in ids.items()}


@dataclasses.dataclass(frozen=True)
class Index:
    """The 13-grams of evaluation examples.

    Attributes:
      grams: uint64 [g], ascending, without duplicates.
      first: int64 [g + 1]: the examples of gram i are owners[first[i] : first[i + 1]].
      owners: uint32 [o]: number of an example, shifted left; the lowest bit marks a gram that is the wording of its
        task, which more than half of the task's examples have.
      filter: uint8 [2**k / 8], one bit for each value of a gram's highest k bits.
    """

    grams: np.ndarray
    first: np.ndarray
    owners: np.ndarray
    filter: np.ndarray

    @classmethod
    def build(cls, evaluated: Sequence[EvaluationExample]) -> "Index":
        """Builds the index of examples that are grouped by task."""
        first, parts = 0, []
        for _, group in itertools.groupby(evaluated, key=lambda example: example.task):
            task_examples = list(group)
            parts.append(_task_grams(first, task_examples))
            first += len(task_examples)
        all_grams = np.concatenate([part[0] for part in parts] or [np.empty(0, np.uint64)])
        owners = np.concatenate([part[1] for part in parts] or [np.empty(0, np.uint32)])
        order = np.argsort(all_grams, kind="stable")
        all_grams, owners = all_grams[order], owners[order]
        begins = np.flatnonzero(_differs(all_grams))
        unique = all_grams[begins]
        bits = max(16, (FILTER_BITS * len(unique)).bit_length())
        slots = unique >> np.uint64(64 - bits)
        filter_ = np.zeros(1 << (bits - 3), np.uint8)
        np.bitwise_or.at(filter_, (slots >> np.uint64(3)).astype(np.int64), _bit(slots))
        return cls(unique, np.append(begins, len(all_grams)), owners, filter_)

    def save(self, directory: Path) -> None:
        """Writes files that other processes can map."""
        for field in dataclasses.fields(self):
            np.save(directory / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, directory: Path) -> "Index":
        """Maps the files of `save`, so that processes share the memory."""
        return cls(*(np.load(directory / f"{field.name}.npy", mmap_mode="r") for field in dataclasses.fields(cls)))

    def match(self, queries: np.ndarray) -> np.ndarray:
        """Positions in `grams` of those queries that are in it."""
        bits = int(len(self.filter) * 8).bit_length() - 1
        slots = queries >> np.uint64(64 - bits)
        candidates = queries[(self.filter[(slots >> np.uint64(3)).astype(np.int64)] & _bit(slots)) != 0]
        positions = np.searchsorted(self.grams, candidates)
        positions[positions == len(self.grams)] = 0
        return positions[self.grams[positions] == candidates] if len(self.grams) else positions[:0]

    def shared(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the examples that have any of these grams, and of those that have one that is not task wording."""
        begins, counts = self.first[positions], self.first[positions + 1] - self.first[positions]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        owners = self.owners[np.repeat(begins, counts) + within]
        return np.unique(owners >> 1), np.unique(owners[owners & 1 == 0] >> 1)


def _bit(slots: np.ndarray) -> np.ndarray:
    return np.left_shift(np.uint8(1), (slots & np.uint64(7)).astype(np.uint8))


def _differs(*columns: np.ndarray) -> np.ndarray:
    """Which of sorted rows differ from the row before: bool [rows]."""
    differs = np.zeros(len(columns[0]), bool)
    differs[:1] = True
    for column in columns:
        differs[1:] |= column[1:] != column[:-1]
    return differs


def _task_grams(first: int, evaluated: Sequence[EvaluationExample]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of 13-gram and owner of one task's examples, numbered from `first`."""
    texts = [(text.encode(), number) for number, example in enumerate(evaluated) for text in example.texts]

    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for chunk in _chunks([len(text) + 1 for text, _ in texts]):
        raw = np.frombuffer(b"\n".join(text for text, _ in texts[chunk]) + b"\n", np.uint8)
        starts = np.cumsum([0, *(len(text) + 1 for text, _ in texts[chunk][:-1])])
        hashed, sequence = grams(raw, starts, byte_hashes())
        parts.append((hashed, np.array([number for _, number in texts[chunk]], np.int64)[sequence]))
    hashed, owner = (np.concatenate(column) for column in zip(*parts))
    order = np.lexsort((owner, hashed))
    hashed, owner = hashed[order], owner[order]
    differs = _differs(hashed, owner)
    hashed, owner = hashed[differs], owner[differs]
    _, which, counts = np.unique(hashed, return_inverse=True, return_counts=True)
    wording = counts[which] > max(1, HALF * len(evaluated))
    return hashed, ((owner + first) << 1 | wording).astype(np.uint32)


def _chunks(lengths: Sequence[int], heads: np.ndarray | None = None) -> Iterator[slice]:
    """Splits sequences into runs of about `CHUNK` in total. A run may only start where `heads` is true, up to
    `LONGEST`."""
    start = total = 0
    for number, length in enumerate(lengths):
        if total and total + length > (CHUNK if heads is None or heads[number] else LONGEST):
            yield slice(start, number)
            start, total = number, 0
        total += length
    if total:
        yield slice(start, len(lengths))


def store_matches(
    store: TokenStore, task: str, split: str, vocabulary: TokenHashes, index: Index
) -> tuple[np.ndarray, int]:
    """Which grams of the index a task of a token store contains: positions in `index.grams`; and the task's tokens."""
    records, flags = store.index(task, split), store.chunk_flags(task, split)
    continues = None if flags is None else (flags & 2) != 0
    matches = [np.empty(0, np.int64)]
    for path, shard in store.shards(task, split):
        rows, in_shard = records[shard], None if continues is None else continues[shard]
        with path.open("rb") as file:
            for chunk in _chunks(rows["length"].tolist(), None if in_shard is None else ~in_shard):
                examples = rows[chunk]
                tokens = np.fromfile(file, TOKEN_DTYPE, int(examples["length"].sum(dtype=np.int64)))
                starts = (examples["offset"] - examples["offset"][0]).astype(np.int64)
                hashed, _ = grams(tokens, starts, vocabulary, None if in_shard is None else in_shard[chunk])
                matches.append(np.unique(index.match(hashed)))
    return np.unique(np.concatenate(matches)), int(records["length"].sum(dtype=np.int64))
