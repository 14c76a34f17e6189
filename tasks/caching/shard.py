"""Writes one shard of a task's training examples: text in, files of the token store out. Imports neither Beam nor
seqio.

The files of a content are written to a folder with a temporary name. It is renamed when all of them are complete, to a
hash of their bytes, so that equal contents are stored once.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from optiml_jax.common.errors import DataError
from optiml_jax.common.files import atomic
from optiml_jax.data.specification import DEFAULTS, CacheOptions, digest
from optiml_jax.data.store import (
    CHUNK_SHIFT,
    INDEX_DTYPE,
    INPUT_DTYPE,
    KINDS,
    OPTIONAL_KINDS,
    RECORD_DTYPE,
    SPAN_DTYPE,
    SPLIT,
    TOKEN_DTYPE,
    counts_checksum,
    read_counts,
    shard_path,
)
from optiml_jax.tokenizer import Tokenizer
from tasks.example import Example, Skipped
from tasks.prompting.subsampling import REMEDY, Choice, Pool, RecordTemplate
from tasks.task import Task

BATCH = 1024  # examples tokenized at once
SHARD_BYTES = 64 << 20  # raw bytes per shard, about 15 seconds of work
LISTED = 1000  # skipped records listed in the stats
ROW_LENGTH = CacheOptions().row_length  # OPT's; a longer example, with its </s>, is counted as truncated
COUNTS = ("examples", "tokens", "label_tokens")  # of a content
SUMS = ("raw_examples", "skipped_count", "truncated")  # of a rendering


def write_json(path: Path, content: dict) -> None:
    with atomic(path) as file:
        file.write((json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def shard_count(files: Sequence[Path]) -> int:
    return max(1, -(-sum(file.stat().st_size for file in files) // SHARD_BYTES))


def write_shard(
    directory: Path,
    task: Task,
    shard: int,
    shards: int,
    tokenizer: Tokenizer,
    options: CacheOptions = DEFAULTS,
    choice: Choice | None = None,
) -> dict:
    """Writes tokens, index and ids of one shard of a task's training examples into a folder.

    Args:
      choice: the selected pairs, if already known.

    Returns:
      Stats of the shard: counts, longest label, skipped records, checksums and hashes of the files.

    Raises:
      DataError: see `Pool`.
    """
    kinds = (*KINDS, *OPTIONAL_KINDS)
    paths = {kind: shard_path(directory, SPLIT, shard, shards, kind) for kind in kinds}
    stats = dict.fromkeys((*COUNTS, *SUMS), 0)
    stats |= {f"has_{kind}": False for kind in OPTIONAL_KINDS}
    stats |= {"longest_label": 0, "longest_label_example": None, "skipped": [], "templates": {}}
    stats |= {"last_record": None}
    checksums, hashes = dict.fromkeys(kinds, 0), {kind: hashlib.sha256() for kind in kinds}
    with contextlib.ExitStack() as stack:
        files = {kind: stack.enter_context(atomic(path)) for kind, path in paths.items()}
        pool = Pool(task, SPLIT, choice=choice)
        stats["raw_examples"] = len(range(shard, pool.choice.raw, shards))
        pairs = pool.shard(shard, shards)
        while batch := list(itertools.islice(pairs, BATCH)):
            for kind, data in _content(task, _render(pool, batch, stats), tokenizer, options, stats).items():
                files[kind].write(data)
                checksums[kind] = zlib.crc32(data, checksums[kind])
                hashes[kind].update(data)
    for kind in OPTIONAL_KINDS:
        if not stats[f"has_{kind}"]:
            paths[kind].unlink()
            del checksums[kind], hashes[kind]
    stats["checksums"] = {paths[kind].name: f"{crc:08x}" for kind, crc in checksums.items()}
    stats["hashes"] = {paths[kind].name: hash_.hexdigest() for kind, hash_ in hashes.items()}
    return stats


def _render(pool: Pool, batch: list[RecordTemplate | Skipped], stats: dict) -> list[tuple[str, Example]]:
    """Renders a batch; returns names and examples, and adds skipped records to `stats`."""
    rendered = []
    for pair in batch:
        example = pair if isinstance(pair, Skipped) else pool.render(pair)
        if isinstance(example, Skipped):
            _skip(stats, [example])
        else:
            stats["templates"][pair.template.id] = stats["templates"].get(pair.template.id, 0) + 1
            rendered.append((pool.task.pair_id(*pair), example))
    return rendered


def _skip(stats: dict, skipped: list[Skipped]) -> None:
    stats["skipped_count"] += len(skipped)
    stats["skipped"] += [dataclasses.asdict(item) for item in skipped[: LISTED - len(stats["skipped"])]]


class EncodedExample(NamedTuple):
    """An example as it is stored.

    Attributes:
      source: the ids of everything before the last label.
      flags: of a chunk of a longer document (`TokenStore.chunk_flags`).
      earlier: start and end of the labels in `source`.
      input_start: tokens of the task's instructions and of the line break after them.
      record: id of its record.
    """

    name: str
    source: np.ndarray
    label: np.ndarray
    flags: int = 0
    earlier: tuple[tuple[int, int], ...] = ()
    input_start: int = 0
    record: str = ""

    @property
    def label_lengths(self) -> list[int]:
        """Number of label positions in a row of each label, without those that predict `</s>`; the last label first."""
        last = len(self.label) - (self.flags & 1) - (self.flags >> 1)
        return [last, *(end - start for start, end in self.earlier)]


def _content(
    task: Task, named: list[tuple[str, Example]], tokenizer: Tokenizer, options: CacheOptions, stats: dict
) -> dict[str, bytes]:
    """The bytes of each kind of file for one batch; adds the batch to `stats`."""
    rows = encode_examples(named, tokenizer)
    if task.longer == "chunk":
        rows = [chunk for row in rows for chunk in chunks(row, options.row_length)]
    if limit := options.max_label_tokens:
        reason = f"more than --max_label_tokens={limit}"
        for row in rows:
            if (longest := max(row.label_lengths)) > limit:
                _skip(stats, [Skipped(f"{task.name}#{row.name}", f"label of {longest} tokens, {reason}")])
        rows = [row for row in rows if max(row.label_lengths) <= limit]
    if not rows:
        return {}
    index = np.empty(len(rows), INDEX_DTYPE)
    index["label_start"] = [len(row.source) for row in rows]
    index["length"] = index["label_start"] + np.array([len(row.label) for row in rows])
    index["offset"] = stats["tokens"] + np.cumsum(index["length"], dtype=np.uint64) - index["length"]
    index["label_start"] |= np.array([row.flags << CHUNK_SHIFT for row in rows], np.uint32)
    count = int(index["length"].sum())
    spans = [(stats["examples"] + i, *span) for i, row in enumerate(rows) for span in row.earlier]
    last_labels = [row.label_lengths[0] for row in rows]  # in a row of any length, unlike those of earlier turns
    if (longest := max(last_labels)) > stats["longest_label"]:
        stats["longest_label"] = longest
        stats["longest_label_example"] = rows[last_labels.index(longest)].name
    stats["truncated"] += int((index["length"] + 1 > ROW_LENGTH).sum()) if task.longer == "cut" else 0
    before = [stats["last_record"], *(row.record for row in rows)]
    records = [stats["examples"] + i for i, row in enumerate(rows) if row.record != before[i]]
    stats["last_record"] = before[-1]
    stats["has_records"] |= len(records) < len(rows)
    stats["examples"] += len(rows)
    stats["tokens"] += count
    stats["has_inputs"] |= any(row.input_start for row in rows)
    stats["has_spans"] |= bool(spans)
    stats["label_tokens"] += sum(last_labels) + sum(end - start for _, start, end in spans)
    return {
        "tokens": b"".join(part.tobytes() for row in rows for part in (row.source, row.label)),
        "index": index.tobytes(),
        "ids": "".join(f"{row.name}\n" for row in rows).encode(),
        "inputs": np.array([row.input_start for row in rows], INPUT_DTYPE).tobytes(),
        "records": np.array(records, RECORD_DTYPE).tobytes(),
        "spans": np.array(spans, SPAN_DTYPE).tobytes(),
    }


def chunks(document: EncodedExample, row_length: int) -> Iterator[EncodedExample]:
    """Splits a document without a source into chunks that fill rows; an example that fits or has a source is unchanged.

    The targets of a document are its n tokens and `</s>`, each predicted from the token before it (at first `</s>`).
    These n + 1 predictions are split into chunks of a row; a chunk starts with the input token of its first prediction.
    """
    ids = document.label
    if len(document.source) or len(ids) + 1 <= row_length:
        yield document
        return
    for number, start in enumerate(range(0, len(ids) + 1, row_length)):
        stop = min(start + row_length, len(ids) + 1)
        flags = 2 * (start > 0) + (stop <= len(ids))
        name = f"{document.name}/{number}"
        yield EncodedExample(name, ids[:0], ids[max(start - 1, 0) : stop], flags, record=name)


def encode_examples(named: list[tuple[str, Example]], tokenizer: Tokenizer) -> list[EncodedExample]:
    """Tokenizes examples, given with their names."""
    turns = [example.turns() for _, example in named]
    first = [[example.input_start] + [0] * len(example.earlier_turns) for _, example in named]
    flat = [pair for pairs in turns for pair in pairs]
    encoded = zip(*encode(flat, tokenizer, list(itertools.chain.from_iterable(first))))
    rows = []
    for (name, example), pairs in zip(named, turns):
        source, label, input_start = next(encoded)
        earlier = []
        for _ in pairs[1:]:
            context, answer, _ = next(encoded)
            earlier.append((len(source), len(source) + len(label)))
            source, label = np.concatenate([source, label, context]), answer
        rows.append(EncodedExample(name, source, label, 0, tuple(earlier), input_start, example.id))
    return rows


def encode(
    texts: list[tuple[str, str]], tokenizer: Tokenizer, input_starts: Sequence[int] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Tokenizes sources and targets. What sources share at their start (a task's definition) is tokenized once.

    A source is split where the input of the example starts, else before its first line break, if the split is between
    a visible character and white space: no token of the byte-level BPE's pattern spans such a position, so the ids are
    those of the whole source. This saves a third of the work.

    Args:
      input_starts: `Example.input_start` of each source.

    Returns:
      Ids of the sources and of the targets, and where the input of each source starts in tokens: after the line breaks
      at `input_starts`, so that a separator can take their place (0 where the source cannot be split there).
    """
    heads, tails, targets, at_input = [], [], [], []
    for (source, target), start in zip(texts, input_starts or itertools.repeat(0)):
        splits_at_input = _splits(source, start)
        end = start if splits_at_input else source.find("\n")
        end = end if _splits(source, end) else len(source)
        heads.append(source[:end])
        tails.append(source[end:])
        targets.append(target)
        at_input.append(splits_at_input)
    shared = list(dict.fromkeys(heads))
    ids = tokenizer.encode_batch_to_bytes([*shared, *tails, *targets])
    head_ids, rest = dict(zip(shared, ids)), ids[len(shared) :]
    sources = [np.frombuffer(head_ids[head] + tail, TOKEN_DTYPE) for head, tail in zip(heads, rest)]
    labels = [np.frombuffer(label, TOKEN_DTYPE) for label in rest[len(texts) :]]
    line_break = tokenizer.encode_batch_to_bytes(["\n"])[0]
    starts = []
    for split, head, tail in zip(at_input, heads, rest):
        start = len(head_ids[head])
        while tail.startswith(line_break):
            start, tail = start + len(line_break), tail[len(line_break) :]
        starts.append(start // TOKEN_DTYPE.itemsize if split else 0)
    return sources, labels, starts


def _splits(source: str, end: int) -> bool:
    """Whether a text can be tokenized in two parts that meet at `end`."""
    return 0 < end < len(source) and source[end] in " \n" and not source[end - 1].isspace()


def check_not_empty(task: str, files: Iterable[str], shards: list[dict]) -> None:
    """Refuses a task without examples.

    Raises:
      DataError: names its files.
    """
    if not sum(shard["examples"] for shard in shards):
        raise DataError(f"{task} ({', '.join(files)}): no usable instance for {SPLIT}; {REMEDY}")


def finish(directory: Path, shards: list[dict]) -> str:
    """Completes the content in a folder: writes its counts and renames the folder. Returns the content's name."""
    longest = max(shards, key=lambda shard: shard["longest_label"])
    counts = {
        "shards": len(shards),
        **{name: sum(shard[name] for shard in shards) for name in COUNTS},
        "longest_label": longest["longest_label"],
        "longest_label_example": longest["longest_label_example"],
        "checksums": {name: crc for shard in shards for name, crc in shard["checksums"].items()},
    }
    write_json(directory / f"{SPLIT}.json", counts | {"checksum": counts_checksum(counts)})
    name = digest({name: hash_ for shard in shards for name, hash_ in shard["hashes"].items()})
    target = directory.with_name(name)
    if not is_whole(target):  # a file was lost
        shutil.rmtree(target, ignore_errors=True)
    with contextlib.suppress(OSError):  # the same content exists
        directory.rename(target)
    shutil.rmtree(directory, ignore_errors=True)
    return name


def is_whole(content: Path) -> bool:
    """Whether no file of a content is missing."""
    path = content / f"{SPLIT}.json"
    return path.exists() and all((content / name).exists() for name in read_counts(content, SPLIT)["checksums"])


def account(shards: list[dict]) -> dict:
    """Adds up counts of raw records, skipped records and examples per template over the shards."""
    templates = sum((collections.Counter(shard["templates"]) for shard in shards), collections.Counter())
    skipped = itertools.chain.from_iterable(shard["skipped"] for shard in shards)
    return {
        **{name: sum(shard[name] for shard in shards) for name in SUMS},
        "templates": dict(templates),
        "skipped": list(itertools.islice(skipped, LISTED)),
    }
