"""Attention against float64 dense math on random layouts of documents.

On a GPU: JAX_PLATFORMS=cuda JAX_DEFAULT_MATMUL_PRECISION=highest python -m pytest tests/model/test_attention.py
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optiml_jax.common.cards import CARDS
from optiml_jax.model import decoder, sharding
from optiml_jax.model.attention import attention as any_attention
from optiml_jax.model.blocked_attention import blocked_attention
from optiml_jax.model.visibility import visible
from optiml_jax.planning.compiled import compile_for_described, described_devices
from tests.meshes import mesh_of

ALL = ("dense", "blocked", "triton")
attention = functools.partial(any_attention, interpret=jax.default_backend() == "cpu")  # on a GPU the kernel itself


def layout(rng: np.random.Generator, rows: int, length: int, documents: int) -> np.ndarray:
    """Rows of `documents` documents of random lengths from one token up, most with padding at the end."""
    segment_ids_BT = np.zeros((rows, length), np.int32)
    for row in range(rows):
        cuts = np.sort(rng.choice(np.arange(1, length + 1), documents, replace=False))
        segment_ids_BT[row] = np.searchsorted(cuts, np.arange(length), side="right") + 1
        segment_ids_BT[row, cuts[-1] :] = 0
    return segment_ids_BT


def inputs(seed: int, rows: int, length: int, heads: int, head_dim: int):
    rng = np.random.default_rng(seed)
    q, k, v, d = (rng.normal(size=(rows, length, heads, head_dim)).astype(np.float32) for _ in range(4))
    return rng, q * head_dim**-0.5, k, v, d


def trees(rng: np.random.Generator, rows: int, length: int, most: int) -> tuple[np.ndarray, ...]:
    """Rows of trees in depth-first order, then padding: segment ids, `until`, and who descends from whom.

    Each token hangs below the one before it or, now and then, below another on its path, or starts a tree.
    """
    segment_ids_BT, until_BT = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    below_BTT = np.zeros((rows, length, length), bool)  # [query, key]
    for row in range(rows):
        path, end, tree = [], length - int(rng.integers(0, 20)), 0
        for t in range(length):
            if t >= end or not path or rng.random() < 0.01:
                path, tree = [], tree + (t < end)
            elif rng.random() < 0.1:
                path = path[: rng.integers(1, min(len(path), most) + 1)]
            path.append(t)
            segment_ids_BT[row, t] = tree if t < end else 0
            below_BTT[row, t, path] = True
        until_BT[row] = below_BTT[row].shape[0] - below_BTT[row][::-1].argmax(0)
    return segment_ids_BT, until_BT, below_BTT


def exact(q, k, v, segment_ids_BT, d, mask=None):
    """Output and gradients of <output, d> in float64, written out."""
    q, k, v, d = (np.asarray(x, np.float64) for x in (q, k, v, d))
    length = q.shape[1]
    if mask is None:
        mask = (segment_ids_BT[:, :, None] == segment_ids_BT[:, None]) & np.tril(np.ones((length, length), bool))
    scores = np.where(mask[:, None], np.einsum("bthk,bshk->bhts", q, k), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    d_weights = np.einsum("bthk,bshk->bhts", d, v)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
    out = np.einsum("bhts,bshk->bthk", weights, v)
    gradients = (
        np.einsum("bhts,bshk->bthk", d_scores, k),
        np.einsum("bhts,bthk->bshk", d_scores, q),
        np.einsum("bhts,bthk->bshk", weights, d),
    )
    return out, gradients


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(("length", "documents", "head_dim"), [(200, 1, 64), (200, 7, 80), (256, 64, 64), (40, 3, 128)])
def test_output_and_gradients_equal_float64(implementation, length, documents, head_dim):
    rng, q, k, v, d = inputs(length + documents, 2, length, 2, head_dim)
    segment_ids_BT = layout(rng, 2, length, documents)
    d *= (segment_ids_BT > 0)[..., None, None]  # nobody reads what padding returns
    want, want_gradients = exact(q, k, v, segment_ids_BT, d)

    def loss(q, k, v):
        out = attention(q, k, v, segment_ids_BT, implementation=implementation)
        return (out * d).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    real = segment_ids_BT > 0
    np.testing.assert_allclose(np.asarray(out)[real], want[real], atol=3e-6)  # float32, sums of 200 terms of size 1
    for have, expected in zip(gradients, want_gradients):
        np.testing.assert_allclose(have, expected, atol=3e-6 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("implementation", ALL)
def test_trees_of_documents_that_share_their_start_equal_float64(implementation):
    rng, q, k, v, d = inputs(11, 2, 300, 2, 32)
    segment_ids_BT, until_BT, below_BTT = trees(rng, 2, 300, 200)
    d *= (segment_ids_BT > 0)[..., None, None]
    want, want_gradients = exact(q, k, v, None, d, below_BTT)

    @jax.jit
    def results(*qkv):
        compute = functools.partial(attention, until_BT=jnp.asarray(until_BT), implementation=implementation)
        out, pull = jax.vjp(lambda q, k, v: compute(q, k, v, segment_ids_BT), *qkv)
        return out * (segment_ids_BT > 0)[..., None, None], *pull(d)

    for have, expected in zip(results(q, k, v), (want * (segment_ids_BT > 0)[..., None, None], *want_gradients)):
        np.testing.assert_allclose(have, expected, atol=3e-6 * max(1.0, np.abs(expected).max()))


def test_the_kernel_never_reads_blocks_of_an_ended_branch():
    """A root, a branch and a second one: what lies in the middle of the first may be anything."""
    _, q, k, v, d = inputs(12, 1, 512, 2, 32)
    until_BT = np.full((1, 512), 512, np.int32)
    until_BT[:, 64:320] = 320
    k[:, 128:256] = v[:, 128:256] = np.nan
    d[:, 64:320] = 0
    compute = functools.partial(attention, until_BT=jnp.asarray(until_BT), implementation="triton")
    out, pull = jax.vjp(lambda q: compute(q, k, v, jnp.ones((1, 512), jnp.int32)), q)
    (dq,) = pull(d)
    for have in (out, dq):
        assert np.isfinite(np.asarray(have)[:, 320:]).all()


@pytest.mark.parametrize("implementation", ALL)
def test_no_document_sees_another(implementation):
    """Every other document changed, each output and gradient of the third stays the same to the bit."""
    rng, q, k, v, d = inputs(3, 1, 192, 2, 16)
    segment_ids_BT = layout(rng, 1, 192, 5)
    here = segment_ids_BT[0] == 3
    d[:, ~here] = 0

    @jax.jit
    def results(q, k, v):
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, segment_ids_BT, implementation=implementation), q, k, v)
        return (out, *pull(d))

    before = results(q, k, v)
    changed = [np.where(here[None, :, None, None], x, rng.normal(size=x.shape)).astype(np.float32) for x in (q, k, v)]
    for a, b in zip(before, results(*changed)):
        np.testing.assert_array_equal(np.asarray(a)[:, here], np.asarray(b)[:, here])
        assert np.isfinite(np.asarray(a)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("length", "documents", "head_dim"), [(60, 3, 8), (384, 1, 64), (300, 64, 80), (512, 9, 128)])
def test_the_kernel_is_exact_relative_to_the_whole(length, documents, head_dim, dtype):
    """Norm of the error over the norm of float64's result, for rounded inputs: 1e-6 in float32, 5e-3 in bfloat16."""
    rng, *arrays = inputs(length + head_dim, 2, length, 2, head_dim)
    segment_ids_BT = layout(rng, 2, length, documents)
    real = segment_ids_BT > 0
    arrays[3] *= real[..., None, None]
    *qkv, d = (jnp.asarray(x, dtype) for x in arrays)
    want, want_gradients = exact(*(np.asarray(x, np.float64) for x in qkv), segment_ids_BT, np.asarray(d, np.float64))

    @jax.jit
    def results(qkv, d):
        out, pull = jax.vjp(lambda *qkv: attention(*qkv, segment_ids_BT, implementation="triton"), *qkv)
        return out * real[..., None, None], *pull(d)

    limit = {"float32": 1e-6, "bfloat16": 5e-3}[dtype]
    for have, expected in zip(results(qkv, d), (want * real[..., None, None], *want_gradients)):
        error = np.linalg.norm(np.asarray(have, np.float64) - expected) / np.linalg.norm(expected)
        assert error < limit, error


