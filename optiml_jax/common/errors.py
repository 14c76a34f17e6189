"""Errors that a user can cause: one line that names the file or flag and the fix, exit code 2, no traceback."""

import difflib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable


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


def exit_on_user_error(main: Callable[..., None]) -> Callable[..., None]:
    """Turns a `UserError` of an entry point, or an error of a path, a permission or a disk, into one line on stderr and
    exit code 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            # gin appends its own lines to an exception of a configurable
            _end(str(error).splitlines()[0])
        except KeyboardInterrupt:
            print("interrupted; run the same command again to resume", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:  # `| head` closed the output: not an error, but Python would report one at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            if error.errno not in MENDABLE:
                raise
            _end(f"{error.filename or 'a file'}: {error.strerror}{remedy(error)}")

    return wrapped


def _end(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
