"""Writes one shard of a task's training examples: text in, files of the token store out. Imports neither Beam nor
seqio.

Every file is written under a temporary name and renamed when it is complete, and `<split>.json` is written last: a file
with its final name is complete, and a split without its `.json` does not exist.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from optiml_jax.common.errors import DataError
from optiml_jax.common.files import atomic
from optiml_jax.data.store import CHUNK_SHIFT, FORMAT, INDEX_DTYPE, SPLIT, TOKEN_DTYPE, shard_path
from optiml_jax.tokenizer import Tokenizer, join
from tasks.example import Example, Skipped
from tasks.prompting.subsampling import REMEDY, Choice, Pool, RecordTemplate
from tasks.task import Task

BATCH = 1024  # examples tokenized at once
SHARD_BYTES = 64 << 20  # raw bytes per shard, about 15 seconds of work
LISTED = 1000  # skipped records listed in the stats
ROW_LENGTH = 2048  # OPT's; a longer example, with its </s>, is counted as truncated or stored in chunks
KINDS = ("tokens", "index", "ids")
SUMS = ("examples", "tokens", "label_tokens", "skipped_count", "raw_examples", "truncated")


def write_json(path: Path, content: dict) -> None:
    with atomic(path) as file:
        file.write((json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def shard_count(files: Sequence[Path]) -> int:
    return max(1, -(-sum(file.stat().st_size for file in files) // SHARD_BYTES))


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of an example. `max_label_tokens`: longer labels are skipped, 0 keeps all. `row_length`: see
    `Task.longer`."""

    max_label_tokens: int = 0
    row_length: int = ROW_LENGTH


def write_shard(
    cache_dir: Path,
    task: Task,
    shard: int,
    shards: int,
    tokenizer: Tokenizer,
    limits: Limits = Limits(),
    choice: Choice | None = None,
) -> dict:
    """Writes tokens, index and ids of one shard of a task's training examples.

    Args:
      choice: the selected pairs, if already known.

    Returns:
      Stats of the shard: counts, longest label, skipped records, checksums.

    Raises:
      DataError: see `Pool`.
    """
    paths = {kind: shard_path(cache_dir, task.name, SPLIT, shard, shards, kind) for kind in KINDS}
    stats = dict.fromkeys(SUMS, 0) | {"longest_label": 0, "longest_label_example": None, "skipped": [], "templates": {}}
    checksums = dict.fromkeys(KINDS, 0)
    with contextlib.ExitStack() as stack:
        files = {kind: stack.enter_context(atomic(path)) for kind, path in paths.items()}
        pool = Pool(task, SPLIT, choice=choice)
        stats["raw_examples"] = len(range(shard, pool.choice.raw, shards))
        pairs = pool.shard(shard, shards)
        while batch := list(itertools.islice(pairs, BATCH)):
            for kind, data in _content(task, _render(pool, batch, stats), tokenizer, limits, stats).items():
                files[kind].write(data)
                checksums[kind] = zlib.crc32(data, checksums[kind])
    stats["checksums"] = {paths[kind].name: f"{crc:08x}" for kind, crc in checksums.items()}
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
    """An example as it is stored. `flags`: of a chunk of a longer document (`TokenStore.chunk_flags`)."""

    name: str
    source: list[int]
    label: list[int]
    flags: int = 0

    @property
    def labels(self) -> int:
        """Number of its label positions in a row, without the one that predicts `</s>`."""
        return len(self.label) - (self.flags & 1) - (self.flags >> 1)


