"""Logs of a training run: `metrics.jsonl`, `validation.jsonl`, TensorBoard events and a progress bar."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TextIO, TypedDict, TypeVar

from tensorboardX import SummaryWriter
from tqdm import tqdm

from optiml_jax.common import typed_json
from optiml_jax.common.files import write_atomically, writing
from optiml_jax.common.trackers import COLUMNS, Tracker

METRICS, VALIDATION = "metrics.jsonl", "validation.jsonl"
TENSORBOARD = "tensorboard"
# Groups of the curves in TensorBoard; others are "train", and those of validations "validation".
GROUPS = dict.fromkeys(("real_tokens", "row_fill", "data_wait_seconds"), "data") | dict.fromkeys(
    ("tokens_per_second", "step_seconds", "mfu", "device_peak_bytes", "host_peak_bytes", "startup_seconds"),
    "system",
)
REMEDY = "remove the line, or the file, which no step depends on"


LOSS = "loss"  # the field with the loss of a validation, and the prefix of those of its levels

T = TypeVar("T")


class Row(TypedDict):
    """A row of `metrics.jsonl`, among others, in nats per label token: the loss of the step, None if it was not finite,
    and the mean over the label tokens since the last row, which the rows of earlier versions do not have."""

    step: int
    loss: float | None
    mean_loss: NotRequired[float | None]


class ValidationRow(TypedDict):
    """A row of `validation.jsonl`: among others, "level/..." and "category/..." as fractions, and "loss/..."; rows of
    earlier versions have no loss."""

    step: int
    average: float
    benchmark_average: NotRequired[float]
    loss: NotRequired[float]


class Validated(NamedTuple):
    """The outcome of a validation.

    Attributes:
      scores: name -> fraction.
      losses: name -> nats per label token; "loss" is that of all prompts.
      samples: some prompts with their answers, rows of `trackers.COLUMNS`.
    """

    scores: dict[str, float]
    losses: dict[str, float]
    samples: Sequence[Sequence[str]] = ()


class MetricsLog:
    """Writes one row per logged step. On resume, rows after step `start` are removed.

    Args:
      start: the step from which the run resumes, 0 for a new run.
      total: the last step.
      active: whether this process writes; exactly one process does.
      tracker: receives what TensorBoard does.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike,
        start: int,
        total: int,
        active: bool = True,
        tracker: Tracker | None = None,
    ) -> None:
        self._active = active
        if not active:
            return
        directory = Path(model_dir)
        self._path = directory / METRICS
        self._file = _open_after(self._path, Row, start)
        self._validation = directory / VALIDATION
        if self._validation.exists():
            _open_after(self._validation, ValidationRow, start).close()
        self._tracker = tracker
        self._events = SummaryWriter(str(directory / TENSORBOARD), purge_step=start + 1 if start else None)
        # Without a terminal, one line per second would flood a log file.
        quiet = not sys.stderr.isatty()
        self._bar = tqdm(initial=start, total=total, unit="step", desc="train", mininterval=30 if quiet else 0.5)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row, which must have "step"; None stands for an unknown value."""
        if not self._active:
            return
        row = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
        with writing(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        numbers = {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
        self._draw({f"{GROUPS.get(name, 'train')}/{name}": value for name, value in numbers.items()}, row["step"])
        loss = "not finite" if _loss(row) is None else f"{_loss(row):.3f}"
        self._bar.set_postfix_str(f"loss {loss}, {row['tokens_per_second']:,.0f} tok/s", refresh=False)

    def validated(self, step: int, validated: Validated, message: str) -> None:
        """Adds a row to `validation.jsonl`, prints `message`, and shows the samples in TensorBoard and the tracker."""
        if not self._active:
            return
        values = validated.scores | validated.losses
        with writing(self._validation), self._validation.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        self._draw({f"validation/{name}": value for name, value in values.items()}, step)
        if validated.samples:
            self._events.add_text("validation/samples", _markdown(validated.samples), step)
            self._track(lambda tracker: tracker.log_samples(validated.samples, step))
        self.note(message)

    def _draw(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._track(lambda tracker: tracker.log(values, step))

    def _track(self, call: Callable[[Tracker], None]) -> None:
        """Calls the tracker. A run does not end because its tracker cannot be reached: it says so and goes on."""
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self.note(f"Logging.tracker: {reason}; nothing more is logged to it, metrics.jsonl has every row")
            self._tracker = None

    def note(self, message: str) -> None:
        """Prints a line beside the progress bar."""
        if self._active:
            tqdm.write(message, file=sys.stdout)

    def advance(self) -> None:
        """Moves the progress bar by one step."""
        if self._active:
            self._bar.update()

    def close(self) -> None:
        if self._active:
            self._bar.close()
            self._track(lambda tracker: tracker.close())
            with contextlib.suppress(OSError):  # of a full disk, which the row that was not written has named
                self._events.close()
                self._file.close()


def _markdown(samples: Sequence[Sequence[str]]) -> str:
    """A table for TensorBoard; prompts keep their lines."""
    escapes = {"|": "&#124;", "<": "&lt;", "*": "&#42;", "_": "&#95;", "`": "&#96;", "\n": "<br>"}
    lines = [" | ".join(text.translate(str.maketrans(escapes)) for text in row) for row in samples]
    return "\n".join([" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS), *lines])


def _open_after(path: Path, kind: type[Row] | type[ValidationRow], start: int) -> TextIO:
    """Opens a log for appending, without its rows after step `start`."""
    earlier = [json.dumps(row) + "\n" for row in _rows(path, kind) if row["step"] <= start]
    write_atomically(path, "".join(earlier))
    return path.open("a", encoding="utf-8")


def _rows(path: Path, kind: type[T]) -> list[T]:
    """The rows of a log. An interrupted write leaves a last line without a line break, which does not count."""
    try:
        return [row for _, row in typed_json.read_lines(path, kind, REMEDY, only_whole=True)]
    except FileNotFoundError:
        return []


def read_metrics(model_dir: str | os.PathLike) -> list[Row]:
    """Reads the rows of a run's `metrics.jsonl`.

    Raises:
      DataError: the file is damaged; the message names the line.
    """
    return _rows(Path(model_dir) / METRICS, Row)


def read_validation(model_dir: str | os.PathLike) -> list[ValidationRow]:
    """Reads the rows of a run's `validation.jsonl`; errors as in `read_metrics`."""
    return _rows(Path(model_dir) / VALIDATION, ValidationRow)


def _loss(row: Mapping[str, Any]) -> float | None:
    """The mean since the last row; the step's own loss in rows of earlier versions."""
    return row.get("mean_loss", row["loss"])


def training_losses(model_dir: str | os.PathLike) -> dict[str, Any] | None:
    """Summarizes the losses of a run, or returns None if there is no log.

    Returns:
      "first_loss" and "last_loss", each the mean of "rows" rows of the log; "curve", [[step, loss], ...]; "validation",
      [[step, average], ...]; "validation_loss", [[step, loss], ...]. The loss of a row is that since the last one.
    """
    curve = [[row["step"], _loss(row)] for row in read_metrics(model_dir)]
    curve = [[step, loss] for step, loss in curve if loss is not None]  # None: an overflow in fp16
    if not curve:
        return None
    losses = [loss for _, loss in curve]
    few = max(1, min(5, len(losses) // 4))
    validation = read_validation(model_dir)
    return {
        "rows": few,
        "first_loss": sum(losses[:few]) / few,
        "last_loss": sum(losses[-few:]) / few,
        "curve": curve,
        "validation": [[row["step"], row["average"]] for row in validation],
        "validation_loss": [[row["step"], row[LOSS]] for row in validation if LOSS in row],
    }
