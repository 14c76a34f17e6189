"""Paths of a CACHE_DIR (format 3), from which every writer and reader takes them.

    store.json                                  the format
    tokenizers/<fingerprint>/                   files of each tokenizer in use
    mixtures/<mixture>/<specification>.json     manifests: the tasks of a mixture and their contents
    tasks/<task>/<content>/                     tokens of a task (`store.py`), named by a hash of their bytes
    renderings/<task>/<origin>.json             what a content was made from
    ledgers/<suite>/<origin>.jsonl              prompt ledgers, named by a hash of what they were made from
    ledgers/<suite>.jsonl                       a copy of the ledger of the suite that was written last
    readers/                                    manifests that running processes read (`readers.py`)

Contents and ledgers are never changed after they have their names, so a reader never sees a rewrite. Manifests,
renderings and `ledgers/<suite>.jsonl` are replaced atomically.
"""

import os
from pathlib import Path
from typing import TypedDict

from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError

FORMAT = 3
HEADER = "store.json"


class Header(TypedDict):
    """The content of `store.json`."""

    format: int


def check_format(cache_dir: str | os.PathLike) -> None:
    """Refuses a folder without a store, or with one of another format.

    Raises:
      UserError: there is none, or its format differs; the message names the way out.
      DataError: the header cannot be read.
    """
    path = Path(cache_dir) / HEADER
    try:
        version = typed_json.read(path, Header, "remove the file and cache again")["format"]
    except FileNotFoundError:
        raise UserError(f"{path}: no token store here; write one with python -m tools.cache_tasks") from None
    if version != FORMAT:
        raise UserError(
            f"{path}: a token store of format {version}, this version reads {FORMAT}; remove {cache_dir} or choose an "
            "empty CACHE_DIR, then cache again: python -m tools.cache_tasks --mixture=NAME --cache_dir=DIR"
        )


def tokenizer_path(cache_dir: str | os.PathLike, fingerprint: str) -> Path:
    """Folder with the files of a tokenizer."""
    return Path(cache_dir) / "tokenizers" / fingerprint[:16]


def manifests(cache_dir: str | os.PathLike, mixture: str = "*") -> list[Path]:
    """Manifests of a mixture, sorted; by default those of all mixtures."""
    return sorted((Path(cache_dir) / "mixtures").glob(f"{mixture}/*.json"))


def manifest_path(cache_dir: str | os.PathLike, mixture: str, key: str) -> Path:
    """Path of the manifest of a mixture; `key`: of its specification."""
    return Path(cache_dir) / "mixtures" / mixture / f"{key}.json"


def content_path(cache_dir: str | os.PathLike, task: str, content: str) -> Path:
    """Folder of the tokens of a task."""
    return Path(cache_dir) / "tasks" / task / content


def rendering_path(cache_dir: str | os.PathLike, task: str, key: str) -> Path:
    """Path of the record of what a task's content was made from."""
    return Path(cache_dir) / "renderings" / task / f"{key}.json"


def ledger_path(cache_dir: str | os.PathLike, suite: str, origin: str | None = None) -> Path:
    """Path of a ledger; without `origin`, of the one that was written last."""
    name = suite if origin is None else f"{suite}/{origin}"
    return Path(cache_dir) / "ledgers" / f"{name}.jsonl"