def _content(
    task: Task, named: list[tuple[str, Example]], tokenizer: Tokenizer, limits: Limits, stats: dict
) -> dict[str, bytes]:
    """The bytes of each kind of file for one batch; adds the batch to `stats`."""
    joined = [join(example.source, example.target, example.separator) for _, example in named]
    rows = [EncodedExample(name, *ids) for (name, _), *ids in zip(named, *encode(joined, tokenizer))]
    if task.longer == "chunk":
        rows = [chunk for row in rows for chunk in chunks(row, limits.row_length)]
    if limit := limits.max_label_tokens:
        reason = f"more than --max_label_tokens={limit}"
        long = [row for row in rows if row.labels > limit]
        _skip(stats, [Skipped(f"{task.name}#{row.name}", f"label of {row.labels} tokens, {reason}") for row in long])
        rows = [row for row in rows if row.labels <= limit]
    if not rows:
        return {}
    index = np.empty(len(rows), INDEX_DTYPE)
    index["label_start"] = [len(row.source) for row in rows]
    index["length"] = index["label_start"] + np.array([len(row.label) for row in rows])
    index["offset"] = stats["tokens"] + np.cumsum(index["length"], dtype=np.uint64) - index["length"]
    index["label_start"] |= np.array([row.flags << CHUNK_SHIFT for row in rows], np.uint32)
    count = int(index["length"].sum())
    flat = itertools.chain.from_iterable(itertools.chain(row.source, row.label) for row in rows)

    longest = max(rows, key=lambda row: row.labels)
    if longest.labels > stats["longest_label"]:
        stats["longest_label"], stats["longest_label_example"] = longest.labels, longest.name
    stats["truncated"] += int((index["length"] + 1 > limits.row_length).sum()) if task.longer == "cut" else 0
    stats["examples"] += len(rows)
    stats["tokens"] += count
    stats["label_tokens"] += sum(row.labels for row in rows)
    return {
        "tokens": np.fromiter(flat, TOKEN_DTYPE, count).tobytes(),
        "index": index.tobytes(),
        "ids": "".join(f"{row.name}\n" for row in rows).encode(),
    }


def chunks(document: EncodedExample, row_length: int) -> Iterator[EncodedExample]:
    """Splits a document without a source into chunks that fill rows; an example that fits or has a source is unchanged.

    The targets of a document are its n tokens and `</s>`, each predicted from the token before it (at first `</s>`).
    These n + 1 predictions are split into chunks of a row; a chunk starts with the input token of its first prediction.
    """
    ids = document.label
    if document.source or len(ids) + 1 <= row_length:
        yield document
        return
    for number, start in enumerate(range(0, len(ids) + 1, row_length)):
        stop = min(start + row_length, len(ids) + 1)
        flags = 2 * (start > 0) + (stop <= len(ids))
        yield EncodedExample(f"{document.name}/{number}", [], ids[max(start - 1, 0) : stop], flags)


def encode(texts: list[tuple[str, str]], tokenizer: Tokenizer) -> tuple[list[list[int]], list[list[int]]]:
    """Tokenizes sources and targets. A first line that sources share (a task's definition) is tokenized once.

    A source is split before a line break that follows a visible character. No token of the byte-level BPE's pattern
    spans that position, so the ids are those of the whole source; this saves a third of the work.
    """
    heads, tails, targets = [], [], []
    for source, target in texts:
        end = source.find("\n")
        end = end if end > 0 and not source[end - 1].isspace() else len(source)
        heads.append(source[:end])
        tails.append(source[end:])
        targets.append(target)
    shared = list(dict.fromkeys(heads))
    ids = tokenizer.encode_batch([*shared, *tails, *targets])
    head_ids, rest = dict(zip(shared, ids)), ids[len(shared) :]
    return [head_ids[head] + tail for head, tail in zip(heads, rest)], rest[len(texts) :]


def finish(cache_dir: Path, identity: dict, raw: dict, shards: list[dict], allow_empty: bool) -> None:
    """Writes `train.json`, which completes the split.

    Raises:
      DataError: the split has no examples, and `allow_empty` is False.
    """
    total = {key: sum(shard[key] for shard in shards) for key in SUMS}
    longest = max(shards, key=lambda shard: shard["longest_label"])
    stats = {
        "format": FORMAT,
        **identity,
        "shards": len(shards),
        **total,
        "longest_label": longest["longest_label"],
        "longest_label_example": longest["longest_label_example"],
        "templates": dict(sum((collections.Counter(shard["templates"]) for shard in shards), collections.Counter())),
        "skipped": list(itertools.chain.from_iterable(shard["skipped"] for shard in shards))[:LISTED],
        "raw": raw,
        "checksums": {name: crc for shard in shards for name, crc in shard["checksums"].items()},
    }
    if not total["examples"] and not allow_empty:
        where = f"{identity['task']} ({', '.join(raw)}): no usable instance for {SPLIT}"
        raise DataError(f"{where}; {REMEDY}")
    directory = cache_dir / "tasks" / identity["task"]
    write_json(directory / f"{SPLIT}.json", stats)