def test_the_kernel_names_what_it_cannot_do():
    x, ids = np.ones((1, 8, 1, 160), np.float32), np.ones((1, 8), np.int32)
    with pytest.raises(ValueError, match="heads of up to 128, not 160"):
        attention(x, x, x, ids, implementation="triton")
    if jax.default_backend() == "cpu":
        with pytest.raises(ValueError, match="runs on GPUs; on a cpu use 'auto', 'blocked'"):
            any_attention(x, x, x, ids, implementation="triton")


def compiled_for(card, function, *shapes):
    """The program of `function` for a GPU that is not there, as text."""
    devices, kind = described_devices(CARDS[card], 1)
    if kind == "cpu":
        pytest.skip("needs XLA's CUDA compiler: pip install '.[plan]'")
    mesh = sharding.make_mesh(devices=devices)
    jitted = jax.jit(function, in_shardings=NamedSharding(mesh, PartitionSpec()))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return compile_for_described(jitted.trace(*shapes).lower()).as_text()


@pytest.mark.parametrize(("remat", "runs"), [("none", 1), ("dots", 1), ("attention-saved", 1), ("full", 2)])
def test_the_forward_kernel_runs_again_only_where_nothing_is_kept(remat, runs):
    def layer(x, _):
        return any_attention(jnp.sin(x), x, x, jnp.ones((1, 64), jnp.int32)), None

    if decoder.REMAT[remat] is not None:
        layer = jax.checkpoint(layer, policy=decoder.REMAT[remat], prevent_cse=False)
    gradient = jax.grad(lambda x: jax.lax.scan(layer, x, None, length=3)[0].sum())
    program = compiled_for("h200", gradient, jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.float32))
    assert len(re.findall(r"custom-call\(.*attention_forward", program)) == runs


