"""Which token stores a CACHE_DIR holds: one a tokenizer, found by themselves.

The first tokenizer's store lies in the folder itself, those of others in `tokenizers/<fingerprint>/`. Prompt ledgers
are text and lie in `ledgers/` of the folder, whatever tokenizer was in use when they were written.
"""

import json
import os
from pathlib import Path

from optiml_jax.common.errors import UserError

OTHERS = "tokenizers"


def store_for(cache_dir: str | os.PathLike, fingerprint: str) -> Path:
    """Where the store of a tokenizer is, or will be."""
    cache_dir = Path(cache_dir)
    if _tokenizer(cache_dir) in (None, fingerprint):
        return cache_dir
    return cache_dir / OTHERS / fingerprint[:16]


def stores(cache_dir: str | os.PathLike) -> list[Path]:
    """Every store there is, the folder's own first."""
    cache_dir = Path(cache_dir)
    return [path for path in (cache_dir, *sorted((cache_dir / OTHERS).glob("*"))) if (path / "store.json").exists()]


def store_with(cache_dir: str | os.PathLike, mixture: str, fingerprint: str | None) -> Path | None:
    """The store that holds a mixture; None where none does.

    Args:
      fingerprint: of the tokenizer; None: of any.

    Raises:
      UserError: several hold it, and no tokenizer says which is meant.
    """
    known = stores(cache_dir) if fingerprint is None else [store_for(cache_dir, fingerprint)]
    found = [path for path in known if manifest_path(path, mixture).exists()]
    if len(found) > 1:
        names = " and ".join(str(path / "tokenizer") for path in found)
        raise UserError(f"{cache_dir}: mixture {mixture} is there for {names}; say which with TOKENIZER (--tokenizer)")
    return found[0] if found else None


def manifest_path(store: str | os.PathLike, mixture: str) -> Path:
    """The mixture's manifest in a store."""
    return Path(store) / "mixtures" / f"{mixture}.json"


def ledger_path(directory: str | os.PathLike, suite: str) -> Path:
    """The suite's ledger, given the CACHE_DIR or any store in it."""
    directory = Path(directory)
    root = directory.parents[1] if directory.parent.name == OTHERS else directory
    return root / "ledgers" / f"{suite}.jsonl"


def _tokenizer(store: Path) -> str | None:
    """The fingerprint of the tokenizer that a store was made with; None where there is no readable store."""
    try:
        return json.loads((store / "store.json").read_text(encoding="utf-8"))["tokenizer"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
