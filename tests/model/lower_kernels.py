"""Lowers attention, decoding and a norm's gradient through jax-triton and compiles them, for a card that is not there:
python -m tests.model.lower_kernels CARD

Any deprecation warning is an error. Prints the number of kernels of each program, and the copies of the KV cache in
the program that decodes.
"""

import re
import sys
import warnings

import jax
import jax.numpy as jnp

from optiml_jax.common.cards import CARDS
from optiml_jax.inference import cache_attention
from optiml_jax.model import attention, norm, sharding, triton_call
from optiml_jax.planning.compiled import compile_for_described, described_devices

PAGES = 97  # a size that only arrays of the cache have


def attend(q, k, v, segment_ids_BT, d):
    out, pull = jax.vjp(lambda *qkv: attention.attention(*qkv, segment_ids_BT, implementation="triton"), q, k, v)
    return out, pull(d)


def decode(q_BHK, cache, position_B, reads):
    """Three steps of two layers."""

    def step(_, carry):
        q_BHK, cache = carry
        for layer in range(2):
            q_BHK, cache = cache_attention.attend(q_BHK, q_BHK, q_BHK, cache, jnp.int32(layer), position_B, reads)
        return q_BHK, cache

    return jax.lax.fori_loop(0, 3, step, (q_BHK, cache))


def normalise(x_BTD, scale_D, d_BTD):
    return jax.vjp(norm.branch_norm, x_BTD, scale_D, scale_D)[1]((d_BTD, d_BTD))


def main(card: str) -> None:
    warnings.simplefilter("error", DeprecationWarning)
    devices, kind = described_devices(CARDS[card], 1)
    if kind == "cpu":
        sys.exit("needs XLA's CUDA compiler")
    # As on a machine with such a card.
    jax.default_backend = lambda: "gpu"
    triton_call.reason_against = lambda: None
    mesh = sharding.make_mesh(devices=devices)
    x, ids = jax.ShapeDtypeStruct((2, 512, 4, 80), jnp.bfloat16), jax.ShapeDtypeStruct((2, 512), jnp.int32)
    stream, scale = jax.ShapeDtypeStruct((2, 512, 768), jnp.bfloat16), jax.ShapeDtypeStruct((768,), jnp.float32)
    q = jax.ShapeDtypeStruct((8, 4, 80), jnp.bfloat16)
    pages = jax.ShapeDtypeStruct((2, PAGES, 4, cache_attention.PAGE, 80), jnp.bfloat16)
    position_B = jax.ShapeDtypeStruct((8,), jnp.int32)
    reads = jax.eval_shape(lambda: cache_attention.plan_reads([()] * 8, 4))
    for function, arguments, donated in (
        (attend, (x, x, x, ids, x), ()),
        (decode, (q, (pages, pages), position_B, reads), (1,)),
        (normalise, (stream, scale, stream), ()),
    ):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            where = jax.NamedSharding(mesh, jax.P())
            jitted = jax.jit(function, in_shardings=where, out_shardings=where, donate_argnums=donated)
            lowered = jitted.trace(*arguments).lower()
        print("kernels:", lowered.as_text().count("triton_kernel_call"))
        compiled = compile_for_described(lowered)
        copies = re.findall(rf"%copy\S* = \S*\[2,{PAGES},.*", compiled.as_text())
        print("copies:", len(copies))
        assert "triton_kernel_call" in compiled.as_text()


if __name__ == "__main__":
    main(sys.argv[1])
