"""Hooks of the training loop: logging, checkpointing, validation."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from optiml_jax.checkpoints.orbax import Checkpoints
from optiml_jax.common import memory
from optiml_jax.common.distributed import from_first, together
from optiml_jax.common.errors import UserError
from optiml_jax.common.metrics_log import LOSS, MetricsLog, Validated
from optiml_jax.common.settings import check_fields
from optiml_jax.common.trackers import TRACKERS
from optiml_jax.model import decoder
from optiml_jax.training import flops, loss_scale
from optiml_jax.training.loop import Run


@dataclasses.dataclass(frozen=True)
class Logging:
    """Intervals of logging and checkpointing, and where metrics go.

    Attributes:
      log_every, checkpoint_every: in steps; the last step is always saved.
      keep_checkpoints: number of newest checkpoints to keep.
      peak_flops: of one device, for devices that are not in `optiml_jax.common.cards`.
      tracker: "wandb" logs to Weights & Biases too, "mlflow" to MLflow, by their own environment variables
        (WANDB_PROJECT, WANDB_MODE; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME); None: to TensorBoard alone.
    """

    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    peak_flops: float | None = None
    tracker: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


class StepLog:
    """Hook of every step: checks its loss and writes rows of `metrics.jsonl`.

    Metrics are fetched one step late, while the device computes the next step, so that it never waits for the host. The
    time of a step is that between two fetches, and a row has the mean over the steps since the last row, without the
    time of checkpoints and validations. The step before one of these is fetched early, without the host's work for the
    next step, and the step after it has the host's work of two; neither is counted.
    """

    def __init__(
        self,
        run: Run,
        model_dir: Path,
        logging: Logging,
        latest: Callable[[], int | None] = lambda: None,
        settings: Mapping[str, Any] = {},
        started: float | None = None,
    ) -> None:
        """`latest` returns the step of the last checkpoint, for messages; `settings` are recorded by the tracker;
        `started` is when the run was started, by `time.perf_counter`."""
        self._latest = latest
        self._run, self._every, self._first = run, logging.log_every, run.step + 1
        self._parameters = decoder.parameter_count(run.config)
        self._trained = sum(x.size for x in jax.tree.leaves(run.state.trainable))
        self._peak = flops.peak_flops(logging.peak_flops)
        writes = jax.process_index() == 0
        tracker = TRACKERS[logging.tracker](model_dir, settings) if writes and logging.tracker else None
        self._log = MetricsLog(model_dir, run.step, run.optimization.train_steps, writes, tracker)
        self._pending: tuple | None = None  # step, metrics, batch
        self._last, self._steady = time.perf_counter(), True
        self._started = self._last if started is None else started
        self._timed: list[tuple[float, int]] = []  # seconds and tokens of the steps since the last row
        self._usual: list[tuple[float, int]] = []  # those of the last row
        self._nats, self._labels = 0.0, 0  # of the steps since the last row whose loss is finite

    def __call__(self, step: int, params: Any) -> None:
        self.flush(followed=True)
        self._pending = step, self._run.metrics, self._run.batch

    def flush(self, followed: bool = False) -> None:
        """Checks and logs the pending step.

        Args:
          followed: whether the next step was started, so that the time since the last fetch is that of a step.

        Raises:
          UserError: the loss is not finite, or the fp16 loss scale is at its floor.
        """
        if self._pending is None:
            return
        (step, metrics, batch), self._pending = self._pending, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        if (followed and self._steady) or not (self._timed or self._usual):
            self._timed.append((now - self._last, batch.real_tokens))
        self._last, self._steady = now, followed
        _check_finite(step, values, self._run.computation.precision, self._latest)
        self._log.advance()
        if math.isfinite(values["loss"]):
            self._nats += values["loss"] * values["label_tokens"]
            self._labels += values["label_tokens"]
        if step % self._every and step not in (1, self._run.optimization.train_steps):
            return
        self._usual, self._timed = self._timed or self._usual, []
        total_seconds, total_tokens = map(sum, zip(*self._usual))
        seconds, tokens = total_seconds / len(self._usual), total_tokens / len(self._usual)
        startup = {}
        if step == self._first:  # it was compiled
            self._usual = []
            startup = {"startup_seconds": now - self._started}
        self._log.write(
            {"step": step}
            | values
            | {
                "mean_loss": self._nats / self._labels if self._labels else math.nan,
                "real_tokens": batch.real_tokens,
                "row_fill": batch.row_fill,
                "tokens_per_second": tokens / seconds,
                "step_seconds": seconds,
                "data_wait_seconds": batch.wait_seconds,
                "mfu": flops.mfu(self._parameters, tokens, seconds, self._run.mesh.size, self._peak, self._trained),
                "mfu_formula": flops.FORMULA if self._trained == self._parameters else flops.FORMULA_FROZEN,
                "device_peak_bytes": memory.device_peak(),
                "host_peak_bytes": memory.host_peak(),
            }
            | startup
        )
        self._nats, self._labels = 0.0, 0

    def validated(self, step: int, validated: Validated, message: str) -> None:
        """Logs a validation."""
        self._log.validated(step, validated, message)

    def note(self, message: str) -> None:
        """Prints a line beside the progress bar."""
        self._log.note(message)

    def resume_timing(self) -> None:
        """Excludes the time since the last fetch, that of a checkpoint or a validation, from the next step's."""
        self._last = time.perf_counter()

    def close(self) -> None:
        self._log.close()


