"""Runs the members of a sweep one after another on this machine, with one line of progress."""

import ctypes
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from tools.sweep.members import Member
from tools.sweep.state import last_step

POLL = 0.5  # seconds between looks at a run
REFRESH, QUIET_REFRESH = 2.0, 60.0  # seconds between lines of progress, with and without a terminal
GRACE = 300.0  # seconds that a run has for its last checkpoint when the sweep is stopped
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      seconds: that it took, this time.
      error: its last line of stderr; None if it succeeded.
    """

    seconds: float
    error: str | None


def log_file(member: Member) -> Path:
    """What the run prints goes here; a run that is resumed appends."""
    return member.folder.with_name(f"{member.folder.name}.log")


def run_all(
    members: Sequence[Member], steps: Callable[[Member], int], done: int = 0
) -> Iterator[tuple[Member, Outcome]]:
    """Runs members in turn; one that fails does not stop the others.

    Args:
      steps: number of training steps of a member, 0 for an evaluation.
      done: members of the sweep that were finished before, for the count in the progress.

    Raises:
      KeyboardInterrupt: after the current run has saved its state.
    """
    progress = Progress(len(members), done)
    for index, member in enumerate(members):
        outcome = _run(member, steps(member), progress, index)
        progress.finish(member, outcome, index)
        yield member, outcome


def _run(member: Member, steps: int, progress: "Progress", index: int) -> Outcome:
    log = log_file(member)
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    first = last_step(member)
    with log.open("a", encoding="utf-8") as output:
        start = output.tell()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # of JAX; another program follows at once
            process = subprocess.Popen(
                [sys.executable, *member.words], stdout=output, stderr=subprocess.STDOUT, preexec_fn=_die_with_parent
            )
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while process.poll() is None:
                progress.show(member, steps, index, time.monotonic() - started, first["step"] if first else 0)
                time.sleep(POLL)
        except KeyboardInterrupt:
            process.terminate()  # the run saves a checkpoint
            process.wait(GRACE)
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
    error = None if process.returncode == 0 else _last_error(log, start, process.returncode)
    return Outcome(time.monotonic() - started, error)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _die_with_parent() -> None:
    """A run must not go on alone: it would hold its MODEL_DIR when the sweep is started again."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _last_error(log: Path, start: int, code: int) -> str:
    """The line in which a run says why it failed."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    last = (errors or lines or [""])[-1].removeprefix("error: ")
    return last if code == 2 and errors else f"exit code {code}: {last}"


class Progress:
    """One line that tells the run, its step and the time left; a new line per minute where there is no terminal."""

    def __init__(self, total: int, done: int, output: TextIO | None = None) -> None:
        self._output = output or sys.stdout
        self._total, self._done = total, done
        self._terminal = self._output.isatty()
        self._seconds: list[float] = []  # of the runs that are finished
        self._shown = time.monotonic()

    def show(self, member: Member, steps: int, index: int, elapsed: float, first: int) -> None:
        """Shows a run that is going on.

        Args:
          elapsed: seconds since it started.
          first: the step from which it resumed.
        """
        now = time.monotonic()
        if now - self._shown < (REFRESH if self._terminal else QUIET_REFRESH):
            return
        self._shown = now
        row = last_step(member)
        words, left = ["starting"], None
        if row and steps:
            loss = "" if row["loss"] is None else f", loss {row['loss']:.3f}"
            words = [f"step {row['step']:,} of {steps:,}{loss}"]
            if row["step"] >= steps:
                words = ["evaluating"]
            elif row["step"] > first:
                left = (steps - row["step"]) * row["step_seconds"]
        typical = sum(self._seconds) / len(self._seconds) if self._seconds else None
        if left is not None:
            words.append(f"{duration(left)} left")
        run = typical if typical is not None else elapsed + left if left is not None else None
        if run is not None:
            rest = max(0.0, run - elapsed) if left is None else left
            words.append(f"all runs {duration(rest + run * (self._total - index - 1))}")
        self._write(f"{self._count(index)} {member.title}: {', '.join(words)}", end=self._terminal)

    def finish(self, member: Member, outcome: Outcome, index: int) -> None:
        """Shows how a run ended."""
        if outcome.error is None:
            self._seconds.append(outcome.seconds)
        how = f"finished in {duration(outcome.seconds)}" if outcome.error is None else f"FAILED: {outcome.error}"
        self._write(f"{self._count(index)} {member.title}: {how}")

    def _count(self, index: int) -> str:
        total = self._total + self._done
        return f"[{self._done + index + 1:>{len(str(total))}}/{total}]"

    def _write(self, line: str, end: bool = False) -> None:
        if self._terminal:
            print(f"\r\x1b[K{line}", end="" if end else "\n", file=self._output, flush=True)
        else:
            print(line, file=self._output, flush=True)


def duration(seconds: float) -> str:
    """Formats a time: "45 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
