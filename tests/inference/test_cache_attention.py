"""Decoding with the kernel that reads the KV cache, in the interpreter, against dense math in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optiml_jax import weights
from optiml_jax.inference import cache_attention
from optiml_jax.inference.cache_attention import BLOCK, QUERIES, block_prefixes, plan_reads
from optiml_jax.model import decoder, sharding
from optiml_jax.model.layers import is_layers, is_separate, separate
from tests.inference.conftest import make
from tests.meshes import mesh_of

SHARED = (
    "Definition: decide whether the review is positive or negative, and answer with one of these two words. "
    "Positive Example 1 - Input: The film was a delight from the first minute to the last. Output: positive. "
) * 2
TOLERANCE = {"float32": 1e-6, "bfloat16": 5e-3}


def random_rows(rng: np.random.Generator, rows: int, length: int) -> tuple[list[list[int]], np.ndarray]:
    """Prompts with branching prefixes, and the number of positions that each row has filled; some are not in use."""
    trunk = rng.integers(0, 9, length).tolist()
    prompts = []
    for _ in range(rows):
        size = int(rng.integers(1, length - 16))
        branch = int(rng.integers(0, size + 1))
        prompts.append(trunk[:branch] + rng.integers(10, 99, size - branch).tolist())
    used = rng.random(rows) < 0.9
    filled = np.array([len(prompt) for prompt in prompts]) + rng.integers(0, 16, rows)
    return prompts, np.where(used, filled, 0).astype(np.int32)


def random_cache(rng: np.random.Generator, prompts: list[list[int]], layers: int, heads: int, length: int, size: int):
    """Keys or values that depend on the tokens up to a position, as a model's do."""
    cache = rng.normal(size=(layers, len(prompts), heads, length, size)).astype(np.float32)
    first_row = {}
    for row, prompt in enumerate(prompts):
        for position in range(len(prompt)):
            source = first_row.setdefault(tuple(prompt[: position + 1]), row)
            cache[:, row, :, position] = cache[:, source, :, position]
    return cache


def dense(q_HK, keys_HCK, values_HCK):
    scores_HC = np.einsum("hk,hck->hc", q_HK, keys_HCK)
    weights_HC = np.exp(scores_HC - scores_HC.max(-1, keepdims=True))
    return np.einsum("hc,hck->hk", weights_HC / weights_HC.sum(-1, keepdims=True), values_HCK)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mesh", [None, "2x2x2"])
@pytest.mark.parametrize("size", [64, 80, 128])
def test_attention_over_the_cache_equals_dense_math(size, mesh, dtype):
    rng = np.random.default_rng(size)
    layers, rows, heads, length = 2, 24, 2, 4 * BLOCK
    prompts, filled_B = random_rows(rng, rows, length)
    cache = [random_cache(rng, prompts, layers, heads, length, size).astype(dtype) for _ in range(2)]
    q, key, value = (rng.normal(size=(rows, heads, size)).astype(np.float32) for _ in range(3))
    q, key, value = ((x * scale).astype(dtype) for x, scale in zip((q, key, value), (size**-0.5, 1, 1)))
    position_B = np.where(filled_B > 0, filled_B, rng.integers(0, 10**6, rows)).astype(np.int32)
    devices = 1 if mesh is None else 4
    reads = plan_reads(list(map(block_prefixes, prompts)), np.where(filled_B > 0, filled_B + 1, 0), length, devices)
    arguments = q, key, value, tuple(cache), jnp.int32(1), position_B, reads
    attend = jax.jit(cache_attention.attend, static_argnums=7)
    if mesh is None:
        out, new_cache = attend(*arguments, True)
    else:
        with jax.set_mesh(mesh_of(mesh)):
            out, new_cache = attend(*arguments, True)
    for row in range(rows):
        if not filled_B[row]:
            assert not np.asarray(out[row]).any()
            continue
        keys, values = (
            np.concatenate([old[1, row, :, : filled_B[row]], new[row][:, None]], 1).astype(np.float64)
            for old, new in zip(cache, (key, value))
        )
        np.testing.assert_allclose(
            np.asarray(out[row], np.float64),
            dense(q[row].astype(np.float64), keys, values),
            rtol=TOLERANCE[dtype],
            atol=TOLERANCE[dtype],
        )
    used = np.flatnonzero(filled_B)
    for old, new, after in zip(cache, (key, value), new_cache):
        expected = old.copy()
        expected[1, used, :, filled_B[used]] = new[used]
        np.testing.assert_array_equal(np.asarray(after), expected)  # nothing else is written


