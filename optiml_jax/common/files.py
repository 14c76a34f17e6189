"""Atomic writes, and folders that one process at a time may write. Imports neither jax nor benchmarks."""

import contextlib
import fcntl
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from optiml_jax.common.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file that gets its name only if the block succeeds; otherwise nothing is left behind.

    Raises:
      UserError: the file cannot be created.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # unique: another worker may write the same path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("wb")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    try:
        with file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text so that no reader sees a partial file."""
    with atomic(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def exclusive(directory: str | os.PathLike, remedy: str) -> Iterator[None]:
    """Locks `directory` for this process until the block, or the process, ends.

    Args:
      remedy: advice to a second process, such as "wait for it or choose another MODEL_DIR".

    Raises:
      UserError: another process holds the lock (the message names it), or the folder is not writable.
    """
    path = Path(directory) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{directory}: is being written by {holder}; {remedy}") from None
        except OSError:  # a network file system without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
