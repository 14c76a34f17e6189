"""Hooks: called when they are due, in order, with the parameters of the step; and what a finished run gives back."""

import os
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.common.metrics_log import Validated, read_metrics, read_validation
from optiml_jax.data.settings import Data
from optiml_jax.inference.model import load_model
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer
from optiml_jax.training import hooks
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


def run(cache: str, directory, steps: int = 7, rate: float = 1e-3, tasks=None, **options):
    data = Data("samples", cache, row_length=128, batch_rows=2, block_draws=64, tasks=tasks)
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


class Clock:
    """Time as the log sees it, which passes only when the test says so."""

    def __init__(self, monkeypatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(hooks.time, "perf_counter", lambda: self.now)


def test_a_row_has_the_mean_time_of_its_steps_without_checkpoints(tmp_path, monkeypatch):
    """The last step is fetched early (0.028 s instead of 0.045), and a checkpoint takes 100 s: no row shows either."""
    clock = Clock(monkeypatch)
    state = SimpleNamespace(
        config=MODEL,
        step=0,
        optimization=SimpleNamespace(train_steps=25),
        state=SimpleNamespace(trainable=decoder.abstract_params(MODEL)),
        computation=Computation(precision="fp16"),
        mesh=SimpleNamespace(size=1),
        metrics=None,
        batch=SimpleNamespace(real_tokens=900, row_fill=0.9, wait_seconds=0.0),
    )
    log = hooks.StepLog(state, tmp_path, Logging(log_every=10))
    for step in range(1, 26):
        clock.now += 5.0 if step == 1 else 0.045
        loss = np.inf if step == 15 else step  # an overflow in fp16 is in no mean
        state.metrics = {
            "loss": np.float32(loss),
            "grad_norm": np.float32(1.0),
            "loss_scale": np.float32(128),
            "label_tokens": np.int32(step),
        }
        log(step, None)
        if step in (13, 25):  # a checkpoint after step 13 and after the last one
            clock.now += 0.028
            log.flush()
            clock.now += 100.0
            log.resume_timing()
    log.close()
    rows = {row["step"]: row for row in read_metrics(tmp_path)}
    assert list(rows) == [1, 10, 20, 25]
    for first, step in ((1, 1), (2, 10), (11, 20), (21, 25)):
        steps = np.array([number for number in range(first, step + 1) if number != 15])
        assert rows[step]["loss"] == step
        assert rows[step]["mean_loss"] == pytest.approx((steps * steps).sum() / steps.sum())
    for step in (10, 20, 25):
        assert rows[step]["step_seconds"] == pytest.approx(0.045)
        assert rows[step]["tokens_per_second"] == pytest.approx(900 / 0.045)
    assert rows[25]["host_peak_bytes"] > 1e7 and rows[25]["device_peak_bytes"] is None


class Stopped:
    """Validation settings whose first validation is stopped by a signal while prompts are answered."""

    every, best_by = 3, "average"

    def __init__(self, error: Exception | None = None) -> None:
        self.calls, self.error = 0, error

    def prompts(self, manifest, init_weights):
        return []

    def scorer(self, *options):
        def score(params, stopping):
            self.calls += 1
            if self.error is not None:
                raise self.error
            if self.calls == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                return None if stopping() else {}
            return Validated({"average": 0.5, "benchmark_average": 0.5}, {"loss": 2.0})

        return score


@pytest.mark.parametrize("steps", [3, 7])
def test_a_signal_during_a_validation_stops_it_and_the_next_run_validates_first(cache, tmp_path, steps):
    validation = Stopped()
    with pytest.raises(SystemExit) as end:
        run(cache, tmp_path, steps, validation=validation)
    assert end.value.code == 143 and read_validation(tmp_path) == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert run(cache, tmp_path, steps, validation=validation).step == steps
    assert [row["step"] for row in read_validation(tmp_path)] == ([3] if steps == 3 else [3, 6, 7])


def test_a_validation_that_fails_costs_no_step(cache, tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        run(cache, tmp_path, 7, validation=Stopped(RuntimeError("out of memory")))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


@pytest.mark.parametrize(
    ("latest", "said"), [(None, "there is no checkpoint yet"), (40, "the checkpoint of step 40 is")]
)
def test_a_loss_that_is_not_finite_says_whether_a_checkpoint_is_intact(latest, said):
    values = {"loss": float("nan"), "grad_norm": 1.0, "loss_scale": 1.0}
    with pytest.raises(UserError, match=rf"step 41: loss nan, .*lower LEARNING_RATE .*\({said}"):
        hooks._check_finite(41, values, "bf16", lambda: latest)
