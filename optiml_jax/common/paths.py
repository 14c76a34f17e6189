"""Paths as users write them: `~`, environment variables, and addresses that are no local paths."""

import os
import re
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import UserError

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def local(name: str, path: Any) -> Any:
    """Expands `~` and environment variables in a path; other values than texts are returned as they are.

    Args:
      name: of the setting or flag, for messages.

    Raises:
      UserError: the path is an address such as gs://bucket/run, or a variable is not set.
    """
    if not isinstance(path, str):
        return path
    if address := _ADDRESS.match(path):
        raise UserError(
            f"{name}: {path} is not a local path, and {address[1]}:// is not supported; mount it (a bucket with "
            "gcsfuse, s3fs or rclone), or copy it here"
        )
    if "\0" in path:
        raise UserError(f"{name}: {path!r} has a NUL character, which no path has")
    for match in _VARIABLE.finditer(path):
        if (match[1] or match[2]) not in os.environ:
            raise UserError(f"{name}: {path}: the environment variable {match[1] or match[2]} is not set")
    path = os.path.expandvars(path)
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise UserError(f"{name}: {path}: there is no such user; write the whole path") from None
