"""metaseq's parameter names, their tensor-parallel split, and the order in which its modules register them."""

import math
import re
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import UserError
from optiml_jax.model.config import POSITION_OFFSET, OPTConfig
from optiml_jax.weights.config import parse_config

RENAMED = {
    "layer_norm.weight": "final_layer_norm.weight",
    "layer_norm.bias": "final_layer_norm.bias",
    "project_in_dim.weight": "project_in.weight",
    "project_out_dim.weight": "project_out.weight",
}
# Buffers, and the output projection: shared with the embedding (`share_decoder_input_output_embed`, checked below).
DROPPED = ("version", "output_projection.weight")

# Axis of a torch weight that tensor parallelism splits (`reshard_megatron_parts`); other weights are in every part.
SPLIT = (
    (re.compile(r"embed_tokens\.weight"), 0),
    (re.compile(r"layers\.\d+\.(self_attn\.(qkv|q|k|v)_proj|fc1)\.(weight|bias)"), 0),
    (re.compile(r"layers\.\d+\.(self_attn\.out_proj|fc2)\.weight"), 1),
)
QKV = re.compile(r"(?P<path>layers\.\d+\.self_attn)\.qkv_proj\.(?P<kind>weight|bias)")
THIRDS = ("k", "v", "q")  # the order of the rows of `qkv_proj` in each part, despite its name (`handle_qkv_proj`)

# cfg.model: name -> the only supported value
FIXED = {
    "alibi": False,
    "scale_attn": False,
    "scale_fc": False,
    "scale_heads": False,
    "disable_affine_ln": False,
    "decoder_learned_sinusoidal": False,
    "no_scale_embedding": True,
    "decoder_learned_pos": True,
    "share_decoder_input_output_embed": True,
}
# Hugging Face's name -> metaseq's in cfg.model
FIELDS = {
    "num_hidden_layers": "decoder_layers",
    "hidden_size": "decoder_embed_dim",
    "num_attention_heads": "decoder_attention_heads",
    "ffn_dim": "decoder_ffn_embed_dim",
}


def targets(name: str) -> list[tuple[str, int | None, int | None]]:
    """Returns the destination of a metaseq tensor: (Hugging Face's bare name, which third of its rows, split axis or
    None)."""
    name = name.removeprefix("decoder.")
    if name in DROPPED:
        return []
    axis = next((axis for pattern, axis in SPLIT if pattern.fullmatch(name)), None)
    if match := QKV.fullmatch(name):
        return [(f"{match['path']}.{x}_proj.{match['kind']}", third, axis) for third, x in enumerate(THIRDS)]
    return [(RENAMED.get(name, name), None, axis)]


def size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def read_config(
    state: dict, shapes: dict[str, tuple[int, ...]], root_elements: int | None, parts: int, origin: str
) -> OPTConfig:
    """Reads the architecture of a checkpoint.

    Args:
      state: of its first file; `cfg` (a dictionary) or, in older files, `args` (a namespace).
      shapes: of the tensors by Hugging Face's bare names, where the checkpoint names them.
      root_elements: otherwise, the size of the flat parameter outside the layers, which determines the vocabulary.
      parts: of tensor parallelism.

    Raises:
      UserError: there is no configuration, or one of an unsupported model.
    """
    cfg = state.get("cfg") or {}
    model = _get(cfg, "model") or state.get("args")
    if model is None:
        raise UserError(f"{origin}: has no cfg; pass the model's configuration")
    for name, value in FIXED.items():
        if _get(model, name, value) not in (value, None):
            raise UserError(f"{origin}: cfg.model.{name} = {_get(model, name)} is not supported")
    raw = {theirs: _get(model, name) for theirs, name in FIELDS.items()}
    for theirs, name in FIELDS.items():
        if raw[theirs] is None:
            raise UserError(f"{origin}: cfg.model.{name} is missing; pass the model's configuration")
    width = raw["hidden_size"]
    raw |= {
        "model_type": "opt",
        "word_embed_proj_dim": _get(model, "decoder_input_dim") or width,
        "activation_function": _get(model, "activation_fn") or "relu",
        "enable_bias": not _get(model, "disable_bias", False),
        "dropout": _get(model, "dropout", 0.1),
    }
    if shapes:
        raw["do_layer_norm_before"] = "final_layer_norm.weight" in shapes
        embedding, positions = (shapes.get(f"embed_{x}.weight") for x in ("tokens", "positions"))
        if embedding is None or positions is None:
            raise UserError(f"{origin}: no embed_tokens.weight or embed_positions.weight; is this an OPT model?")
        raw |= {"vocab_size": embedding[0], "max_position_embeddings": positions[0] - POSITION_OFFSET}
    else:
        raw["do_layer_norm_before"] = bool(_get(model, "decoder_normalize_before", True))
        for name in ("max_target_positions", "tokens_per_sample"):
            positions = _get(model, name) or _get(_get(cfg, "task"), name)
            if isinstance(positions, int):
                break
        raw |= {"vocab_size": 1, "max_position_embeddings": positions}
        partial = parse_config(raw, origin)
        rest = sum(size(shape) for name, shape in _root(partial, 1) if "embed_tokens" not in name)
        raw["vocab_size"] = (root_elements - rest) // partial.embedding_width * parts
    return parse_config(raw, origin)


