"""Removes what a token store no longer needs: contents, ledgers and tokenizers that no manifest points to."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from optiml_jax.data import cache_paths, readers
from optiml_jax.data.manifest import Manifest
from optiml_jax.evaluation.prompts.ledger import about, about_file
from tasks.caching import build
from tasks.caching.work_item import read_rendering


def run(cache_dir: str | os.PathLike) -> str:
    """Removes what neither a manifest nor a running process uses, and describes it in a line per kind.

    A ledger is kept if a manifest names it or it was the last one of its suite.

    Raises:
      UserError: there is no store, or another process is writing to it.
    """
    cache_dir = Path(cache_dir)
    cache_paths.check_format(cache_dir)
    with build.exclusive(cache_dir):
        manifests = [*map(Manifest.read, cache_paths.manifests(cache_dir)), *readers.manifests(cache_dir)]
        needed = {
            cache_paths.content_path(cache_dir, task.name, task.content)
            for manifest in manifests
            for task in manifest.tasks
        }
        tokens = [path for path in (cache_dir / "tasks").glob("*/*") if path not in needed]
        needed |= {cache_paths.tokenizer_path(cache_dir, manifest.specification.tokenizer) for manifest in manifests}
        tokenizers = [path for path in (cache_dir / "tokenizers").glob("*") if path not in needed]
        needed |= {cache_dir / path for manifest in manifests for path in manifest.ledgers.values()}
        last = {about(path).get("sha256") for path in (cache_dir / "ledgers").glob("*.jsonl")}
        ledgers = [
            path
            for path in (cache_dir / "ledgers").glob("*/*.jsonl")
            if path not in needed and about(path).get("sha256") not in last
        ]
        lines = [
            _remove("contents of tasks", tokens),
            _remove("ledgers", [*ledgers, *map(about_file, ledgers)]),
            _remove("tokenizers", tokenizers),
        ]
        for path in (cache_dir / "renderings").glob("*/*.json"):
            if not cache_paths.content_path(cache_dir, path.parent.name, read_rendering(path)["content"]).exists():
                path.unlink()
        for folder in (*(cache_dir / "tasks").glob("*"), *(cache_dir / "renderings").glob("*")):
            if not any(folder.iterdir()):
                folder.rmdir()
    return "\n".join(lines)


def _remove(kind: str, paths: Iterable[Path]) -> str:
    count = size = 0
    for path in paths:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        size += sum(file.stat().st_size for file in files)
        count += 1
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return f"removed {count:,} {kind}, {size / 1e6:,.1f} MB"
