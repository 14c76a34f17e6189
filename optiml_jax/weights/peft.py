"""The format of Hugging Face's `peft`: low-rank adapters apart from the weights that they belong to.

A folder with `adapter_config.json`, which names the base and the shape, and `adapter_model.safetensors`, with lora_A
[R, in] and lora_B [out, R] of each adapted matrix.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import jax
import msgspec
import numpy as np

from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError
from optiml_jax.model import adapter, decoder, sharding, trainable
from optiml_jax.model.adapter import Lora
from optiml_jax.model.config import OPTConfig
from optiml_jax.weights import safetensors

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
REMEDY = "write it again with peft, or merge it there: merge_and_unload().save_pretrained(FOLDER)"
MODULES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "up": "fc1",
    "down": "fc2",
}
PREFIX = "base_model.model.model.decoder.layers."
# Options of peft that compute something else, with the values at which they do not.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "exclude_modules": (None, []),
    "target_parameters": (None, []),
}


class Config(TypedDict):
    """The part of adapter_config.json that is used."""

    base_model_name_or_path: str | None
    r: Annotated[int, msgspec.Meta(ge=1)]
    lora_alpha: Annotated[float, msgspec.Meta(gt=0)]
    lora_dropout: NotRequired[float]
    use_rslora: NotRequired[bool]


def is_adapter(directory: str | os.PathLike) -> bool:
    """Whether a folder has an adapter of peft, and no whole model."""
    return (Path(directory) / CONFIG).is_file() and not (Path(directory) / "config.json").is_file()


def base_of(directory: str | os.PathLike) -> str:
    """The weights to which an adapter belongs: a folder or a hub name.

    Raises:
      UserError: the adapter does not say.
    """
    base = _read_config(Path(directory))["base_model_name_or_path"]
    if not base:
        raise UserError(f"{Path(directory) / CONFIG}: base_model_name_or_path is empty; name the folder of the weights")
    return base


def _read_config(directory: Path) -> dict[str, Any]:
    file = directory / CONFIG
    content = typed_json.read(file, Config, REMEDY)
    for name, values in PLAIN.items():
        if name in content and content[name] not in values:
            raise UserError(f"{file}: {name} = {content[name]} is not supported; {REMEDY}")
    return content


def read(directory: str | os.PathLike, config: OPTConfig) -> tuple[Lora, dict]:
    """Reads an adapter.

    Args:
      config: of the base, without adapters.

    Returns:
      Its shape, and its parameters on the host, a tree like the model's, stacked over layers.

    Raises:
      UserError: it has another form, or does not fit the model.
    """
    directory = Path(directory)
    content, file = _read_config(directory), directory / TENSORS
    if not file.is_file():
        raise UserError(f"{file}: missing; {REMEDY}")
    tensors = safetensors.read_header(file)
    targets = [name for name, module in MODULES.items() if any(f".{module}.lora_" in tensor for tensor in tensors)]
    try:
        lora = Lora(
            content["r"],
            content["lora_alpha"],
            content.get("lora_dropout") or 0.0,
            targets,
            content.get("use_rslora") or False,
        )
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error
    blocks = decoder.abstract_params(dataclasses.replace(config, adapter=lora))["blocks"]
    tree: dict[str, dict[str, Any]] = {target: {} for target in targets}
    leaves = [(target, leaf) for target in targets for leaf in adapter.NAMES]
    names = {_name(layer, *leaf) for layer in range(config.layers) for leaf in leaves}
    if wrong := sorted(names ^ tensors.keys()):
        state = "is missing" if wrong[0] in names else "is not part of the model"
        raise UserError(f"{file}: tensor {wrong[0]} {state}; {REMEDY}")
    for target, leaf in leaves:
        shape = blocks[target][leaf].shape[1:]
        layers = []
        for layer in range(config.layers):
            name = _name(layer, target, leaf)
            array = tensors[name].read().astype(np.float32)
            if array.shape != (expected := _to_torch(np.empty(shape), leaf).shape):
                raise UserError(f"{file}: tensor {name} has shape {array.shape}; the model has {expected}")
            if not np.isfinite(array).all():
                raise UserError(f"{file}: tensor {name} has NaN or infinite values")
            layers.append(array.T.reshape(shape))
        tree[target][leaf] = np.stack(layers)
    return lora, {"blocks": tree}


def _to_torch(array: np.ndarray, leaf: str) -> np.ndarray:
    """Returns A [*in, R] of one layer as peft's lora_A [R, in], or B [R, *out] as lora_B [out, R]."""
    is_a = leaf == adapter.NAMES[0]
    return array.reshape((-1, array.shape[-1]) if is_a else (array.shape[0], -1)).T


def write(directory: Path, lora: Lora, tree: Mapping[str, Any], base: str | None) -> None:
    """Writes an adapter into an existing folder.

    Args:
      tree: its parameters, as `read` returns them, or arrays on a device.
      base: the weights to which it belongs.
    """
    blocks = tree["blocks"]
    layers = len(next(iter(blocks.values()))[adapter.NAMES[0]])
    tensors = {
        _name(layer, target, leaf): _to_torch(np.asarray(blocks[target][leaf][layer], np.float32), leaf)
        for layer in range(layers)
        for target in lora.targets
        for leaf in adapter.NAMES
    }
    shapes = {name: array.shape for name, array in tensors.items()}
    safetensors.write_file(directory / TENSORS, shapes, "float32", tensors.values())
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilized,
        "target_modules": [MODULES[name].rpartition(".")[2] for name in lora.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (directory / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def merged(params: dict, directory: str | os.PathLike, config: OPTConfig) -> dict:
    """Adds the products of an adapter to parameters on devices, which are donated."""
    lora, tree = read(directory, config)
    mesh = getattr(params["token_embedding"].sharding, "mesh", None)
    if mesh is not None:
        shardings = sharding.parameter_shardings(tree, mesh)
        tree = jax.tree.map(
            lambda x, where: jax.make_array_from_callback(x.shape, where, lambda index: x[index]), tree, shardings
        )
    add = jax.jit(lambda params, tree: adapter.merge(trainable.join(params, tree), lora), donate_argnums=(0,))
    return add(params, tree)


def _name(layer: int, target: str, leaf: str) -> str:
    return f"{PREFIX}{layer}.{MODULES[target]}.{'lora_A' if leaf == adapter.NAMES[0] else 'lora_B'}.weight"
