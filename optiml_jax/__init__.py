"""OPTIML-JAX: OPT-IML (Iyer et al. 2022) in JAX."""

import functools
import hashlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


@functools.cache
def code_version() -> str:
    """The version and a 128-bit hash of every source file of this package: what a result was computed by."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return f"{__version__}+{digest.hexdigest()[:32]}"


def __getattr__(name: str) -> Any:
    """`load_model`, a model with `logits`, `rank`, `generate` and `save`; importing it imports jax."""
    if name == "load_model":
        from optiml_jax.inference.model import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
