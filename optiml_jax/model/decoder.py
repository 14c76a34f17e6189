"""The OPT decoder: a plain parameter tree with layers stacked on axis 0, and a forward pass scanned or unrolled."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from optiml_jax.common.errors import UserError, nearest
from optiml_jax.model import flash_attention, int8, sharding
from optiml_jax.model.attention import attention
from optiml_jax.model.block import PRODUCTS, Block, block_forward, dropout
from optiml_jax.model.config import POSITION_OFFSET, OPTConfig
from optiml_jax.model.layers import each_layer, is_layers, is_separate
from optiml_jax.model.lookup import look_up
from optiml_jax.model.norm import STATISTICS, Norm

# Rematerialization policies: what is saved per block for the backward pass. "none": everything; "dots": results of
# matrix products and attention, with bias and activation; "attention-saved": attention's; "full": only the block's
# input.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names(*PRODUCTS, *STATISTICS, *flash_attention.RESULTS),
    "attention-saved": jax.checkpoint_policies.save_only_these_names(*flash_attention.RESULTS),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def _is_gpu_with_whole_layers() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return sharding.platform() == "gpu" and (mesh.empty or mesh.size == mesh.shape["data"])


# Whether the program holds each block separately. A scan writes what a layer saves into stacked arrays, which are first
# filled with zeros, and copies it back out: a quarter of a step's memory traffic at 1.3B. An unrolled program takes
# five times as long to compile, and is slower on CPUs; where layers are gathered, a scan bounds how many are at once.
LAYERS = {"auto": _is_gpu_with_whole_layers, "scan": lambda: False, "unrolled": lambda: True}


@functools.cache
def block_graphdef(config: OPTConfig) -> nnx.GraphDef:
    """The structure of a block without its arrays, to be merged with one layer's arrays."""
    return nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0), nnx.Rngs(0))))[0]


def init_params(key: jax.Array, config: OPTConfig) -> dict:
    """Random parameters in float32, as OPT initializes them (Zhang et al. 2022, section 2.2).

    Layers are initialized one after another: `vmap` over layers would hold whole stacked arrays on each device before
    they are sharded.
    """
    block_key, token_key, position_key, in_key, out_key = jax.random.split(key, 5)

    def layer(layer_key: jax.Array) -> dict:
        adapter_rngs = nnx.Rngs(jax.random.fold_in(layer_key, 1))  # the rest is as without adapters
        return nnx.to_pure_dict(nnx.split(Block(config, nnx.Rngs(layer_key), adapter_rngs))[1])

    def normal(key: jax.Array, *shape: int) -> jax.Array:
        return config.init_scale * jax.random.normal(key, shape)

    D, E = config.model_dim, config.embedding_width
    params = {
        "token_embedding": normal(token_key, config.vocab_size, E),
        "position_embedding": normal(position_key, config.max_positions + POSITION_OFFSET, D),
        "blocks": jax.lax.map(layer, jax.random.split(block_key, config.layers)),
    }
    if config.projects_embedding:
        params["project_in"] = normal(in_key, E, D)
        params["project_out"] = normal(out_key, D, E)
    if config.pre_norm:
        params["final_norm"] = {"scale": jnp.ones(D), "bias": jnp.zeros(D)}
    return params


def abstract_params(config: OPTConfig, dtype: jnp.dtype | dict = jnp.float32) -> dict:
    """The parameter tree as `ShapeDtypeStruct`s: norms in float32, in which they compute, integers and their scales in
    their own dtypes, and the rest in `dtype`.

    Args:
      dtype: one for all, or a tree like the parameters', with arrays or `ShapeDtypeStruct`s that have the dtypes;
        parameters that it lacks are float32.
    """
    tree = jax.eval_shape(lambda: init_params(jax.random.key(0), config))

    def dtype_at(path: tuple) -> jnp.dtype:
        branch = dtype
        for key in path:
            if not isinstance(branch, dict):
                break
            branch = branch.get(key.key, jnp.float32)
        return getattr(branch, "dtype", branch)

    def leaf(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        keeps_dtype = leaf.dtype == jnp.int8 or any(key.key.endswith(("norm", int8.SCALE)) for key in path)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if keeps_dtype else dtype_at(path))

    return jax.tree_util.tree_map_with_path(leaf, tree)


