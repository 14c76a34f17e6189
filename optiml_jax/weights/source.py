"""Where weights come from: a directory, or a name on the Hugging Face hub."""

import os
import re
from pathlib import Path

from optiml_jax.common.errors import UserError
from optiml_jax.weights import directory
from optiml_jax.weights.metaseq import is_metaseq

SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
]
SAFETENSORS = ["*.safetensors", "*.safetensors.index.json"]
BIN = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hf(path: str | os.PathLike) -> bool:
    """Whether `path` is a Hugging Face model directory: `config.json`, and no metaseq checkpoint beside it."""
    return (Path(path) / "config.json").is_file() and not is_metaseq(path)


def resolve(source: str | os.PathLike) -> Path:
    """The directory of `source`: itself, or the hub's files for a name, from the local cache when they are there.

    A metaseq checkpoint (a `.pt` file, or the name that its files share) stays as it is.

    Raises:
      UserError: neither a directory nor a hub name, or the hub did not give it.
    """
    if Path(source).is_dir() or is_metaseq(source):
        return Path(source)
    name = str(source)
    if not HUB_NAME.fullmatch(name) or name.startswith("."):
        raise UserError(f"{name}: neither a directory nor a hub name such as facebook/opt-125m")
    cached = _cached(name)
    return cached if cached is not None else _download(name)


def _cached(name: str) -> Path | None:
    """The complete local snapshot of `name`, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):  # not there, or not even a valid name: the hub says which
        return None
    try:
        complete = is_hf(path) and bool(directory.weight_files(path))
    except UserError:  # a shard is missing: an earlier download was interrupted
        complete = False
    return path if complete else None


def _download(name: str) -> Path:
    """Fetches configuration, tokenizer and one form of the weights (facebook/opt-* come in up to four)."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        has_safetensors = any(file.endswith(".safetensors") for file in HfApi().list_repo_files(name))
        return Path(snapshot_download(name, allow_patterns=SMALL_FILES + (SAFETENSORS if has_safetensors else BIN)))
    except Exception as error:  # network, authentication and missing repositories come in many classes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name}: no such directory, and the hub did not give it ({reason})") from error