def test_a_block_that_rows_have_in_common_is_read_once_for_up_to_16():
    shared, own = list(range(2 * BLOCK)), 5
    prompts = [[*shared, *range(1000 * row, 1000 * row + own)] for row in range(QUERIES + 4)]
    filled = [len(prompt) + 1 for prompt in prompts]
    reads = plan_reads(list(map(block_prefixes, prompts)), filled, 4 * BLOCK)
    count = int(reads.count_X[0])
    # Two blocks of the prefix, each for 16 rows and for 4; then one block per row.
    assert count == 2 * 2 + len(prompts)
    pairs = [
        (int(row), int(block)) for block, queries in zip(reads.block_I[:count], reads.queries_IQ) for row in queries
    ]
    pairs = [pair for pair in pairs if pair[0] < len(prompts)]
    assert sorted(pairs) == [(row, block) for row in range(len(prompts)) for block in range(3)]
    assert reads.blocks_B.tolist() == [3] * len(prompts)


def test_prefixes_are_equal_only_where_everything_before_is():
    first, second = list(range(3 * BLOCK + 1)), list(range(3 * BLOCK + 1))
    second[BLOCK] = 7
    one, other = block_prefixes(first), block_prefixes(second)
    assert len(one) == len(other) == 3
    assert [a == b for a, b in zip(one, other)] == [True, False, False]
    assert all(0 <= number < 2**63 for number in one + other)


def with_separate_layers(config, tokenizer, mesh: str = "1x1x1"):
    model = make(config, tokenizer, mesh)
    model.params = separate(model.params)
    return model


@pytest.mark.parametrize("mesh", ["1x1x1", "2x2x2"])
def test_texts_are_those_of_plain_jax(mesh, model, config, tokenizer):
    prompts = [SHARED + f"Input: number {i}{' and more' * (i % 3)}. Output:" for i in range(7)] + ["Hi", SHARED[:50]]
    limits = [5, 17, 33, 40, 1, 20, 9, 30, 16]
    expected = model.generate_prompts(prompts, limits, batch_rows=4)
    kernel = with_separate_layers(config, tokenizer, mesh)
    assert kernel.generate_prompts(prompts, limits, batch_rows=4) == expected
    np.testing.assert_allclose(
        kernel.rank(["Hi", "Ho"], [[" a", " b"], [" c"]])[0], model.rank(["Hi"], [[" a", " b"]])[0]
    )


def test_separate_layers_are_the_same_parameters(tmp_path, model, config, tokenizer):
    kernel = with_separate_layers(config, tokenizer)
    assert is_separate(kernel.params) and not is_separate(model.params)
    assert kernel.fingerprint == model.fingerprint
    kernel.save(tmp_path / "separate")
    model.save(tmp_path / "stacked")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("separate", "stacked")]
    assert files[0] == files[1]
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), model.params)
    described, real = (
        jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree) for tree in (separate(abstract), kernel.params)
    )
    assert described == real
    shapes = jax.tree.map(lambda leaf: leaf.shape, kernel.params, is_leaf=is_layers)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, model.params)


@pytest.mark.parametrize("mesh", ["1x1x1", "2x2x2"])
def test_weights_are_loaded_layer_by_layer(mesh, tmp_path, model, config):
    model.save(tmp_path / "hf")
    shardings = sharding.parameter_shardings(decoder.abstract_params(config), mesh_of(mesh))
    stacked, apart = (weights.load(tmp_path / "hf", config, shardings, separate=flag) for flag in (False, True))
    expected = separate(stacked)
    for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(expected), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
