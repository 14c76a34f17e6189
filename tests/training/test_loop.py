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


def test_the_first_of_equal_validations_is_kept():
    saved, scores = [], iter([0.5, 0.5, 0.4, 0.6])
    loader = SimpleNamespace(check=lambda: None, state={})
    run = SimpleNamespace(step=0, stopping=lambda: False, loader=loader, state=SimpleNamespace(trainable={}))
    log = SimpleNamespace(flush=lambda: None, resume_timing=lambda: None, validated=lambda *_: None)
    best = SimpleNamespace(
        delete_after=lambda step: None, latest=None, save_weights=lambda step, *_: saved.append(step)
    )

    def score(params, stopping):
        return Validated({"average": next(scores)})

    validator = hooks.Validator(run, log, score, best, "average", lambda state: {}, [])
    for number in (1, 2, 3, 4):
        validator(number, None)
    assert saved == [1, 4]
