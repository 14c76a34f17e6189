"""Training from the command line's function down: resume, refuse, interrupt, and meshes, on the sample tasks."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from optiml_jax import weights
from optiml_jax.common.errors import UserError
from optiml_jax.common.files import exclusive
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.settings import Data
from optiml_jax.model import decoder
from optiml_jax.model.config import OPTConfig
from optiml_jax.training import token_store
from optiml_jax.training.loop import steps_between_agreements
from tests import QUICK_TO_COMPILE
from tests.conftest import ROOT
from tests.stores import only_manifest
from tools import cache_tasks

# a model that compiles in seconds
SMALL = {
    "TRAIN_STEPS": 6,
    "ROW_LENGTH": 128,
    "BATCH_ROWS": 4,
    "CHECKPOINT_EVERY": 2,
    "LOG_EVERY": 1,
    "OPTConfig.layers": 2,
    "OPTConfig.model_dim": 64,
    "OPTConfig.ffn_dim": 128,
    "OPTConfig.dropout": 0.1,
    "train.evaluate_after": None,
}


def command(module: str, settings: dict, *flags: str, gin_file: str = "tiny.gin") -> list[str]:
    bindings = [f"--gin.{name}={value!r}" for name, value in settings.items()]
    return [sys.executable, "-m", f"optiml_jax.{module}", f"--gin_file={gin_file}", *bindings, *flags]


def environment(devices: int = 1) -> dict:
    return os.environ | {
        "XLA_FLAGS": f"{QUICK_TO_COMPILE} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }


def run(
    module: str, settings: dict, *flags: str, gin_file: str = "tiny.gin", devices: int = 1, code: int = 0
) -> subprocess.CompletedProcess:
    words = command(module, settings, *flags, gin_file=gin_file)
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment(devices))
    assert done.returncode == code, done.stderr[-2000:]
    return done


def rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory: Path) -> list[float]:
    return [row["loss"] for row in rows(directory)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("cache")
    subprocess.run(
        [sys.executable, "-m", "tools.cache_tasks", "--mixture=samples", f"--cache_dir={directory}"],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    return str(directory)


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory) -> Path:
    """An uninterrupted run of six steps."""
    directory = tmp_path_factory.mktemp("whole")
    run("train", SMALL | {"CACHE_DIR": cache, "MODEL_DIR": str(directory)})
    return directory


def test_a_run_writes_what_the_contract_names(whole):
    names = {path.name for path in whole.iterdir()}
    assert {"config.gin", "metrics.jsonl", "checkpoints", "tensorboard", "tokenizer"} <= names
    last = rows(whole)[-1]
    assert last["step"] == 6 and last["mfu"] is None and "6 * parameters" in last["mfu_formula"]
    assert last["row_fill"] > 0.95 and last["real_tokens"] == round(last["row_fill"] * 4 * 128)
    assert 0 < last["label_tokens"] < last["real_tokens"]
    assert "OPTConfig.model_dim = 64" in (whole / "config.gin").read_text()


@pytest.mark.slow
def test_two_runs_one_after_the_other_equal_one(whole, cache, tmp_path):
    """Same losses to the bit, which needs the same examples in the same order; extended by a larger TRAIN_STEPS.

    The rate's decay depends on TRAIN_STEPS, so the first run is stopped by a signal instead of a smaller number.
    """
    settings = SMALL | {"CACHE_DIR": cache, "MODEL_DIR": str(tmp_path)}
    process = subprocess.Popen(
        command("train", settings), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    metrics = tmp_path / "metrics.jsonl"
    for _ in range(1200):
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    if process.returncode != 0:  # a quick machine may have finished all six
        assert process.returncode == 143, errors
        assert b"after saving" in errors
    run("train", settings)
    assert losses(tmp_path) == losses(whole)


def test_a_killed_run_goes_on_from_its_checkpoint_with_the_same_numbers(whole, cache, tmp_path):
    """Rows beyond the checkpoint are cut and written again: none is missing, none stands twice."""
    settings = SMALL | {"CACHE_DIR": cache, "MODEL_DIR": str(tmp_path)}
    run("train", settings | {"TRAIN_STEPS": 6})
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [4, 6]
    subprocess.run(["rm", "-r", str(tmp_path / "checkpoints" / "6")], check=True)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss"')  # what a kill leaves of a line
    run("train", settings)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert losses(tmp_path) == losses(whole)


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(whole, cache, tmp_path):
    settings = SMALL | {"CACHE_DIR": cache, "MODEL_DIR": str(tmp_path)}
    axes = {"DATA_AXIS": 2, "FSDP_AXIS": 2, "TENSOR_AXIS": 2}
    done = run("train", settings | axes, devices=8)
    np.testing.assert_allclose(losses(tmp_path), losses(whole), atol=1e-5)
    assert "Involuntary full rematerialization" not in done.stderr


DEMONSTRATED = {"DEMONSTRATIONS": 1.0, "MAX_DEMONSTRATIONS": 2, "OBJECTIVE": "suffix", "ROW_LENGTH": 256}


@pytest.fixture(scope="module")
def demonstrated(cache, tmp_path_factory) -> Path:
    """An uninterrupted run of six steps with demonstrations and suffix loss."""
    directory = tmp_path_factory.mktemp("demonstrated")
    done = run("train", SMALL | DEMONSTRATED | {"CACHE_DIR": cache, "MODEL_DIR": str(directory)})
    assert "demonstrations: none for 54.5% of the examples, 1 for 27.3%, 2 for 18.2%" in done.stdout
    assert "objective suffix" in done.stdout
    return directory


@pytest.mark.slow
def test_a_run_with_demonstrations_goes_on_with_the_same_numbers(demonstrated, whole, cache, tmp_path):
    """To the bit; and with another objective or distribution it does not go on."""
    shutil.copytree(demonstrated, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    settings = SMALL | DEMONSTRATED | {"CACHE_DIR": cache, "MODEL_DIR": str(tmp_path / "run")}
    for change, message in (
        ({"OBJECTIVE": "label"}, "Data.objective = suffix, now it is label"),
        ({"DEMONSTRATIONS": 2.0}, "Data.demonstrations = 1.0, now it is 2.0"),
    ):
        assert message in run("train", settings | change, code=2).stderr
    run("train", settings)
    assert losses(tmp_path / "run") == losses(demonstrated)
    labels, plain = (np.array([row["label_tokens"] for row in rows(path)]) for path in (demonstrated, whole))
    assert (labels / (4 * 256) > 1.5 * plain / (4 * 128)).all()


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one_with_demonstrations(demonstrated, cache, tmp_path):
    settings = SMALL | DEMONSTRATED | {"CACHE_DIR": cache, "MODEL_DIR": str(tmp_path)}
    run("train", settings | {"DATA_AXIS": 2, "FSDP_AXIS": 2, "TENSOR_AXIS": 2}, devices=8)
    np.testing.assert_allclose(losses(tmp_path), losses(demonstrated), atol=1e-5)


@pytest.mark.slow
def test_another_mesh_may_go_on_but_other_settings_may_not(whole, cache, tmp_path):
    subprocess.run(["cp", "-r", str(whole), str(tmp_path / "run")], check=True)
    settings = SMALL | {"CACHE_DIR": cache, "MODEL_DIR": str(tmp_path / "run"), "TRAIN_STEPS": 7}
    run("train", settings | {"FSDP_AXIS": 2}, devices=2)
    assert rows(tmp_path / "run")[-1]["step"] == 7
    for change, message in (
        ({"LEARNING_RATE": 1e-5}, "Optimization.learning_rate = 0.0008, now it is 1e-05"),
        ({"OPTConfig.layers": 3}, "OPTConfig.layers = 2, now it is 3"),
        ({"SEED": 2}, "Data.seed = 1, now it is 2"),
        ({"TRAIN_STEPS": 5}, "is at step 7, beyond TRAIN_STEPS = 5"),
        ({"INIT_WEIGHTS": "facebook/opt-125m"}, "train.init_weights = None, now it is facebook/opt-125m"),
    ):
        error = run("train", settings | change, code=2).stderr
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_flipped_byte_of_the_tokens_stops_a_run_before_its_checkpoint(cache, tmp_path):
    subprocess.run(["cp", "-r", cache, str(tmp_path / "cache")], check=True)
    path = next((tmp_path / "cache" / "tasks" / "samples.sample009_adjective_opposite").glob("*/train*.tokens"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    settings = SMALL | {"CACHE_DIR": str(tmp_path / "cache"), "MODEL_DIR": str(tmp_path / "run")}
    error = run("train", settings | {"BATCH_ROWS": 16}, code=2).stderr
    assert error.splitlines()[-1].startswith(f"error: {path}: damaged")
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_a_run_does_not_go_on_with_other_tokens_of_equal_number(whole, cache, tmp_path):
    """As after caching again with other prompts: a healthy store of the same counts, under the same specification."""
    subprocess.run(["cp", "-r", str(whole), str(tmp_path / "run")], check=True)
    subprocess.run(["cp", "-r", cache, str(tmp_path / "cache")], check=True)
    task = tmp_path / "cache" / "tasks" / "samples.sample009_adjective_opposite"
    (content,) = task.iterdir()
    content.rename(content.with_name("0" * 16))
    path = only_manifest(tmp_path / "cache")
    manifest = Manifest.read(path)
    tasks = [replace(item, content="0" * 16) if item.name == task.name else item for item in manifest.tasks]
    replace(manifest, tasks=tuple(tasks)).write(path)
    settings = SMALL | {"CACHE_DIR": str(tmp_path / "cache"), "MODEL_DIR": str(tmp_path / "run"), "TRAIN_STEPS": 7}
    error = run("train", settings, code=2).stderr
    assert "samples.sample009_adjective_opposite = " in error, error


@pytest.mark.slow
def test_a_run_does_not_notice_that_its_cache_is_written(tmp_path):
    """Cached again with other options, by edited rendering code, and pruned, while it reads: the losses of a run that
    nobody disturbs."""
    cache = tmp_path / "cache"
    settings = SMALL | {"CACHE_DIR": str(cache), "TRAIN_STEPS": 300, "CHECKPOINT_EVERY": 300, "BATCH_ROWS": 16}
    run("train", settings | {"MODEL_DIR": str(tmp_path / "alone")})
    code = tmp_path / "code"
    for name in ("optiml_jax", "tasks", "tools", "gin"):
        shutil.copytree(ROOT / name, code / name)
    prompts = code / "tasks" / "prompting" / "prompts.py"
    text = prompts.read_text()
    assert 'DELIMITERS = ("' in text
    prompts.write_text(text.replace('DELIMITERS = ("', 'DELIMITERS = ("\\nEDITED:", "'))
    words = command("train", settings | {"MODEL_DIR": str(tmp_path / "disturbed")})
    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics = tmp_path / "disturbed" / "metrics.jsonl"
    for _ in range(1200):
        if (metrics.exists() and metrics.read_text().count("\n")) or process.poll() is not None:
            break
        time.sleep(0.05)
    writers = 0
    for where, flags in (
        (code, ["--mixture=samples"]),
        (code, ["--mixture=samples", "--held_out_instances=7"]),
        (ROOT, ["--mixture=samples", "--max_label_tokens=8", "--allow_empty_tasks"]),
        (code, ["--prune"]),
    ):
        writer = [sys.executable, "-m", "tools.cache_tasks", *flags, f"--cache_dir={cache}"]
        subprocess.run(writer, cwd=where, check=True, capture_output=True)
        writers += process.poll() is None
    assert process.wait(timeout=300) == 0
    assert writers >= 2, "the run was over before its cache was written"
    assert losses(tmp_path / "disturbed") == losses(tmp_path / "alone")
    contents = {path.parent.name: len(list(path.parent.iterdir())) for path in cache.glob("tasks/*/*")}
    assert max(contents.values()) >= 3


def test_two_runs_do_not_share_a_folder(cache, tmp_path):
    with exclusive(tmp_path, "wait"):
        error = run("train", SMALL | {"CACHE_DIR": cache, "MODEL_DIR": str(tmp_path)}, code=2).stderr
    assert error.startswith(f"error: {tmp_path}: is being written by process {os.getpid()} on ")
    assert error.endswith("; wait for it or choose another MODEL_DIR\n")


def test_weights_of_another_architecture_are_refused_though_their_shapes_fit(cache, tmp_path):
    """Heads leave no trace in Hugging Face's shapes."""
    config = OPTConfig(vocab_size=1536, layers=2, model_dim=64, heads=4, ffn_dim=128, max_positions=512)
    weights.save_hf(decoder.init_params(jax.random.key(0), config), config, None, tmp_path / "hf")
    settings = SMALL | {"CACHE_DIR": cache, "MODEL_DIR": str(tmp_path / "run"), "INIT_WEIGHTS": str(tmp_path / "hf")}
    error = run("train", settings, code=2).stderr
    assert "has heads = 4, OPTConfig.heads is 8" in error and error.startswith("error: INIT_WEIGHTS"), error


