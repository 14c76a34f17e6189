"""A small model with the samples' vocabulary."""

import jax
import pytest

from optiml_jax.inference import ranking
from optiml_jax.inference.model import Model
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.meshes import mesh_of


@pytest.fixture(scope="session")
def config() -> OPTConfig:
    return OPTConfig(vocab_size=1536, layers=2, model_dim=64, heads=8, ffn_dim=128, max_positions=256, init_scale=0.1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(ROOT / "tasks" / "samples" / "tokenizer")


def make(config: OPTConfig, tokenizer: Tokenizer, mesh_name: str = "1x1x1", **options) -> Model:
    mesh = mesh_of(mesh_name)
    abstract = decoder.abstract_params(config)
    params = jax.jit(
        lambda key: decoder.init_params(key, config), out_shardings=sharding.parameter_shardings(abstract, mesh)
    )(jax.random.key(0))
    return Model(config, params, tokenizer, mesh, source="random", **options)


def continuation_scores(model: Model, pairs, batch_rows: int = 8) -> list[float]:
    return [continuation.score for continuation in ranking.continuations(model, pairs, batch_rows)]


@pytest.fixture(scope="session")
def model(config, tokenizer) -> Model:
    return make(config, tokenizer)
