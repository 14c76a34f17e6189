"""The loop itself, on one batch that repeats."""

import itertools
from types import SimpleNamespace

import jax

from optiml_jax.common.metrics_log import Validated
from optiml_jax.training import hooks, step
from optiml_jax.training.loop import Run, run_steps
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.step import Computation
from tests.meshes import mesh_of

FP32 = Computation(precision="fp32")


def test_every_step_drops_other_units(config, batch):
    """The rate is too low to change a parameter: losses differ by dropout alone."""
    assert config.dropout > 0
    settings, mesh, losses = Optimization(learning_rate=1e-30, train_steps=3), mesh_of("1x1x1"), []
    with jax.set_mesh(mesh):
        state = step.init_state(jax.random.key(0), config, settings, FP32, mesh)
        batches = itertools.repeat(SimpleNamespace(arrays=batch))
        run = Run(config, settings, FP32, mesh, state, 0, batches, None, 8, jax.random.key(1))
        run_steps(run, [(1, lambda number, params: losses.append(float(run.metrics["loss"])))])
    assert len(losses) == len(set(losses)) == 3


def steps_saved(best_by: str, outcomes: list[Validated], before: tuple = (), latest: int | None = None) -> list[int]:
    """The steps whose weights a `Validator` saves."""
    saved, remaining = [], iter(outcomes)
    loader = SimpleNamespace(check=lambda: None, state={})
    run = SimpleNamespace(step=0, stopping=lambda: False, loader=loader, state=SimpleNamespace(trainable={}))
    log = SimpleNamespace(flush=lambda: None, resume_timing=lambda: None, validated=lambda *_: None)
    best = SimpleNamespace(
        delete_after=lambda step: None, latest=latest, save_weights=lambda step, *_: saved.append(step)
    )
    validator = hooks.Validator(run, log, lambda *_: next(remaining), best, best_by, lambda state: {}, before)
    for number in range(1, len(outcomes) + 1):
        validator(number, None)
    return saved


def test_the_first_of_equal_validations_is_kept():
    assert steps_saved("average", [Validated({"average": score}, {}) for score in (0.5, 0.5, 0.4, 0.6)]) == [1, 4]


def test_the_lowest_loss_can_choose_the_best_weights():
    outcomes = [Validated({"average": 0.9 - loss / 10}, {"loss": loss}) for loss in (3.0, 3.0, 3.5, 2.5)]
    assert steps_saved("loss", outcomes) == [1, 4]
    before = {"step": 0, "average": 0.1, "benchmark_average": 0.1, "loss": 2.75}
    assert steps_saved("loss", outcomes, (before,), latest=0) == [4]  # a resumed run
    assert steps_saved("loss", outcomes, ({**before, "loss": 2.0},), latest=0) == []
