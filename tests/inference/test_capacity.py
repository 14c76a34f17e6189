"""How much is computed at once: what memory allows, by hand arithmetic."""

import pytest

from optiml_jax.inference import capacity as module
from optiml_jax.inference.capacity import CPU, capacity
from optiml_jax.model.decoder import parameter_count
from tests.meshes import mesh_of
from tools.speed.models import MODELS

CARD = 80 * 10**9


@pytest.mark.parametrize(
    ("name", "mesh_name"), [("125m", "1x1x1"), ("1.3b", "1x1x1"), ("6.7b", "1x1x1"), ("6.7b", "2x2x2")]
)
def test_caches_and_prompts_fit_beside_the_weights(name, mesh_name):
    config, mesh = MODELS[name], mesh_of(mesh_name)
    free = CARD - 2 * parameter_count(config) // (mesh.shape["fsdp"] * mesh.shape["tensor"])
    have = capacity(config, mesh, 2, free)
    parts, tensor = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]
    position_bytes = 4 * config.layers * config.model_dim // tensor
    cache, prefill = (
        positions // parts * position_bytes for positions in (have.cache_positions, have.prefill_positions)
    )
    assert 2 * cache + prefill < 0.75 * free and cache > 0.29 * free
    assert have.rows == 256 * parts and have.positions == 32_768 * parts


def test_a_row_of_the_longest_prompt_is_always_possible():
    config = MODELS["6.7b"]
    have = capacity(config, mesh_of("1x1x1"), 2, free_bytes=10**8)
    assert have.cache_positions == have.prefill_positions == config.max_positions


def test_cpus_compute_what_was_measured_to_be_fast():
    assert capacity(MODELS["125m"], mesh_of("1x1x1"), 4, None) == CPU
    assert capacity(MODELS["125m"], mesh_of("2x2x2"), 4, None) == CPU._replace(positions=4 * 2_048)
    assert module.free_bytes(mesh_of("2x2x2").devices.flat) is None


def test_pages_are_not_copied_and_take_more_memory():
    config, free = MODELS["6.7b"], 40 * 10**9
    rows, pages = (capacity(config, mesh_of("1x1x1"), 2, free, paged) for paged in (False, True))
    assert pages.cache_positions == pytest.approx(5 / 3 * rows.cache_positions, abs=2)
    assert pages._replace(cache_positions=0) == rows._replace(cache_positions=0)
    small = MODELS["125m"]
    assert capacity(small, mesh_of("1x1x1"), 2, free, True).cache_positions == 256 * small.max_positions
