"""Export to Hugging Face: safetensors, `config.json` and the tokenizer, in a folder that is complete or absent."""

import collections
import functools
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optiml_jax import chat
from optiml_jax.common.distributed import together
from optiml_jax.common.errors import UserError
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.decoder import check_params
from optiml_jax.model.fingerprint import fingerprint
from optiml_jax.model.layers import is_layers
from optiml_jax.tokenizer import OPT_EOS_ID, OPT_PAD_ID, Tokenizer
from optiml_jax.weights import checksums, names, output_folder, safetensors
from optiml_jax.weights.config import hf_config, was_exported
from optiml_jax.weights.stored import FLOATS


def save_hf(
    params: dict,
    config: OPTConfig,
    tokenizer: Tokenizer | None,
    directory: str | os.PathLike,
    dtype: jnp.dtype | None = None,
    max_shard_bytes: float = 5e9,
) -> Path:
    """Writes a directory that `transformers.OPTForCausalLM` and `AutoTokenizer` can load.

    It is written as `<directory>.partial` and renamed at the end. Every process of a distributed run must call this;
    the first one writes. Tensors are gathered from the devices one at a time.

    Args:
      tokenizer: None omits its files.
      directory: new, empty, or an earlier export, which is replaced.
      dtype: float32, float16 or bfloat16 on disk; None keeps the parameters'.
      max_shard_bytes: larger weights are split into several files with an index.

    Returns:
      The directory.

    Raises:
      UserError: the target holds something else, the disk is too small, or a value is not finite in `dtype`.
    """
    directory = Path(directory)
    check_params(params, config, str(directory))
    name = jnp.dtype(params["token_embedding"].dtype if dtype is None else dtype).name
    if name not in FLOATS:
        raise UserError(f"{directory}: weights can be saved as float32, float16 or bfloat16, not {name}")
    slots = names.slots(config)
    shapes = {names.EXPORT_PREFIX + key: slot.shape for key, slot in slots.items()}
    sums: dict[str, str] = {}
    tensors = _gather(params, slots, name, directory, sums)
    total = sum(math.prod(shape) for shape in shapes.values()) * FLOATS[name].itemsize
    with together():
        partial = output_folder.prepare(directory, total, was_exported) if jax.process_index() == 0 else None
    with together():
        if partial is None:
            collections.deque(tensors, maxlen=0)  # takes part in every gather of the writing process
            return directory
        try:
            _write_weights(partial, shapes, name, tensors, max_shard_bytes, total)
            checksums.write(partial, sums)
            _write_rest(partial, config, tokenizer, name)
            output_folder.put_in_place(partial, directory)
        except OSError as error:
            raise UserError(f"{directory}: cannot be written ({error.strerror or error})") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if jax.process_count() > 1:  # the other processes keep gathering even if writing failed here
                collections.deque(tensors, maxlen=0)
    return directory


def _write_weights(
    directory: Path,
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    tensors: Iterator[np.ndarray],
    max_shard_bytes: float,
    total: int,
) -> None:
    shards = list(safetensors.shard(shapes, FLOATS[dtype].itemsize, max_shard_bytes))
    if len(shards) == 1:
        safetensors.write_file(directory / "model.safetensors", shapes, dtype, tensors)
        return
    files = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    for file, names_in_file in zip(files, shards):
        safetensors.write_file(directory / file, names_in_file, dtype, (next(tensors) for _ in names_in_file))
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: file for file, names_in_file in zip(files, shards) for name in names_in_file},
    }
    _write_json(directory / "model.safetensors.index.json", index)


def _write_rest(directory: Path, config: OPTConfig, tokenizer: Tokenizer | None, dtype: str) -> None:
    """Writes configuration and tokenizer; `</s>` starts and ends a text, as in facebook/opt-*."""
    eos, pad = (OPT_EOS_ID, OPT_PAD_ID) if tokenizer is None else (tokenizer.eos_id, tokenizer.pad_id)
    _write_json(directory / "config.json", hf_config(config, dtype, eos, eos, pad))
    ids = {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": pad}
    _write_json(directory / "generation_config.json", {"_from_model_config": True, **ids})
    if tokenizer is None:
        return
    tokenizer.save(directory)
    end = tokenizer.special["eos"]
    special = {"bos_token": end, "eos_token": end, "pad_token": tokenizer.special["pad"]}
    special["unk_token"] = end  # as in facebook/opt-*; a byte-level vocabulary never needs it
    _write_json(directory / "special_tokens_map.json", special)
    settings = {
        "tokenizer_class": "GPT2Tokenizer" if tokenizer.is_plain else "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_positions,
        "chat_template": chat.TEMPLATE,
    }
    if tokenizer.is_plain:
        settings |= {"add_bos_token": True, "add_prefix_space": False, "errors": "replace"}
    _write_json(directory / "tokenizer_config.json", settings | special)


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _gather(
    params: dict, slots: dict[str, names.Slot], dtype: str, origin: Path, sums: dict[str, str]
) -> Iterator[np.ndarray]:
    """Yields every tensor in torch's layout, gathered from the devices on demand, and adds its hash to `sums`."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_layers)
    }
    for name, slot in slots.items():
        leaf, layer = leaves[slot.path], slot.layer
        if is_layers(leaf):
            leaf, layer = leaf[layer], None
        sharding = getattr(leaf, "sharding", None)
        replicated = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
        tensor, finite = _reader(slot.shape, slot.inputs, dtype, layer is not None, replicated)(leaf, layer)
        if not finite:
            raise UserError(f"{origin}: tensor {name} holds values that are NaN, infinite or too large for {dtype}")
        local = tensor.addressable_data(0)
        sums[name] = fingerprint(local)
        yield np.asarray(local)


@functools.cache
def _reader(shape: tuple[int, ...], inputs: int, dtype: str, stacked: bool, replicated: NamedSharding | None) -> Any:
    def read(leaf: jax.Array, layer: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        x = jax.lax.dynamic_index_in_dim(leaf, layer, 0, keepdims=False) if stacked else leaf
        x = x.reshape(shape[::-1] if inputs else shape)
        x = (x.T if inputs else x).astype(FLOATS[dtype])
        return x, jnp.isfinite(x).all()

    return jax.jit(read, out_shardings=None if replicated is None else (replicated, replicated))
