"""checksums.json of an export: a hash of each tensor, which is checked on loading."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from optiml_jax.common import typed_json

FILE = "checksums.json"
_REMEDY = "write the export again, or remove this file to load the weights unchecked"


class Checksums(TypedDict):
    """The content of the file: `model.fingerprint.fingerprint` of each tensor as it is stored, by its bare name."""

    tensors: dict[str, str]


def write(directory: Path, tensors: Mapping[str, str]) -> None:
    """Writes the file of a directory."""
    content = Checksums(tensors=dict(tensors))
    (directory / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read(directory: Path) -> dict[str, str]:
    """The checksums of the tensors of a directory; empty if it has none, as those of other programs.

    Raises:
      DataError: the file is damaged.
    """
    file = directory / FILE
    return typed_json.read(file, Checksums, _REMEDY)["tensors"] if file.exists() else {}
