"""Decoding with the kernel that reads the KV cache, in the interpreter, against dense math in float64.

On a GPU, where the kernel itself runs:
JAX_PLATFORMS=cuda JAX_DEFAULT_MATMUL_PRECISION=highest python -m pytest tests/inference/test_cache_attention.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optiml_jax import weights
from optiml_jax.inference import cache_attention
from optiml_jax.inference.cache_attention import PAGE, QUERIES, plan_reads
from optiml_jax.inference.paged_cache import _Pages, prefix_numbers
from optiml_jax.model import decoder, sharding
from optiml_jax.model.layers import is_layers, is_separate, separate
from tests.inference.conftest import make
from tests.meshes import mesh_of

SHARED = (
    "Definition: decide whether the review is positive or negative, and answer with one of these two words. "
    "Positive Example 1 - Input: The film was a delight from the first minute to the last. Output: positive. "
) * 2
INTERPRET = jax.default_backend() == "cpu"  # on a GPU the kernel itself
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


def tables_of(prompts: list[list[int]], filled_B: np.ndarray, devices: int) -> tuple[list[list[int]], int]:
    """Pages of each row, in random order, where rows with the same leading tokens share; and pages per device."""
    rows, rng = len(prompts) // devices, np.random.default_rng(0)
    tables, counts = [], []
    for first in range(0, len(prompts), rows):
        page_of: dict = {}
        for row in range(first, first + rows):
            table = []
            for index in range(-(-(filled_B[row] + 1) // PAGE) if filled_B[row] else 0):
                numbers = prefix_numbers(prompts[row])
                name = numbers[index] if index < len(numbers) else (row, index)
                table.append(page_of.setdefault(name, len(page_of)))
            tables.append(table)
        counts.append(len(page_of))
    order = rng.permutation(max(counts))
    return [[int(order[page]) for page in table] for table in tables], max(counts)


def dense(q_HK, keys_HCK, values_HCK):
    scores_HC = np.einsum("hk,hck->hc", q_HK, keys_HCK)
    weights_HC = np.exp(scores_HC - scores_HC.max(-1, keepdims=True))
    return np.einsum("hc,hck->hk", weights_HC / weights_HC.sum(-1, keepdims=True), values_HCK)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mesh", [None, "2x2x2"])
@pytest.mark.parametrize("size", [64, 80, 128])
def test_attention_over_pages_equals_dense_math(size, mesh, dtype):
    if mesh and len(jax.devices()) < 8:
        pytest.skip("needs eight devices")
    rng = np.random.default_rng(size)
    layers, rows, heads, most = 2, 24, 2, 4
    devices = 1 if mesh is None else 4
    prompts, filled_B = random_rows(rng, rows, most * PAGE)
    tables, pages = tables_of(prompts, filled_B, devices)
    shape = layers, devices * pages, heads, PAGE, size
    cache = [rng.normal(size=shape).astype(np.float32).astype(dtype) for _ in range(2)]
    q, key, value = (rng.normal(size=(rows, heads, size)).astype(np.float32) for _ in range(3))
    q, key, value = ((x * scale).astype(dtype) for x, scale in zip((q, key, value), (size**-0.5, 1, 1)))
    position_B = np.where(filled_B > 0, filled_B, rng.integers(0, 10**6, rows)).astype(np.int32)
    arguments = q, key, value, tuple(cache), jnp.int32(1), position_B, plan_reads(tables, most, devices)
    attend = jax.jit(cache_attention.attend, static_argnums=7)
    if mesh is None:
        out, new_cache = attend(*arguments, INTERPRET)
    else:
        with jax.set_mesh(mesh_of(mesh)):
            out, new_cache = attend(*arguments, INTERPRET)
    expected = [old.copy() for old in cache]
    for row in range(rows):
        if not filled_B[row]:
            assert not np.asarray(out[row]).any()
            continue
        own = np.array(tables[row]) + row // (rows // devices) * pages
        index, place = divmod(int(filled_B[row]), PAGE)
        both = []
        for old, new, after in zip(cache, (key, value), expected):
            after[1, own[index], :, place] = new[row]
            read = np.concatenate(list(old[1, own].swapaxes(1, 0).reshape(heads, -1, size)[None]), 1)
            both.append(np.concatenate([read[:, : filled_B[row]], new[row][:, None]], 1).astype(np.float64))
        want = dense(q[row].astype(np.float64), *both)
        np.testing.assert_allclose(np.asarray(out[row], np.float64), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for after, want in zip(new_cache, expected):
        np.testing.assert_array_equal(np.asarray(after), want)  # nothing else is written


def test_a_page_that_rows_have_in_common_is_read_once_for_up_to_16():
    rows = QUERIES + 4
    tables = [[7, 3, 10 + row] for row in range(rows)] + [[]]
    reads = plan_reads(tables, 4)
    count = int(reads.count_X[0])
    # Two pages of the prefix, each for 16 rows and for 4; then one page per row.
    assert count == 2 * 2 + rows
    triples = {
        (int(row), int(index), int(page))
        for page, index, queries in zip(reads.page_I[:count], reads.index_I, reads.queries_IQ)
        for row in queries
        if row < len(tables)
    }
    assert triples == {(row, index, page) for row, table in enumerate(tables) for index, page in enumerate(table)}
    assert reads.pages_B.tolist() == [3] * rows + [0]
    assert all(tables[row][index] == page for row, index, page in zip(reads.row_I[:count], reads.index_I, reads.page_I))


def test_prefixes_are_equal_only_where_everything_before_is():
    first, second = list(range(3 * PAGE + 1)), list(range(3 * PAGE + 1))
    second[PAGE] = 7
    numbers, others = prefix_numbers(first), prefix_numbers(second)
    assert len(numbers) == len(others) == 3
    assert [a == b for a, b in zip(numbers, others)] == [True, False, False]


def test_pages_are_shared_while_they_are_in_use_and_free_afterwards():
    pages = _Pages(6)
    first, shared = pages.take([11, 12], 4)
    assert shared == 0 and len(set(first)) == 4
    second, shared = pages.take([11, 12, 13], 4)
    assert shared == 2 and second[:2] == first[:2] and not set(second[2:]) & set(first)
    assert pages.take([99], 1) is None, "six pages are in use"
    pages.give_back(first)
    third, shared = pages.take([11, 99], 3)
    assert shared == 1 and third[0] == first[0] and set(third[1:]) == set(first[2:])
    pages.give_back(second)
    pages.give_back(third)
    assert pages.take([11], 6)[1] == 0, "what nobody uses is forgotten"


def with_separate_layers(config, tokenizer, mesh: str = "1x1x1"):
    model = make(config, tokenizer, mesh)
    model.params = separate(model.params)
    return model


@pytest.mark.parametrize(
    ("mesh", "count", "limits"),
    [
        ("1x1x1", 2, [5, 12, 1, 3]),
        pytest.param("1x1x1", 7, [5, 17, 33, 40, 1, 20, 9, 30, 16], marks=pytest.mark.slow),
        pytest.param("2x2x2", 7, [5, 17, 33, 40, 1, 20, 9, 30, 16], marks=pytest.mark.slow),
    ],
)
def test_texts_are_those_of_plain_jax(mesh, count, limits, model, config, tokenizer):
    prompts = [SHARED + f"Input: number {i}{' and more' * (i % 3)}. Output:" for i in range(count)]
    prompts += ["Hi", SHARED[:50]]
    expected = model.generate_prompts(prompts, limits, batch_rows=4)
    kernel = with_separate_layers(config, tokenizer, mesh)
    assert kernel.generate_prompts(prompts, limits, batch_rows=4) == expected
    np.testing.assert_allclose(
        kernel.rank(["Hi", "Ho"], [[" a", " b"], [" c"]])[0], model.rank(["Hi"], [[" a", " b"]])[0]
    )


@pytest.mark.slow
def test_prompts_wait_for_pages_and_share_them(model, config, tokenizer, monkeypatch):
    """In a cache with room for two prompts of the longest length, of which most pages are shared."""
    kernel = with_separate_layers(config, tokenizer)
    longest = -(-config.max_positions // PAGE)
    kernel.capacity = kernel.capacity._replace(cache_positions=2 * longest * PAGE)
    taken, take = [], _Pages.take

    def spy(self, numbers, count):
        result = take(self, numbers, count)
        taken.append((count, result and result[1]))
        return result

    monkeypatch.setattr(_Pages, "take", spy)
    prompts = [SHARED + f"Input: number {i}. Output:" for i in range(8)]
    assert len(kernel.prompt_ids(SHARED)) > PAGE
    assert kernel.generate(prompts, 3) == model.generate(prompts, 3)
    assert any(result is None for _, result in taken), "some had to wait"
    assert sum(bool(result) for _, result in taken) >= 5, "most share their first page"


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
