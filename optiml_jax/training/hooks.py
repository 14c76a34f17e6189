"""Hooks of the training loop: logging, checkpointing, validation."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from optiml_jax.checkpoints.orbax import Checkpoints
from optiml_jax.common.distributed import from_first, together
from optiml_jax.common.errors import UserError
from optiml_jax.common.metrics_log import MetricsLog
from optiml_jax.common.settings import check_fields
from optiml_jax.model import decoder
from optiml_jax.training import flops, loss_scale
from optiml_jax.training.loop import Run


@dataclasses.dataclass(frozen=True)
class Logging:
    """Intervals of logging and checkpointing.

    Attributes:
      log_every, checkpoint_every: in steps; the last step is always saved.
      keep_checkpoints: number of newest checkpoints to keep.
      peak_flops: of one device, for devices that are not in `optiml_jax.common.cards`.
    """

    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)


class StepLog:
    """Hook of every step: checks its loss and writes rows of `metrics.jsonl`.

    Metrics are fetched one step late, while the device computes the next step, so that it never waits for the host.
    """

    def __init__(self, run: Run, model_dir: Path, logging: Logging) -> None:
        self._run, self._every = run, logging.log_every
        self._parameters = decoder.parameter_count(run.config)
        self._peak = flops.peak_flops(logging.peak_flops)
        self._log = MetricsLog(model_dir, run.step, run.optimization.train_steps, active=jax.process_index() == 0)
        self._pending: tuple | None = None  # step, metrics, batch
        self._last = time.perf_counter()

    def __call__(self, step: int, params: Any) -> None:
        self.flush()
        self._pending = step, self._run.metrics, self._run.batch

    def flush(self) -> None:
        """Checks and logs the pending step.

        Raises:
          UserError: the loss is not finite, or the fp16 loss scale is at its floor.
        """
        if self._pending is None:
            return
        (step, metrics, batch), self._pending = self._pending, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        _check_finite(step, values, self._run.computation.precision)
        self._log.advance()
        if step % self._every and step not in (1, self._run.optimization.train_steps):
            return
        tokens, devices = batch.real_tokens, self._run.mesh.size
        self._log.write(
            {"step": step}
            | values
            | {
                "real_tokens": tokens,
                "row_fill": batch.row_fill,
                "tokens_per_second": tokens / seconds,
                "step_seconds": seconds,
                "data_wait_seconds": batch.wait_seconds,
                "mfu": flops.mfu(self._parameters, tokens, seconds, devices, self._peak),
                "mfu_formula": flops.FORMULA,
            }
        )

    def validated(self, step: int, scores: dict[str, float], message: str) -> None:
        """Logs a validation. Validation time is excluded from step timing."""
        self._log.validated(step, scores, message)
        self._last = time.perf_counter()

    def close(self) -> None:
        self._log.close()


def _check_finite(number: int, values: dict[str, float], precision: str) -> None:
    if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
        return
    if precision != "fp16":
        raise UserError(
            f"step {number}: loss {values['loss']}, gradient norm {values['grad_norm']}; lower LEARNING_RATE "
            "or check the initial weights (the last checkpoint is intact)"
        )
    if values["loss_scale"] <= loss_scale.FLOOR:
        raise UserError(
            f"step {number}: gradients overflow at the smallest loss scale {loss_scale.FLOOR}; lower LEARNING_RATE "
            "or use Computation.precision = 'bf16'"
        )


class Saver:
    """Hook that saves checkpoints, after checking the loss of the last step and the checksums of the data read so far.

    Args:
      meta: returns the metadata of a checkpoint, given the loader's state.
    """

    def __init__(
        self, run: Run, checkpoints: Checkpoints, log: StepLog, meta: Callable[[dict], dict[str, Any]]
    ) -> None:
        self._run, self._checkpoints, self._log, self._meta = run, checkpoints, log, meta
        self._saved = run.step

    def __call__(self, step: int, params: Any = None) -> None:
        self._log.flush()
        if step > self._saved:
            with together():
                self._run.loader.check()
            self._checkpoints.save(step, self._run.state, self._meta(self._run.loader.state))
            self._saved = step
        if step == self._run.optimization.train_steps:
            self._checkpoints.wait()


class Validator:
    """Hook that validates: logs the scores, and saves the weights with the best average to MODEL_DIR/best.

    Args:
      score: scores parameters, see `evaluation.validation.Validation.scorer`.
      best: checkpoints of the best weights.
      best_by: name of the score by which they are chosen.
      before: the rows of `validation.jsonl` at the start of this run.
    """

    def __init__(
        self,
        run: Run,
        log: StepLog,
        score: Callable[[Any], dict[str, float]],
        best: Checkpoints,
        best_by: str,
        meta: Callable[[dict], dict[str, Any]],
        before: Sequence[dict[str, Any]],
    ) -> None:
        self._run, self._log, self._score, self._checkpoints, self._meta = run, log, score, best, meta
        best.delete_after(run.step)  # left by a run that continued beyond the checkpoint from which this one resumes
        self._best_by = best_by
        # A row of another version may lack the score, or name another one so: it has no benchmark average.
        comparable = (row for row in before if row["step"] == best.latest and "benchmark_average" in row)
        self._best = max((row[best_by] for row in comparable if best_by in row), default=-math.inf)

    def __call__(self, step: int, params: Any) -> None:
        self._log.flush()
        start = time.perf_counter()
        scores = self._score(params)
        # One process decides for all, because every process must take part in saving.
        score = scores[self._best_by]
        average, better = from_first(np.array([score, score > self._best])).tolist()
        name = self._best_by.replace("_", " ")
        message = f"validation at step {step}: {name} {100 * average:.1f}{', the best so far' if better else ''}"
        self._log.validated(step, scores, f"{message} ({time.perf_counter() - start:.0f} s)")
        if better:
            with together():
                self._run.loader.check()  # do not save weights trained on damaged tokens
            self._best = average
            self._checkpoints.save_weights(step, params, self._meta(self._run.loader.state))
