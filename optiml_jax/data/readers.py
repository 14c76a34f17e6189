"""Registers the processes that read a CACHE_DIR, so that pruning keeps what they read.

A reader writes its manifest to `readers/<name>.json` and holds a lock on `readers/<name>.lock` until it ends, however
it ends. A reader without write access is not registered.
"""

import contextlib
import os
import socket
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path

from optiml_jax.common import files
from optiml_jax.common.errors import UserError
from optiml_jax.data.manifest import Manifest

FOLDER = "readers"


class Reader:
    """A registration, which ends with this object or the process."""

    def __init__(self, manifest_file: Path, lock: contextlib.ExitStack) -> None:
        self._end = weakref.finalize(self, _end, manifest_file, lock)

    def close(self) -> None:
        """Ends the registration."""
        self._end()


def registered(cache_dir: str | os.PathLike, manifest: Manifest) -> Reader | None:
    """Registers this process as a reader of a mixture; returns None without write access."""
    path = Path(cache_dir) / FOLDER / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(files.locked(path.with_suffix(".lock")))
        manifest.write(path)
    except (OSError, UserError):
        stack.close()
        return None
    return Reader(path, stack)


def manifests(cache_dir: str | os.PathLike) -> Iterator[Manifest]:
    """Yields the manifests of running readers, and removes what ended ones have left."""
    for path in sorted((Path(cache_dir) / FOLDER).glob("*.json")):
        lock = path.with_suffix(".lock")
        try:
            with files.locked(lock):
                path.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
        except files.LockedError:
            yield Manifest.read(path)


def _end(manifest_file: Path, lock: contextlib.ExitStack) -> None:
    with contextlib.suppress(OSError):
        manifest_file.unlink(missing_ok=True)
        manifest_file.with_suffix(".lock").unlink(missing_ok=True)
    lock.close()
