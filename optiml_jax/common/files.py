"""Atomic writes, and folders that one process at a time may write. Imports neither jax nor benchmarks."""

import contextlib
import errno
import functools
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import filelock

from optiml_jax.common.errors import UserError, remedy

LOCK, HOLDER = ".lock", ".lock.holder"
NO_LOCKS = errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP


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
        raise _not_written(path, error) from error
    try:
        with writing(path), file:
            yield file
        try:
            temporary.replace(path)
        except OSError as error:
            raise _not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """For a block that writes to an open file: a full disk is an error that names the file.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise _not_written(path, error) from error


def _not_written(path: str | os.PathLike, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error}){remedy(error)}")


def check_output(path: str | os.PathLike, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Checks, before work starts, that a file or a folder can be written.

    Args:
      path: of a file; of a folder if `files` or `folders` are given.
      files, folders: what will be written in the folder.

    Raises:
      UserError: something else has its place, or the place cannot be written.
    """
    path = Path(path)
    files, folders = [path / name for name in files], [path / name for name in folders]
    if not files and not folders:
        files = [path]
    try:
        if in_place := next((file for file in files if file.is_dir()), None):
            raise UserError(f"{in_place}: is a folder, and a file is to be written there; move it or choose another")
        if in_place := next((folder for folder in folders if folder.exists() and not folder.is_dir()), None):
            raise UserError(f"{in_place}: is a file, and a folder is to be written there; move it or choose another")
        for child in (*files, *folders):
            child.lstat() if child.is_symlink() else child.exists()  # raises for a name that is too long
        parent = path.parent if files == [path] else path
        while not parent.exists() and not parent.is_symlink():
            parent = parent.parent
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "no permission" if parent.is_dir() else "not a folder"
        raise UserError(f"{path}: cannot be written ({parent}: {reason})")


def copy_atomically(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies a file so that no reader sees a part of it."""
    with atomic(target) as file, Path(source).open("rb") as content:
        shutil.copyfileobj(content, file)


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text so that no reader sees a partial file."""
    with atomic(path) as file:
        file.write(text.encode())


class LockedError(Exception):
    """Another process holds a lock."""


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Holds a lock file until the block, or the process, ends. Says so once if the file system has no locks.

    Raises:
      LockedError: another process holds it.
      OSError: the file cannot be created.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise LockedError(path) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        _warn_about_locks(str(Path(path).parent))
    try:
        yield
    finally:
        lock.release()


@functools.cache
def _warn_about_locks(directory: str) -> None:
    print(f"{directory}: its file system has no locks; do not let two processes write there at once", file=sys.stderr)


@contextlib.contextmanager
def exclusive(directory: str | os.PathLike, advice: str) -> Iterator[None]:
    """Locks `directory` until the block, or the process, ends.

    Args:
      advice: to a second process, such as "wait for it or choose another MODEL_DIR".

    Raises:
      UserError: another process holds the lock (the message names it), or the folder is not writable.
    """
    path, holder = Path(directory) / LOCK, Path(directory) / HOLDER
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        except LockedError:
            deadline = time.monotonic() + 1
            while not holder.exists() and time.monotonic() < deadline:  # it has just taken the lock
                time.sleep(0.01)
            name = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
            raise UserError(f"{directory}: is being written by {name}; {advice}") from None
        except OSError as error:
            raise UserError(f"{directory}: cannot be written ({error.strerror})") from error
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)
