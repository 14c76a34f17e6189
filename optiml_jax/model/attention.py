"""Causal attention inside the documents of packed rows (OPT-IML section 3.2, "document attention")."""

import functools
import itertools

import jax
import jax.numpy as jnp

from optiml_jax.model import sharding
from optiml_jax.model.blocked_attention import blocked_attention
from optiml_jax.model.flash_attention import flash_attention
from optiml_jax.model.triton_call import has_kernels
from optiml_jax.model.visibility import sees, visible


def attention(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    until_BT: jax.Array | None = None,
    implementation: str = "auto",
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention, causal inside each document.

    Args:
      q_BTHK: queries, already scaled by K**-0.5 (OPT scales the query, not the scores).
      k_BTHK, v_BTHK: keys and values.
      segment_ids_BT: int32; 0 is padding, each document has one positive id in one contiguous run.
      until_BT: int32, where documents share a prefix (`visibility.py`); None if they do not.
      implementation: "dense" scores all pairs and is the reference; "blocked" (plain JAX) and "triton" (a kernel for
        GPUs from Ampere on) skip keys outside the document; "auto" takes the fastest on this device. "pallas" is the
        name that "triton" had before.
      interpret: runs the kernel in Triton's interpreter, on CPUs; other implementations ignore it.

    Returns:
      [B, T, H, K] in the dtype of `q_BTHK`. Values at padding positions are unspecified.

    Raises:
      ValueError: `implementation` does not support the arguments. There is no silent fallback.
    """
    if problem := unavailable(implementation, interpret):
        raise ValueError(problem)
    implementation = FORMER_NAMES.get(implementation, implementation)
    if implementation == "auto":
        implementation = fastest(sharding.platform())
    compute = _IMPLEMENTATIONS[implementation]
    if implementation == "triton":
        compute = functools.partial(compute, shared_prefixes=until_BT is not None, interpret=interpret)
    bounds = visible(segment_ids_BT, until_BT)
    if jax.sharding.get_abstract_mesh().empty:
        return compute(q_BTHK, k_BTHK, v_BTHK, *bounds)
    # Each device computes its own rows and heads; the partitioner would gather rows to loop over them.
    heads = sharding.spec("BTHK")
    specs = (heads, heads, heads, sharding.spec("BT"), sharding.spec("BT"))
    mapped = jax.shard_map(compute, in_specs=specs, out_specs=heads, check_vma=False)
    return mapped(q_BTHK, k_BTHK, v_BTHK, *bounds)


def unavailable(implementation: str, interpret: bool = False) -> str | None:
    """Why an implementation cannot be used on this device; None if it can. Arguments as in `attention`."""
    if implementation not in IMPLEMENTATIONS:
        return f"attention {implementation!r} is unknown; use one of {', '.join(IMPLEMENTATIONS)}"
    device = sharding.platform()
    if FORMER_NAMES.get(implementation, implementation) != "triton" or interpret or device == "gpu":
        return None  # `triton_call` says why a GPU cannot run its kernels
    return f"attention {implementation!r} runs on GPUs; on a {device} use 'auto', 'blocked' or 'dense'"


def fastest(platform: str) -> str:
    """The fastest implementation on "cpu", "gpu", ..."""
    if platform == "gpu":
        return "triton" if has_kernels() else "blocked"
    return {"cpu": "blocked"}.get(platform, "dense")


def visible_mask(until_BT: jax.Array) -> jax.Array:
    """Which keys (last axis) each query attends to: [B, 1, T, T] bool. Every position attends to itself."""
    count_T = jnp.arange(until_BT.shape[1])
    return sees(count_T[:, None], count_T, until_BT[:, None, None, :])


def dense_attention(q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, mask_B1TT: jax.Array) -> jax.Array:
    """Masked attention over all pairs, scores and softmax in float32."""
    scores_BHTT = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK, preferred_element_type=jnp.float32)
    scores_BHTT = jnp.where(mask_B1TT, scores_BHTT, jnp.finfo(jnp.float32).min)
    weights_BHTT = jax.nn.softmax(scores_BHTT, axis=-1).astype(v_BTHK.dtype)
    return jnp.einsum("bhts,bshk->bthk", weights_BHTT, v_BTHK)


def next_attention(q_B1HK: jax.Array, *parts: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """Attention of one new token, [B, 1, H, K]; scores and softmax in float32.

    Args:
      parts: tuples of keys and values, [B, H, C, K], and a mask of the visible ones, bool [B, C]; the softmax runs over
        all parts together.
    """
    f32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    q_BHK = q_B1HK[:, 0]
    scores = [
        jnp.where(seen_BC[:, None], f32("bhk,bhck->bhc", q_BHK, keys_BHCK), jnp.finfo(jnp.float32).min)
        for keys_BHCK, _, seen_BC in parts
    ]
    weights_BHC = jax.nn.softmax(jnp.concatenate(scores, -1), axis=-1).astype(q_BHK.dtype)
    ends = list(itertools.accumulate(x.shape[-1] for x in scores))[:-1]
    weighted = zip(jnp.split(weights_BHC, ends, -1), parts)
    return sum(jnp.einsum("bhc,bhck->bhk", weights, values) for weights, (_, values, _) in weighted)[:, None]


# Each device's computation on its rows and heads, from (queries, keys, values, first, until); see `visible`.
_IMPLEMENTATIONS = {
    "dense": lambda q, k, v, _, until_BT: dense_attention(q, k, v, visible_mask(until_BT)),
    "blocked": blocked_attention,
    "triton": flash_attention,
}
FORMER_NAMES = {"pallas": "triton"}  # in settings of earlier runs
IMPLEMENTATIONS = ("auto", *_IMPLEMENTATIONS, *FORMER_NAMES)