@pytest.mark.slow
def test_each_tokenizer_finds_a_store_of_its_own_in_one_cache(other_tokenizer, tmp_path):
    """The README's two steps one after the other: the samples with their tokenizer, then another tokenizer."""
    settings = SMALL | {"CACHE_DIR": str(tmp_path / "cache"), "TRAIN_STEPS": 1}
    run("train", settings | {"MODEL_DIR": str(tmp_path / "own")})
    other = {"TOKENIZER": str(other_tokenizer), "MODEL_DIR": str(tmp_path / "opt")}
    run("train", settings | other)
    assert losses(tmp_path / "own") != losses(tmp_path / "opt")
    error = run("train", settings | {"MODEL_DIR": str(tmp_path / "which")}, code=2).stderr
    assert "TOKENIZER" in error and "tokenizer = " in error and error.count("\n") == 1
    done = subprocess.run(
        [sys.executable, "-m", "tools.cache_tasks", "--verify", f"--cache_dir={tmp_path / 'cache'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    # those of six tasks are the same ids with either tokenizer
    assert "18 contents of tasks are intact" in done.stdout, done.stderr


def test_bare_words_and_whole_floats_are_taken_and_a_run_may_start_from_another(whole, cache, tmp_path):
    flags = (f"--gin.CACHE_DIR={cache}", f"--gin.MODEL_DIR={tmp_path / 'run'}", f"--gin.INIT_WEIGHTS={whole}")
    done = run("train", SMALL | {"TRAIN_STEPS": 2.0}, *flags, "--gin.PRECISION=fp32")
    assert "12 of 12 train and 3 of 3 test tasks have files" in done.stdout
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2]
    assert losses(tmp_path / "run")[0] < losses(whole)[0]


def test_processes_ask_each_other_by_time_not_by_steps():
    assert [steps_between_agreements(seconds) for seconds in (math.inf, 32.0, 5.0, 1.0, 0.1, 0.0)] == [
        1,
        1,
        1,
        5,
        50,
        5000,
    ]


def test_a_store_is_written_with_the_settings_of_the_run(tmp_path, monkeypatch):
    """The settings of a run that concern the cache reach `tools.cache_tasks`."""
    requests = []

    def record(words, env):
        requests.extend(words)
        return subprocess.CompletedProcess(words, 3)

    monkeypatch.setattr(token_store.subprocess, "run", record)
    data = Data("samples", str(tmp_path), held_out_instances=5, max_label_tokens=64, missing_benchmarks="leave_out")
    with pytest.raises(SystemExit):
        token_store.open_store(data)
    assert {"--held_out_instances=5", "--max_label_tokens=64", "--missing_benchmarks=leave_out"} <= set(requests)
    cache_tasks.parse(requests[requests.index("tools.cache_tasks") + 1 :])
    with pytest.raises(UserError, match=r"Data\.held_out_instances is -1"):
        Data("samples", str(tmp_path), held_out_instances=-1)
