"""OPTIML-JAX: OPT-IML (Iyer et al. 2022) in JAX."""

import functools
import hashlib
from pathlib import Path
from typing import Any

__version__ = "0.2.0"


@functools.cache
def code_version(*parts: str) -> str:
    """Returns the version and a 128-bit hash of the source files of this package, which results record.

    Args:
      parts: folders and files of the package; all of it if there is none.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    paths = [package / part for part in parts] or [package]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    for file in sorted(files):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return f"{__version__}+{digest.hexdigest()[:32]}"


def __getattr__(name: str) -> Any:
    """Loads `load_model` on first use, so that `import optiml_jax` does not import jax."""
    if name == "load_model":
        from optiml_jax.inference.model import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
