"""Hooks: called when they are due, in order, with the parameters of the step; and what a finished run gives back."""

import jax
import numpy as np
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.common.metrics_log import read_metrics
from optiml_jax.data.settings import Data
from optiml_jax.inference.model import load_model
from optiml_jax.model import sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer
from optiml_jax.training.hooks import Logging
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.run import train
from optiml_jax.training.step import Computation
from tasks.benchmarks.samples import TOKENIZER
from tasks.caching import build
from tasks.caching.work_item import Job

MODEL = OPTConfig(vocab_size=1536, layers=1, model_dim=32, heads=2, ffn_dim=64, max_positions=128)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("cache")
    build.run(Job("samples", None, str(directory)), Tokenizer.load(TOKENIZER))
    return str(directory)


def run(cache: str, directory, steps: int = 7, rate: float = 1e-3, **options):
    data = Data("samples", cache, row_length=128, batch_rows=2, block_draws=64)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    optimization = Optimization(learning_rate=rate, train_steps=steps, warmup_steps=1)
    logging = Logging(log_every=2, checkpoint_every=3)
    return train(MODEL, optimization, Computation(precision="fp32"), data, mesh, logging, str(directory), **options)


def test_hooks_are_called_when_due_in_order_and_after_the_last_step(cache, tmp_path):
    calls, seen = [], {}

    def every_two(step, params):
        calls.append(("two", step))
        seen[step] = np.asarray(params["token_embedding"])

    record = run(cache, tmp_path, hooks=[(2, every_two), (3, lambda step, params: calls.append(("three", step)))])
    assert calls == [("two", 2), ("three", 3), ("two", 4), ("two", 6), ("three", 6), ("two", 7), ("three", 7)]
    assert not np.array_equal(seen[2], seen[4])
    assert record.step == 7 and record.model_dir == tmp_path and record.evaluation is None
    assert record.metrics == read_metrics(tmp_path) and [row["step"] for row in record.metrics] == [1, 2, 4, 6, 7]
    # the parameters of the last step are those that are saved
    np.testing.assert_array_equal(load_model(tmp_path).params["token_embedding"], seen[7])


def test_hooks_change_no_number(cache, tmp_path):
    with_hook = run(cache, tmp_path / "with", hooks=[(1, lambda step, params: jax.tree.map(np.asarray, params))])
    without = run(cache, tmp_path / "without")
    assert [row["loss"] for row in with_hook.metrics] == [row["loss"] for row in without.metrics]


def test_a_state_whose_loss_is_no_number_is_not_saved(cache, tmp_path):
    with pytest.raises(UserError, match=r"step 2: loss .*lower LEARNING_RATE"):
        run(cache, tmp_path, steps=6, rate=1e20)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == []


def test_what_a_hook_raises_ends_the_run_with_what_was_saved_before(cache, tmp_path):
    def fail(step, params):
        raise RuntimeError(f"hook at {step}")

    with pytest.raises(RuntimeError, match="hook at 5"):
        run(cache, tmp_path, hooks=[(5, fail)])
    assert run(cache, tmp_path).step == 7  # goes on from step 3
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 4, 6, 7]
