"""The training loop: batches in, metrics and checkpoints out, interrupted and resumed at any step."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from optiml_jax.data.loader import Batch, Loader, to_devices
from optiml_jax.distributed import together
from optiml_jax.errors import UserError
from optiml_jax.opt import decoder
from optiml_jax.opt.config import OPTConfig
from optiml_jax.settings import check_fields
from optiml_jax.training import flops, loss_scale, step
from optiml_jax.training.checkpoints import Checkpoints
from optiml_jax.training.metrics_log import MetricsLog
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.step import Computation, TrainState

AGREE_SECONDS = 5.0  # between the moments at which many processes ask each other whether to stop


@dataclasses.dataclass(frozen=True)
class Logging:
    """When to write what.

    Attributes:
      log_every, checkpoint_every: in steps; the last step is always saved.
      keep_checkpoints: newest ones kept.
      peak_flops: of one device, where the table in `flops.py` does not know it.
    """

    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass
class Run:
    """What the loop works on; `state` is after `step` batches, and `loader` stands at the next one."""

    config: OPTConfig
    optimization: Optimization
    computation: Computation
    mesh: Mesh
    state: TrainState
    step: int
    loader: Loader
    rows: Any  # of each global batch, those this process reads
    batch_rows: int
    key: jax.Array  # of the run; each step folds its number in


def run_steps(
    run: Run, model_dir: Path, checkpoints: Checkpoints, logging: Logging, meta: Callable[[dict], dict[str, Any]]
) -> bool:
    """Trains from `run.step` to the last step.

    Args:
      meta: metadata of a checkpoint, given the loader's state.

    Returns:
      Whether the last step was reached; False when SIGTERM or SIGINT asked to stop. The state is saved in both cases.

    Raises:
      UserError: the loss is not finite, or the fp16 loss scale is at its floor.
    """
    total = run.optimization.train_steps
    advance = step.compiled_step(run.config, run.optimization, run.computation, run.mesh)
    sharding = NamedSharding(run.mesh, step.BATCH_SPEC)
    log = MetricsLog(model_dir, run.step, total, active=jax.process_index() == 0)
    clock = _Clock(run, logging)
    waiting: _Pending | None = None
    saved = run.step
    with _StopSignals() as stop:
        try:
            while run.step < total and not stop.agreed(run):
                batch = next(run.loader)
                arrays = to_devices(batch.arrays, sharding, run.batch_rows, run.rows)
                key = jax.random.fold_in(run.key, run.step)
                run.state, metrics = advance(run.state, arrays, key)
                run.step += 1
                # Metrics are fetched one step late, while the device works on the next: it never waits for us.
                if waiting:
                    clock.write(log, waiting)
                waiting = _Pending(run.step, metrics, batch)
                if run.step % logging.checkpoint_every == 0 or run.step == total:
                    clock.write(log, waiting)  # a checkpoint must not hold a state whose loss nobody has looked at
                    waiting = None
                    _save(run, checkpoints, meta)
                    saved = run.step
            if waiting:
                clock.write(log, waiting)
            if saved < run.step:  # asked to stop between steps
                _save(run, checkpoints, meta)
            checkpoints.wait()
        finally:
            log.close()
    return run.step == total


def _save(run: Run, checkpoints: Checkpoints, meta: Callable[[dict], dict[str, Any]]) -> None:
    """Starts a checkpoint, of a state that no damaged token has touched."""
    with together():
        run.loader.check()
    checkpoints.save(run.step, run.state, meta(run.loader.state))


def steps_until_asking(seconds: float) -> int:
    """Steps that take about `AGREE_SECONDS`, at least one, given the seconds of one."""
    return max(1, int(AGREE_SECONDS / max(seconds, 1e-3)))


@dataclasses.dataclass
class _Pending:
    step: int
    metrics: dict[str, jax.Array]
    batch: Batch


class _Clock:
    """Turns a finished step into a row of `metrics.jsonl`."""

    def __init__(self, run: Run, logging: Logging) -> None:
        self._run, self._logging = run, logging
        self._parameters = decoder.parameter_count(run.config)
        self._peak = flops.peak_flops(logging.peak_flops)
        self._last = time.perf_counter()

    def write(self, log: MetricsLog, pending: _Pending) -> None:
        values = {name: value.item() for name, value in jax.device_get(pending.metrics).items()}
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        _check_finite(pending.step, values, self._run.computation.precision)
        log.advance()
        if pending.step % self._logging.log_every and pending.step not in (1, self._run.optimization.train_steps):
            return
        tokens = pending.batch.real_tokens
        devices = self._run.mesh.size
        log.write(
            {"step": pending.step}
            | values
            | {
                "real_tokens": tokens,
                "row_fill": pending.batch.row_fill,
                "tokens_per_second": tokens / seconds,
                "step_seconds": seconds,
                "data_wait_seconds": pending.batch.wait_seconds,
                "mfu": flops.mfu(self._parameters, tokens, seconds, devices, self._peak),
                "mfu_formula": flops.FORMULA,
            }
        )


def _check_finite(number: int, values: dict[str, float], precision: str) -> None:
    if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
        return
    if precision != "fp16":
        raise UserError(
            f"step {number}: loss {values['loss']}, gradient norm {values['grad_norm']}; lower LEARNING_RATE "
            "or look at the weights the run started from (the last checkpoint is sound)"
        )
    if values["loss_scale"] <= loss_scale.FLOOR:
        raise UserError(
            f"step {number}: gradients overflow at the smallest loss scale {loss_scale.FLOOR}; lower LEARNING_RATE "
            "or use Computation.precision = 'bf16'"
        )


class _StopSignals:
    """Notes SIGTERM and SIGINT, so that a step is finished and saved before the process ends; a second one ends it.

    Many processes ask each other about every `AGREE_SECONDS`, since that waits for the device, but after a step at
    most: a cluster's grace is minutes, and ten steps of a large model are longer.
    """

    def __init__(self) -> None:
        self.asked = False
        self._asks_at, self._asked_at, self._asked_when = 0, 0, -math.inf  # steps; a moment in seconds
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignals":
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread (a notebook's worker, a test): signals stay as they are
            pass
        return self

    def agreed(self, run: Run) -> bool:
        """Whether to stop before another step. Many processes stop at the same one, whichever of them was asked:
        a process alone in a step would wait for the others for ever."""
        if jax.process_count() == 1:
            return self.asked
        number = run.step
        if number < self._asks_at:
            return False
        jax.block_until_ready(run.state)  # two programs that exchange something at once can deadlock on CPUs
        seconds = (time.monotonic() - self._asked_when) / max(number - self._asked_at, 1)
        everyone = multihost_utils.process_allgather(np.array([self.asked, seconds], np.float32))
        # From the same numbers on every process, so that all ask again at the same step.
        asked, seconds = np.asarray(everyone).reshape(-1, 2).max(0)
        self._asked_at, self._asked_when = number, time.monotonic()
        self._asks_at = number + steps_until_asking(float(seconds))
        return bool(asked)

    def _note(self, number: int, frame: Any) -> None:
        self.asked = True
        for restored, handler in self._before.items():
            signal.signal(restored, handler)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