def parameter_count(config: OPTConfig) -> int:
    """The number of parameters, adapters included; the scales of integers are no parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(dataclasses.replace(config, kernels="float"))))


def check_params(params: dict, config: OPTConfig, origin: str) -> None:
    """Compares names and shapes, because `nnx.merge` accepts a renamed or reshaped tree silently.

    Raises:
      UserError: names the first parameter that differs.
    """
    actual, expected = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_layers)
        }
        for tree in (params, abstract_params(config))
    )
    for name in sorted(actual.keys() ^ expected.keys()):
        state = "is missing" if name in expected else f"is not part of this model{nearest(name, expected)}"
        raise UserError(f"{origin}: parameter {name} {state}; does the model configuration match the weights?")
    for name, shape in expected.items():
        if actual[name] != shape:
            raise UserError(f"{origin}: parameter {name} has shape {actual[name]}, the configuration needs {shape}")


def gathered_embedding(params: dict, dtype: jnp.dtype) -> jax.Array:
    """The embedding [V, E] in the compute dtype, with its whole width on every device.

    Constrained twice, before and after the gather: XLA by itself gathers float32 and casts afterwards, twice the bytes.
    """
    stored_VD = sharding.constrain(params["token_embedding"].astype(dtype), "VD", sharding.PARAMETERS)
    return _gather(stored_VD)


@jax.custom_vjp
def _gather(stored_VD: jax.Array) -> jax.Array:
    return sharding.constrain(stored_VD, "VD", sharding.GATHERED)


# The gradient arrives sharded (`head.py`, `lookup.py`) and stays so; the constraint's own transpose would gather it.
_gather.defvjp(
    lambda x_VD: (_gather(x_VD), None), lambda _, d_VD: (sharding.constrain(d_VD, "VD", sharding.PARAMETERS),)
)


def embed(
    params: dict, tokens_BT: jax.Array, positions_BT: jax.Array, embedding_VD: jax.Array, config: OPTConfig
) -> jax.Array:
    """Token plus learned position embeddings, [B, T, D]. Positions count from 0 in each document."""
    x_BTD = look_up(embedding_VD, tokens_BT)
    if config.projects_embedding:
        x_BTD = x_BTD @ params["project_in"].astype(x_BTD.dtype)
    position_PD = sharding.constrain(params["position_embedding"].astype(x_BTD.dtype), "PD", sharding.GATHERED)
    return sharding.constrain(x_BTD + position_PD[positions_BT + POSITION_OFFSET], "BTD", sharding.RESIDUAL)


def run_blocks(
    params: dict,
    x_BTD: jax.Array,
    layer_inputs: Any,
    layer_attend: Callable[[Any], Any],
    config: OPTConfig,
    dropout_key: jax.Array | None = None,
    remat: str = "none",
    unrolled: bool = False,
) -> tuple[jax.Array, Any]:
    """Runs all blocks.

    Args:
      layer_inputs: a tree stacked over layers (a KV cache), or None.
      layer_attend: makes a block's `Attend` from its slice of `layer_inputs`.
      remat: a name in `REMAT`.
      unrolled: whether the program holds one block after another instead of a scan; it always does if the parameters
        have one array per layer.

    Returns:
      [B, T, D], and the auxiliary outputs of every block's attention, stacked over layers.
    """

    def body(x_BTD: jax.Array, layer: tuple) -> tuple[jax.Array, Any]:
        index, weights, inputs = layer
        block = nnx.merge(block_graphdef(config), weights)
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        return block_forward(block, x_BTD, layer_attend(inputs), config, key)

    unrolled = unrolled or is_separate(params)
    if REMAT[remat] is not None:
        # prevent_cse guards against an optimization that cannot occur inside a scan, and costs speed there.
        body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=unrolled)
    stacked = (jnp.arange(config.layers), params["blocks"], layer_inputs)
    if not unrolled:
        return jax.lax.scan(body, x_BTD, stacked)
    auxiliaries = []
    for index, weights, inputs in each_layer(stacked, config.layers):
        # Cast once, before the block, for both passes; otherwise each would write out a float32 slice and cast it.
        weights = {name: part | _cast_kernel(part, x_BTD.dtype) for name, part in weights.items()}
        x_BTD, auxiliary = body(x_BTD, (index, weights, inputs))
        auxiliaries.append(auxiliary)
    return x_BTD, jax.tree.map(lambda *parts: jnp.stack(parts), *auxiliaries)


def separate_blocks(params: dict, config: OPTConfig) -> list[Block]:
    """The blocks of a tree that has one array per layer (`layers.py`)."""
    return [nnx.merge(block_graphdef(config), weights) for weights in each_layer(params["blocks"], config.layers)]


def _cast_kernel(part: dict, dtype: jnp.dtype) -> dict:
    return {name: leaf.astype(dtype) for name, leaf in part.items() if name == "kernel"}


def finish(params: dict, x_BTD: jax.Array, config: OPTConfig) -> jax.Array:
    """Applies the final norm and, in 350M, the projection to the embedding's width: [B, T, E], input of the head."""
    if config.pre_norm:
        norm = nnx.merge(_norm_graphdef(config.model_dim), params["final_norm"])
        x_BTD = norm(x_BTD)
    if config.projects_embedding:
        x_BTD = x_BTD @ params["project_out"].astype(x_BTD.dtype)
    return x_BTD


