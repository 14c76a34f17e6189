"""SIGTERM in every phase: the process ends within 30 seconds, leaves no child and no traceback, and the same command
goes on where it was."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.hostile import material as sound
from tests.tasks.conftest import NAME, write_splits, write_task
from tests.test_train import SMALL, command, environment

pytestmark = pytest.mark.slow
STOPPED = 143  # of a run that has saved

Phase = tuple[list[str], Callable[[], bool], list[str]]  # a command, whether the phase has begun, a shorter command


def caching(material: Path, folder: Path) -> Phase:
    many = [{"id": f"x{i}", "input": f"Question {i} " * 60, "output": ["yes"]} for i in range(5_000)]
    names = [f"task{i}" for i in range(10, 40)]
    for name in names:
        write_task(folder / "data" / NAME, name, many)
    write_splits(folder / "data" / NAME, train=names)
    words = [sys.executable, "-m", "tools.cache_tasks", f"--mixture={NAME}", f"--data_dir={folder / 'data'}"]
    words += [f"--cache_dir={folder / 'cache'}", f"--tokenizer={ROOT / 'tasks' / 'samples' / 'tokenizer'}"]
    return words, lambda: len(list(folder.glob("cache/renderings/*/*.json"))) > 2, words


def training(material: Path, folder: Path, begun: Callable[[Path], bool], **changes) -> Phase:
    run = folder / "run"
    settings = SMALL | {"CACHE_DIR": str(material / sound.CACHE), "MODEL_DIR": str(run)} | changes

    def words(steps: int) -> list[str]:
        return command("train", settings | {"TRAIN_STEPS": steps})

    return words(100_000), lambda: run.exists() and begun(run), words(2)


def compiling(material: Path, folder: Path) -> Phase:
    """Two seconds after the log is opened; no step is finished yet."""
    model = {"OPTConfig.layers": 24, "Computation.layers": "unrolled"}

    def begun(run: Path) -> bool:
        log = run / "metrics.jsonl"
        return log.exists() and time.time() - log.stat().st_mtime > 2 and not log.stat().st_size

    return training(material, folder, begun, **model)


def validating(material: Path, folder: Path) -> Phase:
    """The checkpoint of a step is written before it is validated."""
    settings = {"CHECKPOINT_EVERY": 2, "VALIDATE_EVERY": 2, "VALIDATION_LIMIT": 0}
    return training(material, folder, lambda run: (run / "checkpoints" / "2").exists(), **settings)


def saving(material: Path, folder: Path) -> Phase:
    model = {"OPTConfig.model_dim": 1024, "OPTConfig.ffn_dim": 4096, "OPTConfig.heads": 8}
    return training(material, folder, lambda run: any(run.glob("checkpoints/2.*")), **model, CHECKPOINT_EVERY=2)


def evaluating(material: Path, folder: Path) -> Phase:
    def words(limit: int) -> list[str]:
        words = sound.evaluation(material, folder / "out", LIMIT=limit, MAX_NEW_TOKENS=32, EVALUATION_ROWS=1)
        return [sys.executable, "-m", "optiml_jax.evaluate", *words]

    return words(0), lambda: any(path.read_text().count("\n") > 1 for path in folder.glob("out/answers-*")), words(1)


PHASES = {function.__name__: function for function in (caching, compiling, validating, saving, evaluating)}


@pytest.mark.parametrize("name", PHASES)
def test_a_signal_ends_a_phase_and_the_same_command_goes_on(name, material, tmp_path):
    words, begun, shorter = PHASES[name](material, tmp_path)
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not begun():
        assert process.poll() is None, process.stderr.read()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    start = time.monotonic()
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    seconds = time.monotonic() - start
    print(f"{name}: exit code {process.returncode} after {seconds:.1f} s")
    assert seconds < 30 and process.returncode in (STOPPED, -signal.SIGTERM) and "Traceback" not in stderr, stderr[
        -2000:
    ]
    time.sleep(2)
    with pytest.raises(ProcessLookupError):  # no process of its session is left
        os.killpg(process.pid, 0)
    done = subprocess.run(shorter, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
