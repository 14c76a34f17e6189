"""Logs of a training run: `metrics.jsonl`, `validation.jsonl`, TensorBoard events and a progress bar."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from tensorboardX import SummaryWriter
from tqdm import tqdm

from optiml_jax.common.files import write_atomically

METRICS, VALIDATION = "metrics.jsonl", "validation.jsonl"


class MetricsLog:
    """Writes one row per logged step. On resume, rows after step `start` are removed.

    Args:
      start: the step from which the run resumes, 0 for a new run.
      total: the last step.
      active: whether this process writes; exactly one process does.
    """

    def __init__(self, model_dir: str | os.PathLike, start: int, total: int, active: bool = True) -> None:
        self._active = active
        if not active:
            return
        directory = Path(model_dir)
        self._file = _open_after(directory / METRICS, start)
        self._validation = directory / VALIDATION
        if self._validation.exists():
            _open_after(self._validation, start).close()
        self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1 if start else None)
        # Without a terminal, one line per second would flood a log file.
        quiet = not sys.stderr.isatty()
        self._bar = tqdm(initial=start, total=total, unit="step", desc="train", mininterval=30 if quiet else 0.5)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row, which must have "step"; None stands for an unknown value."""
        if not self._active:
            return
        row = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add_scalar(name, value, row["step"])
        loss = "not finite" if row["loss"] is None else f"{row['loss']:.3f}"
        self._bar.set_postfix_str(f"loss {loss}, {row['tokens_per_second']:,.0f} tok/s", refresh=False)

    def validated(self, step: int, scores: dict[str, float], message: str) -> None:
        """Adds a row to `validation.jsonl` and prints `message`."""
        if not self._active:
            return
        with self._validation.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | scores) + "\n")
        for name, value in scores.items():
            self._events.add_scalar(f"validation/{name}", value, step)
        self.note(message)

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
            self._events.close()
            self._file.close()


def _open_after(path: Path, start: int) -> TextIO:
    """Opens a log for appending, without its rows after step `start`."""
    write_atomically(path, "".join(line for line in _whole_lines(path) if json.loads(line)["step"] <= start))
    return path.open("a", encoding="utf-8")


def _whole_lines(path: Path) -> list[str]:
    """Lines that end in a newline; an interrupted write leaves a last line without one."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def read_metrics(model_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the rows of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in _whole_lines(Path(model_dir) / METRICS)]


def read_validation(model_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the rows of a run's `validation.jsonl`: "step", "average", "level/..." and "category/..." as fractions."""
    return [json.loads(line) for line in _whole_lines(Path(model_dir) / VALIDATION)]


def training_losses(model_dir: str | os.PathLike) -> dict[str, Any] | None:
    """Summarizes the losses of a run, or returns None if there is no log.

    Returns:
      "first_loss" and "last_loss", each the mean of up to five logged rows; "curve", [[step, loss], ...];
      "validation", [[step, average], ...].
    """
    rows = [row for row in read_metrics(model_dir) if row["loss"] is not None]  # None: an overflow in fp16
    losses = [row["loss"] for row in rows]
    if not losses:
        return None
    few = max(1, min(5, len(losses) // 4))
    return {
        "first_loss": sum(losses[:few]) / few,
        "last_loss": sum(losses[-few:]) / few,
        "curve": [[row["step"], row["loss"]] for row in rows],
        "validation": [[row["step"], row["average"]] for row in read_validation(model_dir)],
    }
