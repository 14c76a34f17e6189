"""A long run that validates and saves often: memory and step time, of which neither may grow.

`python -m tests.soak FILE.png` runs it and plots both curves.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from optiml_jax.common.metrics_log import read_metrics
from tests.conftest import ROOT
from tests.test_train import command, environment

STEPS, EVERY = 2_000, 20
SETTINGS = {
    "TRAIN_STEPS": STEPS,
    "CHECKPOINT_EVERY": EVERY,
    "VALIDATE_EVERY": EVERY,
    "VALIDATION_LIMIT": 2,
    "LOG_EVERY": 5,
    "train.evaluate_after": None,
}


class Soak(NamedTuple):
    """Curves of a run.

    Attributes:
      steps, seconds: logged steps, and the seconds of a step.
      at, megabytes: shares of the run's time, and the resident memory of its process then.
    """

    steps: np.ndarray
    seconds: np.ndarray
    at: np.ndarray
    megabytes: np.ndarray

    def growth(self) -> tuple[float, float]:
        """The median of the last quarter over that of the second: of memory, and of the seconds of a step."""
        return _growth(self.megabytes), _growth(self.seconds)


def _growth(values: np.ndarray) -> float:
    quarters = np.array_split(values, 4)
    return float(np.median(quarters[3]) / np.median(quarters[1]))


def soak(folder: Path) -> Soak:
    """Runs in `folder`, in about five minutes."""
    words = command("train", SETTINGS | {"CACHE_DIR": str(folder / "cache"), "MODEL_DIR": str(folder / "run")})
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=log, stderr=log)
    log_file, resident = folder / "run" / "metrics.jsonl", []
    while process.poll() is None:
        if log_file.exists() and log_file.stat().st_size:
            resident.append(_resident(process.pid))
        time.sleep(0.5)
    assert process.returncode == 0, (folder / "log").read_text()[-2000:]
    rows = read_metrics(folder / "run")[1:]  # the first step was compiled
    steps, seconds = (np.array([row[name] for row in rows]) for name in ("step", "step_seconds"))
    megabytes = np.array(resident[:-1]) / 1e6  # the last may be of a process that was ending
    return Soak(steps, seconds, np.linspace(0, 1, len(megabytes)), megabytes)


def _resident(process: int) -> int:
    """Bytes of memory that a process has; 0 if it has just ended."""
    try:
        return 4096 * int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0


def plot(curves: Soak, path: str) -> None:
    """Draws both curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (memory, time_) = pyplot.subplots(1, 2, figsize=(10, 3.2), constrained_layout=True)
    memory.plot(100 * curves.at, curves.megabytes, linewidth=1)
    memory.set(xlabel="% of the run", ylabel="resident memory, MB", ylim=(0, None))
    time_.plot(curves.steps, 1000 * curves.seconds, linewidth=0.7)
    time_.set(xlabel="step", ylabel="ms per step", ylim=(0, 3_000 * float(np.median(curves.seconds))))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        result = soak(Path(directory))
    plot(result, sys.argv[1])
    print("last quarter over second: memory {:.3f}, seconds per step {:.3f}".format(*result.growth()))
