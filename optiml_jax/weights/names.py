"""The table of Hugging Face's tensor names and our parameter paths, used by the loader and the export."""

import dataclasses
import math
import re

import jax

from optiml_jax.model.config import OPTConfig
from optiml_jax.model.decoder import abstract_params

PREFIXES = ("model.decoder.", "decoder.")  # OPTForCausalLM and OPTModel; a bare OPTDecoder has none
EXPORT_PREFIX = PREFIXES[0]
WRAPPERS = re.compile(r"^module\.|_orig_mod\.|_fsdp_wrapped_module\.|_forward_module\.")  # of DDP, torch.compile, ...
HEAD = "lm_head.weight"  # tied to the token embedding: an equal copy, or absent

# Hugging Face's name -> (our path, number of input axes of a linear map; 0: reshaped, not transposed)
MODEL = {
    "embed_tokens.weight": ("token_embedding", 0),
    "embed_positions.weight": ("position_embedding", 0),
    "project_in.weight": ("project_in", 1),
    "project_out.weight": ("project_out", 1),
    "final_layer_norm.weight": ("final_norm/scale", 0),
    "final_layer_norm.bias": ("final_norm/bias", 0),
}
LAYER = {
    "self_attn_layer_norm.weight": ("blocks/attention_norm/scale", 0),
    "self_attn_layer_norm.bias": ("blocks/attention_norm/bias", 0),
    "self_attn.q_proj.weight": ("blocks/query/kernel", 1),
    "self_attn.q_proj.bias": ("blocks/query/bias", 0),
    "self_attn.k_proj.weight": ("blocks/key/kernel", 1),
    "self_attn.k_proj.bias": ("blocks/key/bias", 0),
    "self_attn.v_proj.weight": ("blocks/value/kernel", 1),
    "self_attn.v_proj.bias": ("blocks/value/bias", 0),
    "self_attn.out_proj.weight": ("blocks/out/kernel", 2),
    "self_attn.out_proj.bias": ("blocks/out/bias", 0),
    "final_layer_norm.weight": ("blocks/mlp_norm/scale", 0),
    "final_layer_norm.bias": ("blocks/mlp_norm/bias", 0),
    "fc1.weight": ("blocks/up/kernel", 1),
    "fc1.bias": ("blocks/up/bias", 0),
    "fc2.weight": ("blocks/down/kernel", 1),
    "fc2.bias": ("blocks/down/bias", 0),
}


@dataclasses.dataclass(frozen=True)
class Slot:
    """Location of a Hugging Face tensor in the parameter tree.

    Attributes:
      path: of the array, with slashes.
      layer: index on the array's first axis, or None for an array without layers.
      inputs: number of leading input axes of a linear map (torch stores [out, in]); 0 for a table or a vector.
      shape: of the tensor, as torch stores it.
    """

    path: str
    layer: int | None
    inputs: int
    shape: tuple[int, ...]


def slots(config: OPTConfig) -> dict[str, Slot]:
    """The slots of every tensor of the architecture in Hugging Face's order, by names without prefix."""
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config))
    }
    slots_by_name = {}
    for name, (path, inputs) in MODEL.items():
        if path in shapes:
            slots_by_name[name] = Slot(path, None, inputs, torch_shape(shapes[path], path, inputs))
    for layer in range(config.layers):
        for name, (path, inputs) in LAYER.items():
            if path in shapes:
                shape = torch_shape(shapes[path][1:], path, inputs)
                slots_by_name[f"layers.{layer}.{name}"] = Slot(path, layer, inputs, shape)
    return slots_by_name


def torch_shape(shape: tuple[int, ...], path: str, inputs: int) -> tuple[int, ...]:
    """Torch's shape: [out, in] of a linear map, all axes of a bias in one, an embedding table unchanged."""
    if inputs:
        return math.prod(shape[inputs:]), math.prod(shape[:inputs])
    return (math.prod(shape),) if path.endswith("bias") else shape


def bare(name: str) -> str:
    """Removes the prefix of the class that was saved, and the names of what was wrapped around it."""
    name = WRAPPERS.sub("", name)
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
