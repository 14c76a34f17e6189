"""Output folders that are complete or absent: written under a temporary name, then renamed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from optiml_jax.common.errors import UserError

SMALL_FILES_BYTES = 10_000_000  # allowance for configuration and tokenizer in the check of free space


def prepare(directory: Path, size: int, may_replace: Callable[[Path], bool] = lambda _: False) -> Path:
    """Creates an empty `<directory>.partial` to write to.

    Args:
      size: of the weights, in bytes.
      may_replace: whether the existing contents of `directory` may be replaced.

    Raises:
      UserError: the target is in use, or the disk is too small.
    """
    if directory.exists() and not (directory.is_dir() and (not any(directory.iterdir()) or may_replace(directory))):
        raise UserError(f"{directory}: exists and is not an earlier export; choose another name or remove it")
    partial = directory.with_name(directory.name + ".partial")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)  # left by an export that was killed
        free = shutil.disk_usage(directory.parent).free
        if free < size + SMALL_FILES_BYTES:
            raise UserError(
                f"{directory}: the export needs {size / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free; "
                "make room or choose another disk"
            )
        partial.mkdir()
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror or error})") from error
    return partial


def put_in_place(partial: Path, directory: Path) -> None:
    """Renames the finished folder to its final name; an earlier export is moved aside first and then removed."""
    if directory.exists() and any(directory.iterdir()):
        old = directory.with_name(directory.name + ".replaced")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(directory, old)
        os.replace(partial, directory)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(partial, directory)
