"""What an artifact follows from beside its settings: source code, and raw files by content."""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import optiml_jax

PACKAGES = ("tasks",)
FOLLOWED = ("optiml_jax.tokenizer",)  # of the engine, what decides a token


@functools.cache
def code_version(*modules: str) -> str:
    """This project's version and a hash of these modules and everything of `tasks` that they import, whole files.

    A benchmark's own: a changed comment in another benchmark's module changes nothing.
    """
    files = {name: _file(name) for name in _reached(modules)}
    digest = hashlib.sha256(b"\0".join(name.encode() + files[name].read_bytes() for name in sorted(files)))
    return f"{optiml_jax.__version__}+{digest.hexdigest()[:12]}"


def _reached(modules: Sequence[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and _file(name) is not None:
            found.add(name)
            waiting += [other for other in imports(_file(name)) if _is_ours(other)]
    return found


def _is_ours(name: str) -> bool:
    return name in FOLLOWED or name.split(".")[0] in PACKAGES


@functools.cache
def _file(name: str) -> Path | None:
    """The module's file; None where the name is none of a module (but of something in one)."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


def imports(file: Path) -> Iterator[str]:
    """Names that a source file imports anywhere: modules, and what may be one in `from package import name`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


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


def unchanged(files: Sequence[Path], known: dict) -> bool:
    """Whether raw files have the content that they had when `known` was noted (`raw_files`)."""
    found = raw_files(files, known)
    return {name: file["sha256"] for name, file in found.items()} == {n: f["sha256"] for n, f in known.items()}
