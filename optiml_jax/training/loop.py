"""The training loop: a batch, a step, and the hooks that are due."""

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

AGREE_SECONDS = 5.0  # between the moments at which many processes ask each other whether to stop


# (every so many steps, and after the last one; called with the step and the parameters after it)
Hook = tuple[int, Callable[[int, dict], None]]


@dataclasses.dataclass
class Run:
    """What the loop works on.

    Attributes:
      state: after `step` batches; the step that follows takes its memory.
      loader: stands at the next batch.
      rows: of each global batch, those this process reads.
      key: of the run; each step folds its number in.
      metrics, batch: of the last step, for hooks; metrics are still on the device.
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


def run_steps(run: Run, hooks: Sequence[Hook] = ()) -> bool:
    """Trains from `run.step` to the last step.

    Args:
      hooks: called in this order, every so many steps and after the last one.

    Returns:
      Whether the last step was reached; False when SIGTERM or SIGINT asked to stop.
    """
    total = run.optimization.train_steps
    advance = step.compiled_step(run.config, run.optimization, run.computation, run.mesh)
    where = NamedSharding(run.mesh, sharding.spec("BT"))
    with _StopSignals() as stop:
        while run.step < total and not stop.agreed(run):
            run.batch = next(run.loader)
            arrays = to_devices(run.batch.arrays, where, run.batch_rows, run.rows)
            key = jax.random.fold_in(run.key, run.step)
            run.state, run.metrics = advance(run.state, arrays, key)
            run.step += 1
            for every, hook in hooks:
                if run.step % every == 0 or run.step == total:
                    hook(run.step, run.state.params)
    return run.step == total


def steps_until_asking(seconds: float) -> int:
    """Steps that take about `AGREE_SECONDS`, at least one, given the seconds of one."""
    return max(1, int(AGREE_SECONDS / max(seconds, 1e-3)))


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
