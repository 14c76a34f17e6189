"""Locates weights: a directory, or a name on the Hugging Face hub."""

import os
import re
from pathlib import Path

from optiml_jax.common import paths
from optiml_jax.common.errors import UserError
from optiml_jax.weights import checksums, directory
from optiml_jax.weights.metaseq import is_metaseq

SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    checksums.FILE,
]
SAFETENSORS = ["*.safetensors", "*.safetensors.index.json"]
BIN = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hf(path: str | os.PathLike) -> bool:
    """Whether `path` is a Hugging Face model directory: it has a `config.json` and no metaseq checkpoint."""
    return (Path(path) / "config.json").is_file() and not is_metaseq(path)


def is_hub_name(source: str) -> bool:
    """Whether `source` has the form of a name on the Hugging Face hub."""
    return HUB_NAME.fullmatch(source) is not None and not source.startswith(".")


def resolve(source: str | os.PathLike) -> Path:
    """Returns the directory of `source`: itself, or the local snapshot of a hub name, downloaded if necessary.

    A metaseq checkpoint (a `.pt` file, or the common name of its files) is returned as it is.

    Raises:
      UserError: `source` is neither a directory nor a hub name, or cannot be downloaded.
    """
    source = paths.local("weights", source)
    if Path(source).is_dir() or is_metaseq(source):
        return Path(source)
    name = str(source)
    if not is_hub_name(name):
        raise UserError(f"{name}: neither a directory nor a hub name such as facebook/opt-125m")
    cached = _cached(name)
    return cached if cached is not None else _download(name)


def _cached(name: str) -> Path | None:
    """The complete local snapshot of `name`, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):  # not cached, or an invalid name, which the hub will report
        return None
    try:
        complete = is_hf(path) and bool(directory.weight_files(path))
    except UserError:  # a shard is missing because an earlier download was interrupted
        complete = False
    return path if complete else None


def _download(name: str) -> Path:
    """Downloads configuration, tokenizer and one form of the weights (facebook/opt-* have up to four)."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        has_safetensors = any(file.endswith(".safetensors") for file in HfApi().list_repo_files(name))
        return Path(snapshot_download(name, allow_patterns=SMALL_FILES + (SAFETENSORS if has_safetensors else BIN)))
    except Exception as error:  # network, authentication and missing repositories come in many classes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name}: not a directory, and downloading it from the hub failed ({reason})") from error
