"""Two processes that find each other, through the commands: the numbers of one process with as many devices."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from optiml_jax.common.files import exclusive
from optiml_jax.common.metrics_log import read_validation
from tests.conftest import ROOT
from tests.test_train import SMALL, cache, command, environment, losses, rows, run  # noqa: F401  (cache is a fixture)

# data is the first axis: each process is a replica and reads half of the rows
MESH = {"DATA_AXIS": 2, "FSDP_AXIS": 2, "TENSOR_AXIS": 2, "CHECKPOINT_EVERY": 3}


def start_two(words: list, devices: int, flags: bool = True) -> list[subprocess.Popen]:
    """A command twice (or two), as two processes that find each other on a free port, named by flags or by the
    environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for index in (0, 1):
        command_line, variables = list(words if isinstance(words[0], str) else words[index]), environment(devices)
        if flags:
            command_line += [f"--coordinator={address}", "--processes=2", f"--process_id={index}"]
        else:
            variables |= {"OPTIML_COORDINATOR": address, "OPTIML_PROCESSES": "2", "JOB_COMPLETION_INDEX": str(index)}
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command_line, cwd=ROOT, env=variables, stdout=pipe, stderr=pipe, text=True))
    return processes


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit codes and what was said on stderr."""
    try:
        stderr = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return [(process.returncode, text) for process, text in zip(processes, stderr)]


@pytest.fixture(scope="module")
def single_process(cache, tmp_path_factory) -> Path:  # noqa: F811
    """The same run in one process."""
    directory = tmp_path_factory.mktemp("one")
    run("train", SMALL | MESH | {"CACHE_DIR": cache, "MODEL_DIR": str(directory)}, devices=8)
    return directory


@pytest.fixture(scope="module")
def stopped_and_resumed(cache, tmp_path_factory) -> Path:  # noqa: F811
    """Two processes of which one is asked to stop in the middle; then two more that go on to the end."""
    directory = tmp_path_factory.mktemp("two")
    settings = SMALL | MESH | {"CACHE_DIR": cache, "MODEL_DIR": str(directory)}
    processes = start_two(command("train", settings), devices=4)
    metrics = directory / "metrics.jsonl"
    for _ in range(2400):
        if (metrics.exists() and metrics.read_text().count("\n")) or any(p.poll() is not None for p in processes):
            break
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGTERM)
    ends = finish(processes)
    assert {code for code, _ in ends} in ({143}, {0}), ends  # 0: a quick machine had finished
    for code, stderr in finish(start_two(command("train", settings), devices=4, flags=False)):
        assert code == 0, stderr[-2000:]
    return directory


@pytest.mark.slow
def test_two_processes_stop_together_go_on_and_give_the_losses_of_one(single_process, stopped_and_resumed):
    assert [row["step"] for row in rows(stopped_and_resumed)] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(losses(stopped_and_resumed), losses(single_process), atol=1e-5)
    names = {path.name for path in stopped_and_resumed.iterdir()}
    assert {"config.gin", "metrics.jsonl", "checkpoints", "tokenizer"} <= names


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_in_one(single_process, stopped_and_resumed, cache, tmp_path):  # noqa: F811
    subprocess.run(["cp", "-r", str(stopped_and_resumed), str(tmp_path / "run")], check=True)
    latest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    subprocess.run(["rm", "-r", str(latest)], check=True)
    run("train", SMALL | MESH | {"CACHE_DIR": cache, "MODEL_DIR": str(tmp_path / "run")}, devices=8)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(single_process), atol=1e-5)


def results(directory: Path) -> dict:
    """results.json without the command and the time, which differ."""
    content = json.loads((directory / "results.json").read_text())
    return {name: value for name, value in content.items() if name not in ("command", "date")}


@pytest.mark.slow
def test_two_processes_evaluate_to_the_bytes_of_one(single_process, cache, tmp_path):  # noqa: F811
    """Ranked and generated prompts; the two go on with what one left half done."""
    lines = Path(cache, "ledgers", "samples.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text("".join(lines[::20]), encoding="utf-8")
    settings = {
        "WEIGHTS": str(single_process),
        "LEDGER": str(ledger),
        "MAX_NEW_TOKENS": 4,
        "EVALUATION_ROWS": 4,
        "DATA_AXIS": 2,
    }
    run("evaluate", settings | {"OUTPUT_DIR": str(tmp_path / "one")}, gin_file="evaluate.gin", devices=2)
    words = command("evaluate", settings | {"OUTPUT_DIR": str(tmp_path / "two")}, gin_file="evaluate.gin")
    for code, stderr in finish(start_two(words, devices=1)):
        assert code == 0, stderr[-2000:]
    one, two = ((tmp_path / name / "results.json").read_text().splitlines() for name in ("one", "two"))
    differ = [a.split('"')[1] for a, b in zip(one, two, strict=True) if a != b]
    assert "command" in differ and set(differ) <= {"command", "date"}  # the command names OUTPUT_DIR
    for name in ("samples.jsonl", "chain.txt"):  # reports say by how many devices they were made
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    reports = [(tmp_path / name / "report.md").read_text().split("## How it was made")[0] for name in ("one", "two")]
    assert reports[0] == reports[1]
    with exclusive(tmp_path / "two", "wait"):  # what stops the first process stops the other
        ends = finish(start_two(words, devices=1))
    assert [code for code, _ in ends] == [2, 2], ends
    assert all("is being written by process" in stderr for _, stderr in ends), ends


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(cache, tmp_path):  # noqa: F811
    """In one go, two devices each: answers, results and validations of one process with four."""
    lines = Path(cache, "ledgers", "samples.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "ledger.jsonl").write_text("".join(lines[::20]), encoding="utf-8")
    settings = {name: value for name, value in SMALL.items() if name != "train.evaluate_after"}
    settings |= {"DATA_AXIS": 2, "FSDP_AXIS": 2, "CACHE_DIR": cache, "LEDGER": str(tmp_path / "ledger.jsonl")}
    settings |= {"MAX_NEW_TOKENS": 4, "EVALUATION_ROWS": 4, "VALIDATE_EVERY": 3, "VALIDATION_LIMIT": 3}
    run("train", settings | {"MODEL_DIR": str(tmp_path / "one")}, devices=4)
    words = command("train", settings | {"MODEL_DIR": str(tmp_path / "two")})
    for code, stderr in finish(start_two(words, devices=2)):
        assert code == 0, stderr[-2000:]
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5)
    single, two = (
        [
            json.loads(line)
            for line in (tmp_path / name / "evaluation" / "samples" / "samples.jsonl").read_text().splitlines()
        ]
        for name in ("one", "two")
    )
    assert len(single) > 30 and [s["prediction"] for s in single] == [s["prediction"] for s in two]
    for ours, theirs in zip(single, two):
        np.testing.assert_allclose(ours["scores"] or [0], theirs["scores"] or [0], atol=1e-4)
    single, two = (results(tmp_path / name / "evaluation" / "samples") for name in ("one", "two"))
    for name in ("weights", "weights_fingerprint"):  # sums of several processes are rounded otherwise
        del single[name], two[name]
    assert single == two
    single, two = (read_validation(tmp_path / name) for name in ("one", "two"))
    assert [row["step"] for row in single] == [3, 6]
    for ours, theirs in zip(single, two, strict=True):
        for part in (ours, theirs):  # sums of float32 logits, beside scores, which are counts
            part["losses"] = [part.pop(name) for name in sorted(part) if name.split("/")[0] == "loss"]
        assert len(ours["losses"]) == 4
        np.testing.assert_allclose(ours.pop("losses"), theirs.pop("losses"), atol=1e-5)
        assert ours == theirs
    steps = [[path.name for path in (tmp_path / name / "best" / "checkpoints").iterdir()] for name in ("one", "two")]
    assert steps[0] == steps[1]


SAVE = """
import sys, jax
from optiml_jax.common import distributed, errors
from optiml_jax import weights
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig

@errors.exit_on_user_error
def main():
    rest, processes = distributed.find_processes(sys.argv[1:], {})
    distributed.initialize(processes)
    config = OPTConfig(vocab_size=64, layers=2, model_dim=16, heads=2, ffn_dim=32, max_positions=32)
    mesh = sharding.make_mesh(fsdp=2)
    where = sharding.parameter_shardings(decoder.abstract_params(config), mesh)
    params = jax.jit(lambda: decoder.init_params(jax.random.key(0), config), out_shardings=where)()
    if rest[1] == "full":
        def write(*args):
            next(args[3])
            raise OSError(28, "No space left on device")
        weights.save._write_weights = write
    weights.save_hf(params, config, None, rest[0])

main()
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [pytest.param("new", 0, marks=pytest.mark.slow), pytest.param("in use", 2, marks=pytest.mark.slow), ("full", 2)],
)
def test_an_export_that_fails_on_the_first_process_fails_on_both(tmp_path, how, code):
    target = tmp_path / "export"
    if how == "in use":
        target.mkdir()
        (target / "something").write_text("else")
    start = time.monotonic()
    ends = finish(start_two([sys.executable, "-c", SAVE, str(target), how], devices=1))
    assert [end for end, _ in ends] == [code, code], ends
    assert (target / "model.safetensors").exists() == (how == "new")
    assert time.monotonic() - start < 150 and not (tmp_path / "export.partial").exists()
    if how == "full":
        assert all("No space left on device" in stderr for _, stderr in ends), ends


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [0, 1])
def test_damaged_data_on_one_process_end_all_of_them_within_a_minute(cache, tmp_path, damaged):  # noqa: F811
    """Each process names the file; the others also the process."""
    caches = [tmp_path / f"cache{index}" for index in (0, 1)]
    for directory in caches:
        subprocess.run(["cp", "-r", cache, str(directory)], check=True)
    for path in caches[damaged].glob("tasks/*/*/*.tokens"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    settings = SMALL | {
        "DATA_AXIS": 2,
        "TRAIN_STEPS": 1000,
        "CHECKPOINT_EVERY": 1000,
        "MODEL_DIR": str(tmp_path / "run"),
    }
    processes = start_two([command("train", settings | {"CACHE_DIR": str(path)}) for path in caches], devices=1)
    deadline = time.monotonic() + 240
    while all(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    first_end = time.monotonic()
    ends = finish(processes)
    assert [code for code, _ in ends] == [2, 2] and time.monotonic() - first_end < 30, ends
    last = [stderr.strip().splitlines()[-1] for _, stderr in ends]
    assert last[damaged].startswith(f"error: {caches[damaged]}/tasks/") and ": damaged" in last[damaged], last
    assert last[1 - damaged] == f"error: process {damaged}: {last[damaged].removeprefix('error: ')}", last


def wait_for(ready, processes: list[subprocess.Popen], seconds: float = 240) -> None:
    """Waits until `ready()`, or a process has ended."""
    deadline = time.monotonic() + seconds
    while not ready() and all(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("phase", ["training", "evaluating"])
def test_a_killed_process_ends_the_other_within_a_minute(cache, single_process, tmp_path, phase, killed):  # noqa: F811
    """The other one names it. Process 0 runs jax's coordination service, whose client ends the other process itself."""
    settings = SMALL | {"DATA_AXIS": 2, "CACHE_DIR": cache, "TRAIN_STEPS": 1000, "CHECKPOINT_EVERY": 5}
    if phase == "training":
        words, started = command("train", settings | {"MODEL_DIR": str(tmp_path / "run")}), "run/checkpoints/5"
    else:
        settings = {"WEIGHTS": str(single_process), "DATA_AXIS": 2, "MAX_NEW_TOKENS": 4, "EVALUATION_ROWS": 4}
        settings |= {"LEDGER": str(Path(cache, "ledgers", "samples.jsonl")), "OUTPUT_DIR": str(tmp_path / "run")}
        words, started = command("evaluate", settings, gin_file="evaluate.gin"), "run/answers-*.jsonl"
    processes = start_two(words, devices=1)
    wait_for(lambda: any(tmp_path.glob(started)), processes)
    time.sleep(3)  # a heartbeat
    processes[killed].kill()
    start = time.monotonic()
    ends = finish(processes)
    assert time.monotonic() - start < 60
    code, stderr = ends[1 - killed]
    if killed == 0:
        assert code == -signal.SIGABRT and "the leader task was preempted/died" in stderr, ends
    else:
        assert code == 1 and stderr.splitlines()[-1].startswith("error: process 1 on "), stderr
    print(phase, killed, f"{time.monotonic() - start:.0f} s")