def _check_finite(
    number: int, values: dict[str, float], precision: str, latest: Callable[[], int | None] = lambda: None
) -> None:
    if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
        return
    if precision != "fp16":
        saved = latest()
        intact = "there is no checkpoint yet" if saved is None else f"the checkpoint of step {saved} is intact"
        raise UserError(
            f"step {number}: loss {values['loss']}, gradient norm {values['grad_norm']}; lower LEARNING_RATE "
            f"or check the initial weights ({intact})"
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
        self._log.resume_timing()


class Validator:
    """Hook that validates: logs scores and losses, and saves the best weights to MODEL_DIR/best.

    It is called after the checkpoint of the same step is saved. A signal to stop ends it after the prompts that are
    being answered; the run that resumes from the checkpoint then validates first (`missing`).

    Args:
      score: scores parameters, see `evaluation.validation.Validation.scorer`; None if it was told to stop.
      best: checkpoints of the best weights.
      best_by: name of the score by which they are chosen, or "loss", the lower the better.
      before: the rows of `validation.jsonl` at the start of this run.
    """

    def __init__(
        self,
        run: Run,
        log: StepLog,
        score: Callable[[Any, Callable[[], bool]], Validated | None],
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
        self._best = max((self._goodness(row) for row in comparable if best_by in row), default=-math.inf)
        self._done = {row["step"] for row in before}

    def _goodness(self, values: Mapping[str, Any]) -> float:
        """The value of a validation by which the best weights are chosen; higher is better."""
        return -values[LOSS] if self._best_by == LOSS else values[self._best_by]

    def missing(self, step: int) -> bool:
        """Whether a run that resumes at this step was stopped before its validation was complete."""
        return step > 0 and step not in self._done

    def __call__(self, step: int, params: Any) -> None:
        self._log.flush()
        self._validate(step, params)
        self._log.resume_timing()

    def _validate(self, step: int, params: Any) -> None:
        start = time.perf_counter()
        validated = self._score(params, self._run.stopping)
        if validated is None:
            self._run.interrupted = True
            return
        values = validated.scores | validated.losses
        if not {"average", self._best_by} <= values.keys():
            self._log.note(f"validation at step {step}: none of the prompts can be scored; evaluate them to see why")
            return
        # One process decides for all, because every process must take part in saving.
        value = self._goodness(values)
        goodness, better = from_first(np.array([value, value > self._best])).tolist()
        shown = "average" if self._best_by == LOSS else self._best_by
        message = f"validation at step {step}: {shown.replace('_', ' ')} {100 * values[shown]:.1f}"
        message += f", loss {values[LOSS]:.3f}" if LOSS in values else ""
        message += ", the best so far" if better else ""
        self._log.validated(step, validated, f"{message} ({time.perf_counter() - start:.0f} s)")
        if better:
            with together():
                self._run.loader.check()  # do not save weights trained on damaged tokens
            self._best = goodness
            self._checkpoints.save_weights(step, self._run.state.trainable, self._meta(self._run.loader.state))
