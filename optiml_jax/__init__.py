"""OPTIML-JAX: OPT-IML (Iyer et al. 2022) in JAX."""

import functools
import hashlib
from pathlib import Path

__version__ = "0.1.0"


@functools.cache
def code_version() -> str:
    """The version and a 128-bit hash of every source file of this package: what a result was computed by."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return f"{__version__}+{digest.hexdigest()[:32]}"


def load_model(source: str, **options):
    """A model with `logits`, `rank`, `generate` and `save`; see `optiml_jax.model.load_model`."""
    from optiml_jax.model import load_model as load  # here, so that reading a token store does not import jax

    return load(source, **options)
