"""The training loop: next batch, step, hooks."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from optiml_jax.data.loader import Batch, Loader, to_devices
from optiml_jax.model import sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.training import step
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.step import Computation, TrainState

AGREE_SECONDS = 5.0  # interval at which several processes agree on whether to stop


# (interval in steps, function called with the step and the parameters after it); also called after the last step
Hook = tuple[int, Callable[[int, dict], None]]


@dataclasses.dataclass
class Run:
    """State of the training loop.

    Attributes:
      state: after `step` batches; donated to the next step.
      loader: positioned at the next batch.
      rows: rows of each global batch that this process reads.
      key: of the run; each step folds in its number.
      metrics, batch: of the last step, for hooks; metrics are still on the device.
      stopping: whether a signal asked to stop, the same on every process; for hooks that take minutes.
      interrupted: whether such a hook stopped before it was done.
    """

    config: OPTConfig
    optimization: Optimization
    computation: Computation
    mesh: Mesh
    state: TrainState
    step: int
    loader: Loader
    rows: Any
    batch_rows: int
    key: jax.Array
    metrics: dict[str, jax.Array] | None = None
    batch: Batch | None = None
    stopping: Callable[[], bool] = lambda: False
    interrupted: bool = False


def run_steps(run: Run, hooks: Sequence[Hook] = (), first: Sequence[Callable[[int, dict], None]] = ()) -> bool:
    """Trains from `run.step` to the last step.

    Args:
      hooks: called in this order, at their interval and after the last step.
      first: called before the first step.

    Returns:
      True if the last step was reached and its hooks are done, False if SIGTERM or SIGINT stopped the run.
    """
    total = run.optimization.train_steps
    advance = step.compiled_step(run.config, run.optimization, run.computation, run.mesh)
    batch_sharding = NamedSharding(run.mesh, sharding.spec("BT"))
    with _StopSignals() as stop:
        run.stopping = stop.everywhere
        for hook in first:
            hook(run.step, run.state.params)
        while run.step < total and not run.interrupted and not stop.agreed(run):
            run.batch = next(run.loader)
            arrays = to_devices(run.batch.arrays, batch_sharding, run.batch_rows, run.rows)
            key = jax.random.fold_in(run.key, run.step)
            run.state, run.metrics = advance(run.state, arrays, key)
            run.step += 1
            for every, hook in hooks:
                if run.step % every == 0 or run.step == total:
                    hook(run.step, run.state.params)
    return run.step == total and not run.interrupted


def steps_between_agreements(seconds: float) -> int:
    """Number of steps, at least one, that take about `AGREE_SECONDS`, given the seconds per step."""
    return max(1, int(AGREE_SECONDS / max(seconds, 1e-3)))


class _StopSignals:
    """Catches SIGTERM and SIGINT, so that the current step is finished and saved; a second signal ends the process.

    Several processes agree on stopping about every `AGREE_SECONDS`, because agreeing waits for the device, but at least
    after every step: a cluster's grace period is minutes, and ten steps of a large model take longer.
    """

    def __init__(self) -> None:
        self.requested = False
        self._next_step, self._last_step, self._last_time = 0, 0, -math.inf  # of agreements
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignals":
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous_handlers[number] = signal.signal(number, self._request)
        except ValueError:  # not the main thread (a notebook's worker, a test): leave the handlers as they are
            pass
        return self

    def agreed(self, run: Run) -> bool:
        """Whether to stop before the next step. All processes stop at the same step, whichever received the signal: a
        process alone in a step would wait for the others forever."""
        if jax.process_count() == 1:
            return self.requested
        number = run.step
        if number < self._next_step:
            return False
        jax.block_until_ready(run.state)  # two programs that communicate at once can deadlock on CPUs
        seconds = (time.monotonic() - self._last_time) / max(number - self._last_step, 1)
        gathered = multihost_utils.process_allgather(np.array([self.requested, seconds], np.float32))
        # Computed from the same numbers on every process, so that all agree again at the same step.
        requested, seconds = np.asarray(gathered).reshape(-1, 2).max(0)
        self._last_step, self._last_time = number, time.monotonic()
        self._next_step = number + steps_between_agreements(float(seconds))
        return bool(requested)

    def everywhere(self) -> bool:
        """Whether any process was asked to stop; called by all of them at the same point."""
        if jax.process_count() == 1:
            return self.requested
        return bool(np.max(multihost_utils.process_allgather(np.array(self.requested))))

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True
        for restored, handler in self._previous_handlers.items():
            signal.signal(restored, handler)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
