"""Training in two processes of four devices each, through the command: the numbers of one process with eight."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.test_train import SMALL, cache, command, environment, losses, rows, run  # noqa: F401  (cache is a fixture)

# data is the first axis: each process is a replica and reads half of the rows
MESH = {"DATA_AXIS": 2, "FSDP_AXIS": 2, "TENSOR_AXIS": 2, "CHECKPOINT_EVERY": 3}


def start_two(settings: dict, flags: bool) -> list[subprocess.Popen]:
    """Two trainings that find each other on a free port, named by flags or by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for index in (0, 1):
        words, variables = command("train", settings), environment(devices=4)
        if flags:
            words += [f"--coordinator={address}", "--processes=2", f"--process_id={index}"]
        else:
            variables |= {"OPTIML_COORDINATOR": address, "OPTIML_PROCESSES": "2", "JOB_COMPLETION_INDEX": str(index)}
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(words, cwd=ROOT, env=variables, stdout=pipe, stderr=pipe, text=True))
    return processes


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit codes and what was said on stderr."""
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return [(process.returncode, text) for process, text in zip(processes, said)]


@pytest.fixture(scope="module")
def one(cache, tmp_path_factory) -> Path:  # noqa: F811
    """The same run in one process."""
    directory = tmp_path_factory.mktemp("one")
    run("train", SMALL | MESH | {"CACHE_DIR": cache, "MODEL_DIR": str(directory)}, devices=8)
    return directory


@pytest.fixture(scope="module")
def stopped_and_resumed(cache, tmp_path_factory) -> Path:  # noqa: F811
    """Two processes of which one is asked to stop in the middle; then two more that go on to the end."""
    directory = tmp_path_factory.mktemp("two")
    settings = SMALL | MESH | {"CACHE_DIR": cache, "MODEL_DIR": str(directory)}
    processes = start_two(settings, flags=True)
    metrics = directory / "metrics.jsonl"
    for _ in range(2400):
        if (metrics.exists() and metrics.read_text().count("\n")) or any(p.poll() is not None for p in processes):
            break
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGTERM)
    ends = finish(processes)
    assert {code for code, _ in ends} in ({143}, {0}), ends  # 0: a quick machine had finished
    for code, said in finish(start_two(settings, flags=False)):
        assert code == 0, said[-2000:]
    return directory


def test_two_processes_stop_together_go_on_and_give_the_losses_of_one(one, stopped_and_resumed):
    assert [row["step"] for row in rows(stopped_and_resumed)] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(losses(stopped_and_resumed), losses(one), atol=1e-5)
    names = {path.name for path in stopped_and_resumed.iterdir()}
    assert {"config.gin", "metrics.jsonl", "checkpoints", "tokenizer"} <= names


def test_a_checkpoint_of_two_processes_goes_on_in_one(one, stopped_and_resumed, cache, tmp_path):  # noqa: F811
    subprocess.run(["cp", "-r", str(stopped_and_resumed), str(tmp_path / "run")], check=True)
    latest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    subprocess.run(["rm", "-r", str(latest)], check=True)
    run("train", SMALL | MESH | {"CACHE_DIR": cache, "MODEL_DIR": str(tmp_path / "run")}, devices=8)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one), atol=1e-5)
