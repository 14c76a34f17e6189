"""Loads configuration and parameters from foreign checkpoints."""

import os
from pathlib import Path

import jax.numpy as jnp

from optiml_jax import tokenizer_files
from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError
from optiml_jax.model import layers
from optiml_jax.model.config import OPTConfig
from optiml_jax.weights import checksums, metaseq, peft
from optiml_jax.weights.config import parse_config
from optiml_jax.weights.directory import read_tensors
from optiml_jax.weights.metaseq import is_metaseq, load_metaseq, read_metaseq_config
from optiml_jax.weights.place import place
from optiml_jax.weights.source import resolve


def read_config(source: str | os.PathLike) -> OPTConfig:
    """Reads the architecture of a Hugging Face directory or hub name, of a metaseq checkpoint, or of the weights to
    which an adapter of `peft` belongs.

    A metaseq checkpoint contains its configuration; a `config.json` in its directory takes precedence.

    Raises:
      UserError: `config.json` is missing or unreadable, or describes a model that `OPTConfig` cannot represent.
    """
    path = resolve(source)
    if peft.is_adapter(path):
        return read_config(peft.base_of(path))
    file = (path if path.is_dir() else path.parent) / "config.json"
    if is_metaseq(path) and not file.is_file():
        return read_metaseq_config(path)
    try:
        raw = typed_json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file}: missing; is {file.parent} a Hugging Face model directory?") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from error
    return parse_config(raw, str(file))


def load(
    source: str | os.PathLike,
    config: OPTConfig,
    shardings: dict | None = None,
    dtype: jnp.dtype | dict = jnp.float32,
    separate: bool = False,
) -> dict:
    """Loads parameters from a Hugging Face directory or hub name, from a metaseq checkpoint, or from a folder of
    `peft`, whose adapter is merged into the weights that it names; see `load_hf`."""
    path = resolve(source)
    if peft.is_adapter(path):
        params = peft.merged(load(peft.base_of(path), config, shardings, dtype), path, config)
        return layers.separate(params) if separate else params
    return (load_metaseq if is_metaseq(path) else load_hf)(path, config, shardings, dtype, separate)


def stored_dtype(source: str | os.PathLike, config: OPTConfig) -> jnp.dtype:
    """The widest dtype that the tensors of a checkpoint have on disk; float32 for float64."""
    path = resolve(source)
    if peft.is_adapter(path):
        return stored_dtype(peft.base_of(path), config)
    tensors = metaseq.read_tensors(path, config) if is_metaseq(path) else read_tensors(path)
    widest = max((tensor.dtype for tensor in tensors.values()), key=lambda dtype: dtype.itemsize)
    return jnp.dtype(jnp.float32) if widest.itemsize > 4 else widest


def tokenizer_source(path: Path) -> str | Path:
    """Where the tokenizer is: in the folder of the weights, or in that of an adapter's base, as `peft` writes none."""
    has_tokenizer = any((path / name).exists() for name in (tokenizer_files.PIPELINE, *tokenizer_files.FILES))
    return path if has_tokenizer or not peft.is_adapter(path) else peft.base_of(path)


def load_hf(
    source: str | os.PathLike,
    config: OPTConfig,
    shardings: dict | None = None,
    dtype: jnp.dtype | dict = jnp.float32,
    separate: bool = False,
) -> dict:
    """Loads parameters from a Hugging Face directory or hub name.

    Args:
      source: directory or hub name; safetensors or `.bin`, one file or several, fp32, fp16 or bf16.
      config: usually `read_config(source)`.
      shardings: a tree like the parameters' (`sharding.parameter_shardings`); None puts them on the first device.
      dtype: of the parameters but norms (`abstract_params`); tensors are cast on the device.
      separate: whether the blocks get one array per layer (`model.layers`) instead of stacked ones.

    Returns:
      The tree of `decoder.init_params`.

    Raises:
      UserError: files or tensors are damaged, missing or unexpected, a shape differs, or a value is not finite.
    """
    directory = resolve(source)
    sums = checksums.read(directory)
    return place(read_tensors(directory), config, shardings, dtype, separate, str(directory), sums)
