"""Token stores in tests: opening those that a job has written, and writing them by hand."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optiml_jax.data import cache_paths
from optiml_jax.data.manifest import Manifest, TaskSize
from optiml_jax.data.specification import Specification
from optiml_jax.data.store import TokenStore

Example = tuple[Sequence[int], int, str]  # ids, length of the source, name


def only_manifest(cache_dir: Path, mixture: str = "*") -> Path:
    """The only manifest of a cache, or of one of its mixtures."""
    (path,) = cache_paths.manifests(cache_dir, mixture)
    return path


def opened(cache_dir: Path, mixture: str = "*") -> TokenStore:
    """The store of the only manifest of a cache, or of one of its mixtures."""
    return TokenStore.open(only_manifest(cache_dir, mixture))


def counted(cache_dir: Path, task: str) -> dict:
    """Everything that is counted of a task with one rendering and one content."""
    (rendering,) = (cache_dir / "renderings" / task).glob("*.json")
    (content,) = (cache_dir / "tasks" / task).glob("*/train.json")
    return json.loads(rendering.read_text()) | json.loads(content.read_text())


def write_header(cache_dir: Path) -> None:
    (cache_dir / cache_paths.HEADER).write_text(json.dumps({"format": cache_paths.FORMAT}))


def write_content(cache_dir: Path, task: str, content: str, shards: Sequence[Sequence[Example]]) -> Path:
    """The bytes of the format's description, written without the project's writer."""
    write_header(cache_dir)
    folder = cache_dir / "tasks" / task / content
    folder.mkdir(parents=True, exist_ok=True)
    for number, examples in enumerate(shards):
        tokens, index = b"", b""
        for ids, label_start, _ in examples:
            index += np.array([len(tokens) // 2], "<u8").tobytes() + np.array([len(ids), label_start], "<u4").tobytes()
            tokens += np.array(ids, "<u2").tobytes()
        stem = folder / f"train-{number:05d}-of-{len(shards):05d}"
        stem.with_suffix(".tokens").write_bytes(tokens)
        stem.with_suffix(".index").write_bytes(index)
        stem.with_suffix(".ids").write_text("".join(f"{name}\n" for *_, name in examples), encoding="utf-8")
    counts = {
        "shards": len(shards),
        "examples": sum(map(len, shards)),
        "tokens": sum(len(ids) for shard in shards for ids, *_ in shard),
        "label_tokens": sum(len(ids) - start for shard in shards for ids, start, _ in shard),
        "longest_label": max((len(ids) - start for shard in shards for ids, start, _ in shard), default=0),
        "longest_label_example": "?",
        "checksums": {
            path.name: f"{zlib.crc32(path.read_bytes()):08x}" for path in sorted(folder.glob("train-*-of-*"))
        },
    }
    (folder / "train.json").write_text(json.dumps(counts))
    return folder


def manifest(sizes: dict[str, int], content: str = "hand", fingerprint: str = "f" * 64) -> Manifest:
    """A manifest of tasks "benchmark.task" with these sizes."""
    tasks = (TaskSize(name, name.split(".")[0], "c", size, content) for name, size in sizes.items())
    return Manifest("m", tuple(tasks), specification=Specification(fingerprint, 65_536))
