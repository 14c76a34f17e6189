"""Token stores of real sizes and random ids: 1,545 tasks with 5 million examples (3 GB), and all tasks of the paper."""

import csv
import dataclasses
import json
import math
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optiml_jax.data import cache_paths
from optiml_jax.data.manifest import Manifest, TaskSize, present
from optiml_jax.data.specification import Specification
from optiml_jax.data.store import INDEX_DTYPE, KINDS, TOKEN_DTYPE, shard_path
from optiml_jax.tokenizer import Tokenizer
from tasks.catalog import mixtures
from tasks.catalog.registry import catalog
from tasks.task import MAX_EXAMPLES
from tools.dataset_statistics import TABLE_1
from tools.speed.data import SYNTHETIC_TASKS as TASKS
from tools.speed.rows import FIRST_WORD, MEAN, MEDIAN, ROOT, TOKENIZER

NAME = "synthetic"
WHOLE = "opt_iml_max"
LONGEST = 4096  # two rows of 2,048
SIZES = ROOT.parent / "shared" / "data" / "super_natural_instructions" / "task_sizes.tsv"


def upstream() -> dict[str, int]:
    """Returns the instances of each task of Super-NaturalInstructions, if its list of sizes is available."""
    if not SIZES.exists():
        return {}
    with SIZES.open(encoding="utf-8", newline="") as file:
        return {row["task"]: int(row["number_of_instances_upstream"]) for row in csv.DictReader(file, delimiter="\t")}


def task_sizes() -> tuple[list[TaskSize], str]:
    """Returns `TASKS` tasks of one benchmark, and the source of their sizes."""
    if tasks_ := list(upstream().values())[:TASKS]:
        return named(tasks_), f"the first {TASKS} of {SIZES.name}"
    # the mean and spread of Super-NaturalInstructions, whose tasks have at most 6,500
    drawn = np.random.default_rng(0).lognormal(math.log(1800), 1.2, TASKS)
    return named(np.clip(drawn, 26, 6500).astype(int).tolist()), "lognormal (there is no task_sizes.tsv)"


def named(sizes: Sequence[int]) -> list[TaskSize]:
    """Returns tasks of one benchmark with these sizes."""
    return [TaskSize(f"{NAME}.task{number:04d}", NAME, "random", size) for number, size in enumerate(sizes)]


def opt_iml_max() -> tuple[list[TaskSize], str]:
    """Returns all tasks of the catalog on which `opt_iml_max` trains. A task has the mean size of its benchmark in the
    paper's Table 1, with the same cap; tasks of Super-NaturalInstructions have their own sizes if they are known."""
    mixture, sizes = mixtures.MIXTURES[WHOLE], upstream()
    listed = [row for benchmark in mixture.benchmarks for row in catalog(benchmark).values()]
    tasks = []
    for row in listed:
        paper = TABLE_1.get(row.benchmark)
        mean = int(paper.examples / paper.tasks) if paper else MAX_EXAMPLES
        size = sizes.get(row.name.partition(".")[2], min(mean, MAX_EXAMPLES))
        if row.split in mixture.splits:
            tasks.append(TaskSize(row.name, row.benchmark, row.category, size))
    return tasks, f"means of the paper's Table 1{f' and {SIZES.name}' if sizes else ''}"


def write_store(
    directory: Path, described: tuple[list[TaskSize], str], most: int | None = None, linked: bool = False
) -> tuple[Path, str]:
    """Writes a store of tasks and a mixture of all of them.

    Args:
      described: the tasks, and the source of their sizes.
      most: maximum examples per task.
      linked: tasks of equal size share one file, which is sufficient to measure startup.

    Returns:
      The mixture's manifest, and a line that describes it.
    """
    tasks, origin = described
    if most:
        tasks = [dataclasses.replace(task, examples=min(task.examples, most)) for task in tasks]
    rng = np.random.default_rng(0)
    pool = rng.integers(FIRST_WORD, 50_272, 1 << 21, TOKEN_DTYPE)
    fingerprint = Tokenizer.load(TOKENIZER).fingerprint
    shutil.copytree(TOKENIZER, cache_paths.tokenizer_path(directory, fingerprint))
    (directory / cache_paths.HEADER).write_text(json.dumps({"format": cache_paths.FORMAT}))
    examples = tokens = 0
    written: dict[int, tuple[dict, dict[str, Path]]] = {}
    tasks = [dataclasses.replace(task, content="random") for task in tasks]
    for number, task in enumerate(tasks):
        content = cache_paths.content_path(directory, task.name, task.content)
        paths = {kind: shard_path(content, "train", 0, 1, kind) for kind in KINDS}
        content.mkdir(parents=True)
        if linked and task.examples in written:
            counts, others = written[task.examples]
            for kind, path in paths.items():
                os.link(others[kind], path)
        else:
            counts, files = _random(rng, np.roll(pool, -number), task.examples)
            for kind, path in paths.items():
                path.write_bytes(files[kind])
            written[task.examples] = counts, paths
        (content / "train.json").write_text(json.dumps(counts))
        examples, tokens = examples + task.examples, tokens + counts["tokens"]
    few = f", at most {most} per task" if most else ""
    return _mixture(directory, tasks, Specification(fingerprint, 50_272)), (
        f"{len(tasks):,} tasks, {examples:,} examples, {tokens:,} tokens ({tokens / examples:.0f} per example); "
        f"sizes: {origin}{few}"
    )


def _random(rng: np.random.Generator, pool: np.ndarray, size: int) -> tuple[dict, dict[str, bytes]]:
    """Returns counts and files of a task."""
    lengths = rng.lognormal(math.log(MEDIAN), math.sqrt(2 * math.log(MEAN / MEDIAN)), size)
    lengths = np.clip(lengths, 2, LONGEST).astype(np.uint32)
    index = np.zeros(size, INDEX_DTYPE)
    index["length"], index["label_start"] = lengths, lengths - np.clip(lengths * 15 // 100, 1, 512)
    index["offset"] = np.cumsum(lengths, dtype=np.uint64) - lengths
    count = int(lengths.sum())
    content = {"index": index.tobytes(), "tokens": np.resize(pool, count).tobytes()}
    content["ids"] = "".join(f"{i}\n" for i in range(size)).encode()
    longest = int((index["length"] - index["label_start"]).max())
    counts = {
        "shards": 1,
        "examples": size,
        "tokens": count,
        "label_tokens": int((index["length"] - index["label_start"]).sum()),
    }
    counts |= {"longest_label": longest, "longest_label_example": "?"}
    counts["checksums"] = {
        shard_path("", "train", 0, 1, kind).name: f"{zlib.crc32(data):08x}" for kind, data in content.items()
    }
    return counts, content


def some_tasks(whole: Path, count: int) -> Path:
    """Returns a manifest with `count` evenly spaced tasks of another."""
    manifest = Manifest.read(whole)
    tasks = [manifest.tasks[i * len(manifest.tasks) // count] for i in range(count)]
    return _mixture(whole.parents[2], tasks, manifest.specification)


def _mixture(directory: Path, tasks: Sequence[TaskSize], specification: Specification) -> Path:
    name = f"{NAME}{len(tasks)}"
    path = cache_paths.manifest_path(directory, name, "random")
    proportions = present(mixtures.PROPORTIONS, tasks) or None
    Manifest(name, tuple(tasks), benchmarks=proportions, specification=specification).write(path)
    return path
