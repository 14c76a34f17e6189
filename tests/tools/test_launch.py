"""The script for Slurm, run by bash with stubs of srun, squeue and scontrol: two tasks on this machine, which the time
limit, a preemption or a cancellation stops. (Slurm 22.05 with two nodes on one machine did the same in all three.)"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.test_train import SMALL, cache, environment, losses, rows, run  # noqa: F401 - cache is a fixture

SCRIPT = ROOT / "tools" / "launch" / "slurm.sbatch"
JOB = str(40_000 + os.getpid() % 4_000)  # jax derives the port of process 0 from it
# Starts two tasks with Slurm's variables, and ends with the highest of their codes.
SRUN = """#!/bin/bash
while [[ "$1" = --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
echo $first $second > "$TASKS.part" && mv "$TASKS.part" "$TASKS"
code=0
for task in $first $second; do ended=0; wait $task || ended=$?; ((ended > code)) && code=$ended; done
exit $code
"""
SQUEUE = """#!/bin/bash
[ "$*" = "--noheader --jobs=$SLURM_JOB_ID --format=%T" ] && cat "$STATE"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$REQUESTS"
"""


class Cluster:
    """A folder with the stubs.

    Attributes:
      tasks: file with the process ids of a step's tasks.
      requests: file with the arguments of every call of scontrol.
      state: file with the state of the job.
    """

    def __init__(self, folder: Path) -> None:
        self.tasks, self.requests, self.state = folder / "tasks", folder / "requests", folder / "state"
        self.state.write_text("RUNNING\n")
        self._folder = folder
        for name, text in (("srun", SRUN), ("squeue", SQUEUE), ("scontrol", SCONTROL)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def submit(self, *words: str, python: str = sys.executable) -> subprocess.Popen:
        """Starts the script as Slurm does on the first node, in the folder from which it was submitted."""
        variables = {
            "PATH": f"{self._folder}:{os.environ['PATH']}",
            "PYTHON": python,
            "SLURM_JOB_ID": JOB,
            "TASKS": str(self.tasks),
            "REQUESTS": str(self.requests),
            "STATE": str(self.state),
        }
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", SCRIPT, *words], cwd=ROOT, env=environment() | variables, **options)

    def stop(self) -> None:
        """Asks the tasks to stop, as Slurm does before the time limit, a preemption or a cancellation."""
        for task in self.tasks.read_text().split():
            os.kill(int(task), signal.SIGTERM)

    def requeued(self) -> list[str]:
        return self.requests.read_text().splitlines() if self.requests.exists() else []


def wait_for(*paths: Path) -> None:
    """Waits until the files have content."""
    end = time.monotonic() + 120
    while not all(path.exists() and path.stat().st_size for path in paths):
        assert time.monotonic() < end, paths
        time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    folder = tmp_path / "slurm"
    folder.mkdir()
    return Cluster(folder)


def start(cluster: Cluster, tmp_path: Path, when_asked_to_stop: str) -> subprocess.Popen:
    """The script with two tasks of bash that do something when they are asked to stop, and wait until then."""
    python = tmp_path / "python"
    ready = f'echo > "{tmp_path}/ready.$SLURM_PROCID"'
    python.write_text(
        f"#!/bin/bash\ntrap '{when_asked_to_stop}' TERM\n{ready}\nfor i in {{1..600}}; do sleep 0.1; done\n"
    )
    python.chmod(0o755)
    process = cluster.submit("optiml_jax.train", python=str(python))
    wait_for(cluster.tasks, tmp_path / "ready.0", tmp_path / "ready.1")
    return process


@pytest.mark.parametrize(
    ("state", "end", "code", "requeued"),
    [
        ("RUNNING", "sleep 0.5; echo saved; exit 143", 143, True),  # the time limit, or a preemption
        ("COMPLETING", "sleep 0.5; echo saved; exit 143", 143, False),  # cancelled
        ("RUNNING", "echo saved; exit 0", 0, False),  # finished while it was asked to stop
        ("RUNNING", "echo saved; exit 2", 2, False),  # failed
    ],
)
def test_a_job_that_saved_and_was_not_cancelled_is_requeued(cluster, tmp_path, state, end, code, requeued):
    process = start(cluster, tmp_path, end)
    cluster.state.write_text(f"{state}\n")
    cluster.stop()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code
    note = ["stopped by the time limit or a preemption; requeued"]
    assert output.splitlines() == 2 * ["saved"] + requeued * note
    assert cluster.requeued() == requeued * [f"requeue {JOB}"]


@pytest.mark.slow
def test_two_tasks_train_to_the_time_limit_and_the_requeued_job_goes_on(cluster, cache, tmp_path):  # noqa: F811
    """As two nodes do: jax finds the processes through Slurm's variables."""
    settings = SMALL | {"DATA_AXIS": 2, "CHECKPOINT_EVERY": 100, "CACHE_DIR": cache, "TRAIN_STEPS": 12}
    run("train", settings | {"MODEL_DIR": str(tmp_path / "one")}, devices=2)
    words = ["optiml_jax.train", "--gin_file=tiny.gin"]
    words += [f"--gin.{name}={value}" for name, value in (settings | {"MODEL_DIR": tmp_path / "two"}).items()]
    process = cluster.submit(*words)
    wait_for(cluster.tasks, tmp_path / "two" / "metrics.jsonl")
    cluster.stop()
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 143, output
    stopped = len(rows(tmp_path / "two"))
    assert 1 <= stopped < 12 and f"stopped at step {stopped} after saving" in output
    assert output.endswith("a preemption; requeued\n") and cluster.requeued() == [f"requeue {JOB}"]
    process = cluster.submit(*words)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0 and f"from step {stopped} to step 12" in output, output
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5)
