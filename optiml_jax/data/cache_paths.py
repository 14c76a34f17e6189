"""Paths of token stores (one per tokenizer) and prompt ledgers in a CACHE_DIR.

The store of the first tokenizer lies in the folder itself, those of others in `tokenizers/<fingerprint>/`. Prompt
ledgers hold text, so they lie in the folder's `ledgers/` whatever tokenizer was in use when they were written.
"""

import json
import os
from pathlib import Path

from optiml_jax.common.errors import UserError

OTHERS = "tokenizers"


def store_for(cache_dir: str | os.PathLike, fingerprint: str) -> Path:
    """The folder in which the store of a tokenizer is, or will be."""
    cache_dir = Path(cache_dir)
    if _tokenizer(cache_dir) in (None, fingerprint):
        return cache_dir
    return cache_dir / OTHERS / fingerprint[:16]


def stores(cache_dir: str | os.PathLike) -> list[Path]:
    """All existing stores, the folder's own first."""
    cache_dir = Path(cache_dir)
    return [path for path in (cache_dir, *sorted((cache_dir / OTHERS).glob("*"))) if (path / "store.json").exists()]


def store_with(cache_dir: str | os.PathLike, mixture: str, fingerprint: str | None) -> Path | None:
    """Returns the store that holds a mixture, or None.

    Args:
      fingerprint: of the tokenizer; None for any.

    Raises:
      UserError: several stores hold the mixture and `fingerprint` is None.
    """
    candidates = stores(cache_dir) if fingerprint is None else [store_for(cache_dir, fingerprint)]
    matches = [path for path in candidates if manifest_path(path, mixture).exists()]
    if len(matches) > 1:
        names = " and ".join(str(path / "tokenizer") for path in matches)
        raise UserError(
            f"{cache_dir}: mixture {mixture} is cached for {names}; choose one with TOKENIZER (--tokenizer)"
        )
    return matches[0] if matches else None


def manifest_path(store: str | os.PathLike, mixture: str) -> Path:
    """Path of a mixture's manifest in a store."""
    return Path(store) / "mixtures" / f"{mixture}.json"


def ledger_path(directory: str | os.PathLike, suite: str) -> Path:
    """Path of a suite's ledger, given the CACHE_DIR or any store in it."""
    directory = Path(directory)
    root = directory.parents[1] if directory.parent.name == OTHERS else directory
    return root / "ledgers" / f"{suite}.jsonl"


def _tokenizer(store: Path) -> str | None:
    """The fingerprint of the tokenizer that made a store; None if there is no readable store."""
    try:
        return json.loads((store / "store.json").read_text(encoding="utf-8"))["tokenizer"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