@functools.cache
def _norm_graphdef(width: int) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: Norm(width)))[0]


def forward(
    params: dict,
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array,
    positions_BT: jax.Array,
    config: OPTConfig,
    *,
    until_BT: jax.Array | None = None,
    embedding_VD: jax.Array | None = None,
    dtype: jnp.dtype = jnp.float32,
    dropout_key: jax.Array | None = None,
    remat: str = "none",
    layers: str = "scan",
    implementation: str = "auto",
) -> jax.Array:
    """Computes the hidden states that the embedding turns into logits.

    Args:
      params: the tree of `init_params`, stored in any dtype.
      tokens_BT, segment_ids_BT, positions_BT: int32; positions count from 0 in each document, segment 0 is padding.
      until_BT: int32, where documents share a prefix (`visibility.py`).
      embedding_VD: `gathered_embedding`, if the caller needs it too; computed here otherwise.
      dtype: compute dtype.
      dropout_key: one key per step, None for inference.
      layers: a name in `LAYERS`.

    Returns:
      [B, T, E] in `dtype`; logits are its product with the transposed embedding.
    """
    if embedding_VD is None:
        embedding_VD = gathered_embedding(params, dtype)
    x_BTD = embed(params, tokens_BT, positions_BT, embedding_VD, config)
    if dropout_key is not None:
        x_BTD = dropout(x_BTD, config.dropout, jax.random.fold_in(dropout_key, config.layers))

    def attend_for(_: None) -> Callable:
        def attend(q, k, v):
            return attention(q, k, v, segment_ids_BT, until_BT=until_BT, implementation=implementation), None

        return attend

    x_BTD, _ = run_blocks(params, x_BTD, None, attend_for, config, dropout_key, remat, LAYERS[layers]())
    return finish(params, x_BTD, config)


def project_vocabulary(hidden_BTD: jax.Array, embedding_VD: jax.Array) -> jax.Array:
    """Logits [..., V] in float32, with the tied embedding."""
    return jnp.einsum("...d,vd->...v", hidden_BTD, embedding_VD, preferred_element_type=jnp.float32)
