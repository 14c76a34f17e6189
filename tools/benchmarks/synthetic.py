"""A token store of the real mixture's sizes and random ids: 1,545 tasks, 5 million examples, 3 GB."""

import csv
import json
import math
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optiml_jax.data.manifest import Manifest, TaskSize
from optiml_jax.data.store import FORMAT, INDEX_DTYPE, TOKEN_DTYPE, shard_path
from optiml_jax.tokenizer import Tokenizer
from tools.benchmarks.rows import FIRST_WORD, MEAN, MEDIAN

TASKS = 1545
NAME = "synthetic"
LONGEST = 4096  # two rows of 2,048
ROOT = Path(__file__).parents[2]
SIZES = ROOT.parent / "shared" / "data" / "super_natural_instructions" / "task_sizes.tsv"
TOKENIZER = ROOT / "tasks" / "samples" / "tokenizer"


def task_sizes() -> tuple[list[int], str]:
    """Examples of each task, and where the numbers are from."""
    if SIZES.exists():
        with SIZES.open(encoding="utf-8", newline="") as file:
            found = [int(row["number_of_instances_upstream"]) for row in csv.DictReader(file, delimiter="\t")]
        return found[:TASKS], f"the first {TASKS} of {SIZES.name}"
    # the mean and spread of Super-NaturalInstructions, whose tasks have at most 6,500
    drawn = np.random.default_rng(0).lognormal(math.log(1800), 1.2, TASKS)
    return np.clip(drawn, 26, 6500).astype(int).tolist(), "lognormal (there is no task_sizes.tsv)"


def write_store(directory: Path, most: int | None = None) -> str:
    """Writes the store and its mixture `NAME`; at most `most` examples a task. One line that says what it holds."""
    sizes, origin = task_sizes()
    sizes = [min(size, most) for size in sizes] if most else sizes
    rng = np.random.default_rng(0)
    pool = rng.integers(FIRST_WORD, 50_272, 1 << 21, TOKEN_DTYPE)
    shutil.copytree(TOKENIZER, directory / "tokenizer")
    ids = {"fingerprint": Tokenizer.load(TOKENIZER).fingerprint, "vocab_size": 50_272}
    (directory / "store.json").write_text(json.dumps({"format": FORMAT, "tokenizer": ids}))
    tasks, tokens = [], 0
    for number, size in enumerate(sizes):
        name = f"{NAME}.task{number:04d}"
        lengths = rng.lognormal(math.log(MEDIAN), math.sqrt(2 * math.log(MEAN / MEDIAN)), size)
        lengths = np.clip(lengths, 2, LONGEST).astype(np.uint32)
        index = np.zeros(size, INDEX_DTYPE)
        index["length"], index["label_start"] = lengths, lengths - np.clip(lengths * 15 // 100, 1, 512)
        index["offset"] = np.cumsum(lengths, dtype=np.uint64) - lengths
        count = int(lengths.sum())
        paths = {kind: shard_path(directory, name, "train", 0, 1, kind) for kind in ("index", "tokens")}
        paths["index"].parent.mkdir(parents=True)
        content = {"index": index.tobytes(), "tokens": np.resize(np.roll(pool, -number), count).tobytes()}
        for kind, path in paths.items():
            path.write_bytes(content[kind])
        longest = int((index["length"] - index["label_start"]).max())
        stats = {"format": FORMAT, "task": name, "split": "train", "shards": 1, "examples": size, "tokens": count}
        stats |= {"longest_label": longest, "longest_label_example": "?"}
        stats["checksums"] = {paths[kind].name: f"{zlib.crc32(content[kind]):08x}" for kind in paths}
        (paths["index"].parent / "train.json").write_text(json.dumps(stats))
        tasks.append(TaskSize(name, NAME, "random", size))
        tokens += count
    write_manifest(directory, NAME, tasks)
    few = f", at most {most} a task" if most else ""
    return (
        f"{len(sizes):,} tasks, {sum(sizes):,} examples, {tokens:,} tokens ({tokens / sum(sizes):.0f} an example); "
        f"sizes: {origin}{few}"
    )


def write_manifest(directory: Path, name: str, tasks: Sequence[TaskSize]) -> Path:
    path = directory / "mixtures" / f"{name}.json"
    Manifest(name, tuple(tasks)).write(path)
    return path


def some_tasks(directory: Path, count: int) -> Path:
    """The manifest of `count` of the tasks, evenly spaced."""
    tasks = Manifest.read(directory / "mixtures" / f"{NAME}.json").tasks
    return write_manifest(directory, f"{NAME}{count}", [tasks[i * len(tasks) // count] for i in range(count)])
