"""Errors that a user can cause: one line that names the file or flag and the fix, exit code 2, no traceback."""

import difflib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

P, R = ParamSpec("P"), TypeVar("R")


class UserError(Exception):
    """A mistake that the user can correct. The message is one line: what is wrong, where, and what to do."""


class DataError(UserError):
    """Invalid input data. The message names the file (and the record or line)."""


class EmptyLedgerError(DataError):
    """A ledger has no prompt, so that there is nothing to evaluate."""


# Errors of the operating system that a user can mend: of paths, permissions and disks.
MENDABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
MENDABLE |= {errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE}
MENDABLE |= {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE}


SMALLER = "lower BATCH_ROWS or ROW_LENGTH, or raise Computation.accumulation (tools.plan says what fits)"


def remedy(error: OSError) -> str:
    """The way out of a full disk, to be added to a message; empty for other errors."""
    return "; make room, then run the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns '; did you mean a, b?' for the known names closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


def check_known(kind: str, name: str, names: Iterable[str]) -> None:
    """Raises if `name` is not in `names`; the message suggests the closest names, or lists all of them.

    Raises:
      UserError: as in "no mixture sample; did you mean samples?".
    """
    names = sorted(names)
    if name not in names:
        raise UserError(f"no {kind} {name}{nearest(name, names) or '; there are ' + ', '.join(names)}")


def as_user_error(error: Exception) -> UserError | None:
    """Describes an error of a path, a permission, a disk or memory as a `UserError`; returns None for other errors."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in MENDABLE:
        return UserError(f"{error.filename or 'a file'}: {error.strerror}{remedy(error)}")
    if isinstance(error, MemoryError):
        return UserError(f"this machine has too little memory ({_first_line(error)}); {SMALLER}")
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
        return UserError(f"the device has too little memory ({_first_line(error)}); {SMALLER}")
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def named(function: Callable[P, R]) -> Callable[P, R]:
    """Turns the errors of a function that a user can mend into `UserError`s (`as_user_error`)."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (OSError, MemoryError, RuntimeError) as error:
            user_error = None if isinstance(error, BrokenPipeError) else as_user_error(error)
            if user_error is None:
                raise
            raise user_error from error

    return wrapped


def exit_on_user_error(main: Callable[..., None]) -> Callable[..., None]:
    """Turns a `UserError` of an entry point, or an error of a path, a permission or a disk, into one line on stderr and
    exit code 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> None:
        try:
            named(main)(*args, **kwargs)
        except UserError as error:
            # gin appends its own lines to an exception of a configurable
            print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to resume", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:  # `| head` closed the output: not an error, but Python would report one at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return wrapped
