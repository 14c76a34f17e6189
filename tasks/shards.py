"""Writes one shard of a task's split: text in, the files of the token store (and the prompts) out. No Beam, no seqio.

Every file gets its name by `os.replace` when it is whole, and `<split>.json` comes last: whatever is killed when, what
has a final name is complete, and a split without its `.json` is not there.
"""

import contextlib
import hashlib
import itertools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optiml_jax.data.store import FORMAT, INDEX_DTYPE, TOKEN_DTYPE, shard_path
from optiml_jax.errors import DataError
from optiml_jax.files import atomic
from optiml_jax.opt.tokenizer import Tokenizer, join
from tasks.example import Example, Skipped
from tasks.registry import Task

BATCH = 1024  # examples tokenised at once
SHARD_BYTES = 64 << 20  # raw bytes of a shard, about 15 seconds of work
LISTED = 1000  # skipped records named in the stats
ROW_LENGTH = 2048  # OPT's; what is longer, with its </s>, is counted as truncated
PROMPT_FORMAT = 1


def write_json(path: Path, content: dict) -> None:
    with atomic(path) as file:
        file.write((json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def shard_count(files: Sequence[Path]) -> int:
    return max(1, -(-sum(file.stat().st_size for file in files) // SHARD_BYTES))


def raw_files(files: Sequence[Path], known: dict | None = None) -> dict[str, dict]:
    """Size, modification time (ns) and sha256 of each raw file; what did not change since `known` is not read again."""
    found = {}
    for file in files:
        name, status = "/".join(file.parts[-2:]), file.stat()
        entry = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        before = (known or {}).get(name, {})
        same = entry.items() <= before.items()
        with file.open("rb") as content:
            digest = before["sha256"] if same else hashlib.file_digest(content, "sha256").hexdigest()
        found[name] = entry | {"sha256": digest}
    return found


def write_shard(
    cache_dir: Path, task: Task, split: str, shard: int, shards: int, tokenizer: Tokenizer, max_label_tokens: int = 0
) -> dict:
    """Writes tokens, index and ids of one shard, and the prompts of a split that is evaluated on.

    Args:
      max_label_tokens: longer labels are skipped and listed; 0 keeps all.

    Returns:
      What the shard holds: counts, longest label and example, skipped records, checksums.

    Raises:
      DataError: see `Task.select`.
    """
    kinds = ("tokens", "index", "ids") if split == "train" else ("tokens", "index", "ids", "prompts")
    paths = {kind: shard_path(cache_dir, task.name, split, shard, shards, kind) for kind in kinds}
    stats = {"examples": 0, "tokens": 0, "label_tokens": 0, "longest_label": 0, "longest_label_example": None}
    stats |= {"longest_example": 0, "skipped": [], "skipped_count": 0, "raw_examples": 0, "truncated": 0}
    checksums = dict.fromkeys(kinds, 0)
    with contextlib.ExitStack() as stack:
        files = {kind: stack.enter_context(atomic(path)) for kind, path in paths.items()}
        selection = task.select(split)
        stats["raw_examples"] = len(range(shard, selection.raw, shards))
        records = iter(selection.records[shard::shards])
        while batch := [x if isinstance(x, Skipped) else task.render(x) for x in itertools.islice(records, BATCH)]:
            _skip(stats, [item for item in batch if isinstance(item, Skipped)])
            content = _encode(
                task, split, [x for x in batch if isinstance(x, Example)], tokenizer, max_label_tokens, stats
            )
            for kind, data in content.items():
                if kind in files:
                    files[kind].write(data)
                    checksums[kind] = zlib.crc32(data, checksums[kind])
    stats["checksums"] = {paths[kind].name: f"{crc:08x}" for kind, crc in checksums.items()}
    return stats


def _skip(stats: dict, skipped: list[Skipped]) -> None:
    stats["skipped_count"] += len(skipped)
    stats["skipped"] += [vars(item) for item in skipped[: LISTED - len(stats["skipped"])]]


def _encode(
    task: Task, split: str, examples: list[Example], tokenizer: Tokenizer, max_label_tokens: int, stats: dict
) -> dict[str, bytes]:
    """One batch as the bytes of each kind of file; adds it to `stats`."""
    pairs = list(zip(examples, *encode([join(example.source, example.target) for example in examples], tokenizer)))
    if max_label_tokens:
        long = [(example, label) for example, _, label in pairs if len(label) > max_label_tokens]
        reason = f"than --max_label_tokens={max_label_tokens}"
        _skip(
            stats, [Skipped(f"{task.name}#{e.id}", f"label of {len(label)} tokens, more {reason}") for e, label in long]
        )
        pairs = [pair for pair in pairs if len(pair[2]) <= max_label_tokens]
    if not pairs:
        return {}
    examples, sources, labels = zip(*pairs)
    label_lengths = np.array([len(label) for label in labels])
    index = np.empty(len(examples), INDEX_DTYPE)
    index["label_start"] = [len(source) for source in sources]
    index["length"] = index["label_start"] + label_lengths
    index["offset"] = stats["tokens"] + np.cumsum(index["length"], dtype=np.uint64) - index["length"]
    count = int(index["length"].sum())
    flat = itertools.chain.from_iterable(itertools.chain.from_iterable(zip(sources, labels)))

    longest = int(label_lengths.argmax())
    if label_lengths[longest] > stats["longest_label"]:
        stats["longest_label"], stats["longest_label_example"] = int(label_lengths[longest]), examples[longest].id
    stats["longest_example"] = max(stats["longest_example"], int(index["length"].max()))
    stats["truncated"] += int((index["length"] + 1 > ROW_LENGTH).sum())
    stats["examples"] += len(examples)
    stats["tokens"] += count
    stats["label_tokens"] += int(label_lengths.sum())
    return {
        "tokens": np.fromiter(flat, TOKEN_DTYPE, count).tobytes(),
        "index": index.tobytes(),
        "ids": b"".join(map(id_line, examples)),
        "prompts": b"" if split == "train" else b"".join(prompt_line(task, example) for example in examples),
    }


def encode(texts: list[tuple[str, str]], tokenizer: Tokenizer) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of sources and of targets. A first line that sources share (a task's definition) is tokenised once.

    A source is cut before a line break that follows a visible character. No piece of the byte-level BPE's pattern holds
    both, so the ids are those of the whole source; a third of the real tokens need not be made again.
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


def id_line(example: Example) -> bytes:
    return f"{example.id}\n".encode()


def prompt_line(task: Task, example: Example) -> bytes:
    """A line of the prompt ledger but for `id` and `suite`, which depend on the mixture."""
    prompt = {
        "format": PROMPT_FORMAT,
        "benchmark": task.benchmark,
        "task": task.name,
        "template": "definition",
        "example_id": example.id,
        "shots": 0,
        "seed": 0,
        "category": task.category,
        "level": task.level,
        "metric": task.metric,
        "prompt": example.source,
        "candidates": example.candidates and list(example.candidates),
        "references": list(example.references),
        "demonstration_ids": [],
    }
    return (json.dumps(prompt, ensure_ascii=False) + "\n").encode()


def finish(cache_dir: Path, identity: dict, raw: dict, shards: list[dict], allow_empty: bool) -> None:
    """Writes `<split>.json`: the split is complete.

    Raises:
      DataError: it has no examples, and that is not allowed.
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
        "longest_example": max(shard["longest_example"] for shard in shards),
        "skipped": list(itertools.chain.from_iterable(shard["skipped"] for shard in shards))[:LISTED],
        "raw": raw,
        "checksums": {name: crc for shard in shards for name, crc in shard["checksums"].items()},
    }
    if not total["examples"] and not allow_empty:
        where = f"{identity['task']} ({', '.join(raw)}): no usable instance for {identity['split']}"
        raise DataError(f"{where}; remove the task or pass --allow_empty_tasks")
    directory = cache_dir / "tasks" / identity["task"]
    write_json(directory / f"{identity['split']}.json", stats)


SUMS = ("examples", "tokens", "label_tokens", "skipped_count", "raw_examples", "truncated")
