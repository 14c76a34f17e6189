"""What describes a cached mixture: the manifest that the engine draws from, the ledger of evaluation prompts."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from optiml_jax.data.caches import ledger_path, manifest_path
from optiml_jax.data.sampling import manifest_checksum
from optiml_jax.data.store import FORMAT, shard_path
from optiml_jax.evaluation.ledger import about_file, write_about
from optiml_jax.files import atomic
from tasks import mixtures, prompts
from tasks.mixtures import Mixture
from tasks.registry import Benchmark, coverage
from tasks.shards import write_json


def read_stats(cache_dir: str | os.PathLike, task: str, split: str) -> dict | None:
    """The stats of a finished split; None when it is not finished."""
    path = Path(cache_dir) / "tasks" / task / f"{split}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def remove(cache_dir: str | os.PathLike, mixture: str) -> None:
    """Before its tasks change: a mixture that is described is complete."""
    ledger = ledger_path(cache_dir, mixture)
    for path in (manifest_path(cache_dir, mixture), about_file(ledger), ledger):
        path.unlink(missing_ok=True)


def write_manifest(cache_dir: str | os.PathLike, mixture: Mixture, found: Benchmark) -> None:
    """`mixtures/<mixture>.json`: the tasks that are drawn from and their sizes, before the cap."""
    rows = [
        {"name": task.name, "benchmark": task.benchmark, "category": task.category, "examples": examples}
        for task in mixtures.trained(found.tasks)
        if (examples := read_stats(cache_dir, task.name, "train")["examples"])
    ]
    proportions = dict(mixture.proportions) if mixture.proportions else None
    manifest = {"format": FORMAT, "name": mixture.name, "eps": mixture.eps, "benchmarks": proportions, "tasks": rows}
    manifest["coverage"] = coverage(found)
    manifest["checksum"] = manifest_checksum(manifest)
    write_json(manifest_path(cache_dir, mixture.name), manifest)


def write_ledger(cache_dir: str | os.PathLike, suite: str, found: Benchmark, max_prompts: int) -> int:
    """`ledgers/<suite>.jsonl`: the prompts of every test and validation split, in order of task and file.

    Args:
      max_prompts: of one split, chosen by example id; 0 keeps all.

    Returns:
      How many prompts there are.
    """
    count, path = 0, ledger_path(cache_dir, suite)
    about_file(path).unlink(missing_ok=True)
    with atomic(path) as file:
        for task, split in mixtures.evaluated(found.tasks):
            lines = list(_prompts(cache_dir, task.name, split))
            if 0 < max_prompts < len(lines):
                key = {line["example_id"]: prompts.draw("ledger", task.name, line["example_id"]) for line in lines}
                last = sorted(key.values())[max_prompts - 1]
                lines = [line for line in lines if key[line["example_id"]] <= last]
            count += len(lines)
            for line in lines:
                parts = (suite, task.name, line["template"], line["example_id"], line["shots"], line["seed"])
                line = {"format": line["format"], "id": "/".join(map(str, parts)), "suite": suite} | line
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    write_about(path, coverage(found))
    return count


def _prompts(cache_dir: str | os.PathLike, task: str, split: str) -> Iterator[dict]:
    shards = read_stats(cache_dir, task, split)["shards"]
    for shard in range(shards):
        with shard_path(cache_dir, task, split, shard, shards, "prompts").open("rb") as lines:
            yield from map(json.loads, lines)
