"""Weights are in memory in the dtype that computes; what a half-precision model answers is close to float32."""

import contextlib
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optiml_jax
from optiml_jax import weights
from optiml_jax.checkpoints.orbax import Checkpoints
from optiml_jax.common.errors import UserError
from optiml_jax.inference import ranking
from optiml_jax.inference.precision import dtype_on
from tests.inference.conftest import make
from tests.inference.test_model import CANDIDATES, PROMPTS
from tests.meshes import mesh_of

HALF = {"bf16": jnp.bfloat16, "fp16": jnp.float16}


@pytest.fixture(scope="module")
def exact(config, tokenizer):
    """A model whose query scale is a power of two, so that scaling before or after rounding is the same."""
    return make(dataclasses.replace(config, heads=4), tokenizer)


@pytest.fixture(scope="module")
def sources(exact, tmp_path_factory):
    """The same weights as a Hugging Face directory and as a run."""
    folder = tmp_path_factory.mktemp("sources")
    exact.save(folder / "hf")
    settings = {"tokenizer": exact.tokenizer.fingerprint, "Data.leading_eos": True}
    with contextlib.closing(Checkpoints(folder / "run", keep=1)) as checkpoints:
        checkpoints.save_weights(0, exact.params, {"settings": settings, "model": vars(exact.config)})
        checkpoints.wait()
    exact.tokenizer.save(folder / "run" / "tokenizer")
    return folder


@pytest.mark.parametrize(
    ("platform", "capability", "dtype"),
    [
        ("cpu", None, jnp.float32),
        ("gpu", "7.0", jnp.float16),
        ("gpu", "8.0", jnp.bfloat16),
        ("gpu", "12.0", jnp.bfloat16),
    ],
)
def test_auto_is_half_precision_on_gpus(platform, capability, dtype):
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    assert dtype_on(device, "auto") is dtype
    assert dtype_on(device, "fp32") is jnp.float32 and dtype_on(device, "bf16") is jnp.bfloat16


@pytest.mark.parametrize("kind", ["hf", "run"])
@pytest.mark.parametrize("mesh_name", ["1x1x1", pytest.param("2x2x2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", HALF)
def test_weights_are_loaded_in_the_dtype_that_computes(exact, sources, kind, mesh_name, precision):
    loaded = optiml_jax.load_model(sources / kind, precision=precision, mesh=mesh_of(mesh_name))
    norms = {"attention_norm", "mlp_norm", "final_norm"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params):
        is_norm = bool(norms & {key.key for key in path})
        assert leaf.dtype == (jnp.float32 if is_norm else HALF[precision]), path
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params)) < 0.51 * sum(
        leaf.nbytes for leaf in jax.tree.leaves(exact.params)
    )
    tokens = np.random.default_rng(0).integers(4, 1500, (3, 40))
    if mesh_name == "1x1x1":  # as training computes: from float32, rounded at each use
        cast = type(exact)(**vars_of(exact), dtype=HALF[precision])
        np.testing.assert_array_equal(loaded.logits(tokens), cast.logits(tokens))
    else:
        np.testing.assert_allclose(loaded.logits(tokens), exact.logits(tokens), atol=0.1)


def vars_of(model):
    names = ("config", "params", "tokenizer", "mesh", "source", "leading_eos")
    return {name: getattr(model, name) for name in names}


def test_scores_are_float32_and_close_to_those_of_float32_weights(exact, sources):
    loaded = optiml_jax.load_model(sources / "hf", precision="bf16")
    pairs = [
        (exact.prompt_ids(prompt), exact.tokenizer.encode(text))
        for prompt, texts in zip(PROMPTS, CANDIDATES)
        for text in texts
    ]
    half, full = (ranking.continuations(model, pairs) for model in (loaded, exact))
    for have, want in zip(half, full):
        assert have.log_probabilities.dtype == np.float32
        np.testing.assert_allclose(have.log_probabilities, want.log_probabilities, atol=0.05)
    # Log-probabilities in bfloat16 would be multiples of 1/32 from 4 on.
    scores = np.concatenate([each.log_probabilities for each in half])
    assert (scores * 32 % 1 != 0).mean() > 0.9
    assert loaded.fingerprint != exact.fingerprint


def test_export_in_half_precision_loads_as_it_was(sources, tmp_path):
    loaded = optiml_jax.load_model(sources / "run", precision="bf16")
    loaded.save(tmp_path / "again")
    assert weights.stored_dtype(tmp_path / "again", loaded.config) == jnp.bfloat16
    again = optiml_jax.load_model(tmp_path / "again", precision="bf16")
    tokens = np.random.default_rng(0).integers(4, 1500, (1, 30))
    np.testing.assert_allclose(again.logits(tokens), loaded.logits(tokens), atol=0.05)  # norms are rounded


def test_damage_is_found_in_every_precision(exact, sources, tmp_path):
    params = jax.tree.map(lambda x: x, exact.params)
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        checkpoints.save_weights(0, params, {"settings": {}, "model": vars(exact.config)})
        checkpoints.wait()
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), params)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.restore_params(0, like)
        meta = checkpoints.meta(0)
        checkpoints.meta = lambda step: meta | {"params": "0" * 32}
        with pytest.raises(UserError, match="checksum of its params"):
            checkpoints.restore_params(0, like)


def test_an_unknown_precision_is_refused(sources):
    with pytest.raises(UserError, match="no precision bf61; did you mean bf16"):
        optiml_jax.load_model(sources / "hf", precision="bf61")
