"""What a run says of itself: `metrics.jsonl`, TensorBoard events, a progress bar."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from optiml_jax.files import write_atomically


class MetricsLog:
    """Writes one row a logged step. Rows beyond `start`, left by a run that went on past its checkpoint, are cut.

    Args:
      start: the step the run goes on from, 0 for a new one.
      total: the last step.
      active: whether this process writes (one of them does).
    """

    def __init__(self, model_dir: str | os.PathLike, start: int, total: int, active: bool = True) -> None:
        self._active = active
        if not active:
            return
        directory = Path(model_dir)
        path = directory / "metrics.jsonl"
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= start]
        write_atomically(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1 if start else None)
        # Without a terminal a line a second would drown a log file.
        quiet = not sys.stderr.isatty()
        self._bar = tqdm(initial=start, total=total, unit="step", desc="train", mininterval=30 if quiet else 0.5)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row; "step" is required, None stands for unknown."""
        if not self._active:
            return
        row = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add_scalar(name, value, row["step"])
        self._bar.set_postfix_str(f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tok/s", refresh=False)

    def advance(self) -> None:
        """One step is done, logged or not."""
        if self._active:
            self._bar.update()

    def close(self) -> None:
        if self._active:
            self._bar.close()
            self._events.close()
            self._file.close()


def _whole_lines(path: Path) -> list[str]:
    """Lines that were written to their end."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def read_metrics(model_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in _whole_lines(Path(model_dir) / "metrics.jsonl")]


def training_losses(model_dir: str | os.PathLike) -> dict[str, Any] | None:
    """First and last loss of a run, each the mean of up to five logged rows, and all of them as "curve", [[step, loss],
    ...]; None where there is no log."""
    rows = read_metrics(model_dir)
    losses = [row["loss"] for row in rows]
    if not losses:
        return None
    few = max(1, min(5, len(losses) // 4))
    first, last = sum(losses[:few]) / few, sum(losses[-few:]) / few
    return {"first_loss": first, "last_loss": last, "curve": [[row["step"], row["loss"]] for row in rows]}