def test_blocks_of_any_size_give_the_same():
    rng, q, k, v, _ = inputs(4, 2, 100, 2, 32)
    segment_ids_BT = layout(rng, 2, 100, 6)
    want = attention(q, k, v, segment_ids_BT, implementation="dense")
    for block in (1, 7, 64, 100, 512):
        have = blocked_attention(q, k, v, *visible(jnp.asarray(segment_ids_BT)), block)
        np.testing.assert_allclose(have, want, atol=2e-6)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("mesh", ["2x2x2", "1x1x8"])
def test_a_mesh_changes_nothing(mesh, implementation):
    rng, q, k, v, _ = inputs(5, 4, 96, 8, 16)
    segment_ids_BT = layout(rng, 4, 96, 4)
    compute = functools.partial(attention, implementation=implementation)
    want = compute(q, k, v, segment_ids_BT)
    with jax.set_mesh(mesh_of(mesh)):
        have = jax.jit(compute)(q, k, v, segment_ids_BT)
    np.testing.assert_allclose(have, want, atol=1e-6)


def test_bfloat16_is_as_close_as_its_eight_bits_allow():
    rng, q, k, v, d = inputs(6, 1, 128, 2, 64)
    segment_ids_BT = layout(rng, 1, 128, 3)
    want, _ = exact(q, k, v, segment_ids_BT, d)
    real = segment_ids_BT > 0
    for implementation in ALL:
        have = attention(
            *(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), segment_ids_BT, implementation=implementation
        )
        assert have.dtype == jnp.bfloat16
        error = np.abs(np.asarray(have, np.float64)[real] - want[real]).max()
        assert error < 2e-2  # 2^-8 of values up to 4


@pytest.mark.parametrize("implementation", ALL)
def test_large_scores_of_bfloat16_are_not_rounded(implementation):
    """Scores up to a hundred, which bfloat16 rounds to halves: as close to float64 as small ones."""
    rng, q, k, v, d = inputs(6, 1, 128, 2, 64)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (24 * q, k, v))
    segment_ids_BT = layout(rng, 1, 128, 3)
    want, _ = exact(q, k, v, segment_ids_BT, d)
    have = attention(q, k, v, segment_ids_BT, implementation=implementation)
    real = segment_ids_BT > 0
    assert np.abs(np.asarray(have, np.float64)[real] - want[real]).max() < 2e-2


def test_the_kernel_keeps_the_name_of_earlier_settings():
    _, q, k, v, _ = inputs(8, 1, 40, 1, 16)
    ids = np.ones((1, 40), np.int32)
    have, want = (attention(q, k, v, ids, implementation=name) for name in ("pallas", "triton"))
    np.testing.assert_array_equal(have, want)


def test_an_unknown_implementation_is_refused():
    x = np.ones((1, 8, 1, 8), np.float32)
    with pytest.raises(ValueError, match="'flash' is unknown"):
        attention(x, x, x, np.ones((1, 8), np.int32), implementation="flash")