def is_megatron(state: dict) -> bool:
    """Whether the model was built for tensor parallelism, possibly of a single part."""
    model = _get(state.get("cfg") or {}, "model") or state.get("args")
    names = [str(_get(model, name) or "") for name in ("arch", "_name")]
    return any("megatron" in name or "model_parallel" in name for name in names)


def parameter_order(
    config: OPTConfig, parts: int, combined: bool, keys: list[str], file: Path
) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Names and shapes in each flat parameter, in the order in which metaseq's modules register them.

    The order of July 2022, about when the files without metadata were released: `models/transformer.py`,
    `modules/transformer_layer.py` and the attention of `model_parallel/modules/multihead_attention.py` or, without
    tensor parallelism, `modules/multihead_attention.py`. A parameter belongs to the innermost wrapper around it.

    Args:
      parts: of tensor parallelism; shapes are those of one part.
      combined: whether queries, keys and values share one `qkv_proj` (built for tensor parallelism).
      keys: of the flat parameters.
    """
    names = _root(config, parts)
    at = next(n for n, (name, _) in enumerate(names) if "embed_positions" in name) + 1
    layers = [
        (f"decoder.layers.{layer}.{name}", shape)
        for layer in range(config.layers)
        for name, shape in _layer(config, parts, combined)
    ]
    names[at:at] = layers
    paths = {key.rpartition(".")[0]: key for key in keys}
    contents: dict[str, list[tuple[str, tuple[int, ...]]]] = {key: [] for key in keys}
    for name, shape in names:
        wrapper = name
        while wrapper and wrapper not in paths:
            wrapper = wrapper.rpartition(".")[0]
        if wrapper not in paths:
            raise UserError(f"{file}: no flat parameter holds {name}; does the configuration match the checkpoint?")
        contents[paths[wrapper]].append((name, shape))
    return contents


def _root(config: OPTConfig, parts: int) -> list[tuple[str, tuple[int, ...]]]:
    D, E = config.model_dim, config.embedding_width
    names = [("decoder.embed_tokens.weight", (config.vocab_size // parts, E))]
    if config.projects_embedding:
        names.append(("decoder.project_in_dim.weight", (D, E)))
    names.append(("decoder.embed_positions.weight", (config.max_positions + POSITION_OFFSET, D)))
    if config.pre_norm:
        names += [("decoder.layer_norm.weight", (D,)), ("decoder.layer_norm.bias", (D,))]
    if config.projects_embedding:
        names.append(("decoder.project_out_dim.weight", (E, D)))
    return names


def _layer(config: OPTConfig, parts: int, combined: bool) -> list[tuple[str, tuple[int, ...]]]:
    D, F = config.model_dim, config.ffn_dim

    def linear(name: str, outputs: int, inputs: int) -> list[tuple[str, tuple[int, ...]]]:
        return [(f"{name}.weight", (outputs, inputs))] + ([(f"{name}.bias", (outputs,))] if config.biases else [])

    def norm(name: str) -> list[tuple[str, tuple[int, ...]]]:
        return [(f"{name}.weight", (D,)), (f"{name}.bias", (D,))]

    if combined:
        projections = linear("self_attn.qkv_proj", 3 * D // parts, D)
    else:
        projections = [entry for x in THIRDS for entry in linear(f"self_attn.{x}_proj", D, D)]
    return [
        *projections,
        *linear("self_attn.out_proj", D, D // parts),
        *norm("self_attn_layer_norm"),
        *linear("fc1", F // parts, D),
        *linear("fc2", D, F // parts),
        *norm("final_layer_norm"),
    ]


def _get(container: Any, name: str, default: Any = None) -> Any:
    """An entry of a dictionary, an attribute of a namespace, or the default."""
    if isinstance(container, dict):
        return container.get(name, default)
    return getattr(container, name, default) if container is not None else default
