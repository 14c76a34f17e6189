"""Finds the manifest of a mixture in a CACHE_DIR: the one whose specification is that of the settings."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import UserError, nearest
from optiml_jax.data import cache_paths
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.specification import CacheOptions, Specification, absolute


def find_manifest(
    cache_dir: str | os.PathLike,
    mixture: str,
    tokenizer: str | None = None,
    options: CacheOptions | None = None,
    data_dir: str | os.PathLike | None = None,
) -> Path:
    """Returns the path of the manifest.

    Args:
      tokenizer: fingerprint; None: any.
      options: the specification must agree with them; None: any.
      data_dir: the raw files that were cached, if the mixture needs any; None: any.

    Raises:
      UserError: no manifest agrees (the message names what differs), or several do (it names what tells them apart).
    """
    paths = cache_paths.manifests(cache_dir, mixture)
    if not paths:
        cache_paths.check_format(cache_dir)
        names = {path.parent.name for path in cache_paths.manifests(cache_dir)}
        close = nearest(mixture, names)
        raise UserError(f"{cache_dir}: holds no mixture {mixture}{close}; write it with python -m tools.cache_tasks")
    specifications = {path: Manifest.read(path).specification for path in paths}
    matches, reasons = [], []
    for path, specification in specifications.items():
        differences: dict[str, tuple[Any, Any]] = {}
        if options is not None:
            differences |= specification.differences(options)
        if data_dir is not None and specification.data_dir not in (None, absolute(data_dir)):
            differences["data_dir"] = specification.data_dir, absolute(data_dir)
        if tokenizer not in (None, specification.tokenizer):
            differences["tokenizer"] = specification.tokenizer[:12], tokenizer[:12]
        if differences:
            reasons.append(
                ", ".join(f"{name} = {stored!r}, not {value!r}" for name, (stored, value) in differences.items())
            )
        else:
            matches.append(path)
    if not matches:
        raise UserError(
            f"{cache_dir}: mixture {mixture} is cached with {'; or '.join(reasons)}; cache it again with "
            "python -m tools.cache_tasks (a run does so where DATA_DIR is set), or use the cached setting"
        )
    if len(matches) > 1:
        raise UserError(
            f"{cache_dir}: mixture {mixture} is cached {len(matches)} times: {_apart(matches, specifications)}; choose "
            "with these settings (TOKENIZER, DATA_DIR, ...), or with the manifest where a flag takes one"
        )
    return matches[0]


def _apart(paths: Sequence[Path], specifications: Mapping[Path, Specification]) -> str:
    """Describes what tells manifests apart, as in "A.json has data_dir = /a; B.json has data_dir = /b"."""
    fields = {
        path: {"tokenizer": item.tokenizer[:12], "data_dir": item.data_dir, **item.options}
        for path in paths
        for item in [specifications[path]]
    }
    names = sorted({name for values in fields.values() for name in values})
    names = [name for name in names if len({str(values.get(name)) for values in fields.values()}) > 1]
    return "; ".join(
        f"{path} has " + ", ".join(f"{name} = {values.get(name)}" for name in names) for path, values in fields.items()
    )
