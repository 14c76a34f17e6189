"""Fingerprints of what an artifact is made from: source code, and raw files by content."""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import optiml_jax

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tasks",)
FOLLOWED = ("optiml_jax.tokenizer",)  # the part of the engine that affects tokens


@functools.cache
def code_version(*modules: str) -> str:
    """This project's version and a hash of these modules and everything of `tasks` that they import.

    A change in another benchmark's module does not affect it.
    """
    files = {name: _file(name) for name in _reached(modules)}
    digest = hashlib.sha256(b"\0".join(name.encode() + files[name].read_bytes() for name in sorted(files)))
    return f"{optiml_jax.__version__}+{digest.hexdigest()[:12]}"


def _reached(modules: Sequence[str]) -> set[str]:
    reached: set[str] = set()
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name not in reached and _file(name) is not None:
            reached.add(name)
            pending += [other for other in imports(_file(name)) if _is_ours(other)]
    return reached


def _is_ours(name: str) -> bool:
    return name in FOLLOWED or name.split(".")[0] in PACKAGES


@functools.cache
def _file(name: str) -> Path | None:
    """A module's file; None if the name is not a module (but something in one)."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


def imports(file: Path) -> Iterator[str]:
    """Names that a source file imports anywhere: modules, and candidates in `from package import name`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class RawFile(TypedDict):
    """Size in bytes, modification time and content of a raw file."""

    bytes: int
    mtime_ns: int
    sha256: str


def raw_files(
    files: Sequence[Path], data_dir: str | os.PathLike | None, earlier: Mapping[str, RawFile] = {}
) -> dict[str, RawFile]:
    """Size, modification time (ns) and sha256 of each raw file, by its path below `data_dir`.

    Args:
      data_dir: folder of the raw files, or the only file; files outside of it belong to the project.
      earlier: an earlier result; files unchanged since then are not read again.
    """
    entries = {}
    for file in files:
        name, status = _name(file, data_dir), file.stat()
        entry = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        before = earlier.get(name, {})
        same = entry.items() <= before.items()
        with file.open("rb") as content:
            digest = before["sha256"] if same else hashlib.file_digest(content, "sha256").hexdigest()
        entries[name] = entry | {"sha256": digest}
    return entries


def unchanged(files: Sequence[Path], data_dir: str | os.PathLike | None, earlier: Mapping[str, RawFile]) -> bool:
    """Whether raw files have the same content as when `earlier` was computed by `raw_files`."""
    return hashes(raw_files(files, data_dir, earlier)) == hashes(earlier)


def hashes(raw: Mapping[str, RawFile]) -> dict[str, str]:
    """The sha256 of each file in a result of `raw_files`."""
    return {name: file["sha256"] for name, file in raw.items()}


def _name(file: Path, data_dir: str | os.PathLike | None) -> str:
    for root in filter(None, (data_dir, data_dir and Path(data_dir).parent, ROOT)):
        with contextlib.suppress(ValueError):
            return file.relative_to(root).as_posix() if file != Path(root) else file.name
    return file.as_posix()
