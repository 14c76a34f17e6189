"""Sweeps: members, jobs for clusters, runs that are killed, members with a mistake, comparisons."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from optiml_jax.common.errors import DataError, UserError
from optiml_jax.evaluation.scores import comparison
from tests.conftest import ROOT
from tests.test_train import environment
from tools import cache_tasks, compare_runs, run_sweep
from tools.sweep import comparing, members, running, state

MEMBER = """include 'tiny.gin'
EPS = {eps}
TRAIN_STEPS = 6
ROW_LENGTH = 128
CHECKPOINT_EVERY = 2
LOG_EVERY = 2
LIMIT = 6
MAX_NEW_TOKENS = 4
OPTConfig.layers = 1
OPTConfig.model_dim = 32
OPTConfig.heads = 2
OPTConfig.ffn_dim = 64
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    directory = str(tmp_path_factory.mktemp("cache"))
    cache_tasks.main(["--mixture=samples", f"--cache_dir={directory}"])
    return directory


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sweep of four members with different caps, one of them without examples."""
    path = tmp_path / "caps"
    path.mkdir()
    for eps in (2, 8, 300):
        (path / f"{eps}.gin").write_text(MEMBER.format(eps=eps))
    (path / "none.gin").write_text(MEMBER.format(eps=0))
    (path / "sweep.toml").write_text('title = "Caps"\nbaseline = "8"\ntable = 4\n[rows]\n8 = "2^7"\n300 = "2^12"\n')
    return path


def words(folder: Path, cache: str, *flags: str) -> list[str]:
    output = f"--output={folder.parent / 'runs'}"
    return [sys.executable, "-m", "tools.run_sweep", str(folder), output, f"--gin.CACHE_DIR={cache}", *flags]


def sweep(folder: Path, cache: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(words(folder, cache, *flags), capture_output=True, text=True, cwd=ROOT, env=environment())


def results(folder: Path) -> dict:
    """The scores of every run of the sweep, and its answers."""
    record = json.loads((folder.parent / "runs" / folder.name / "sweep.json").read_text())
    for seeds in record["runs"].values():
        for run in seeds.values():
            for name in ("date", "commit", "seconds"):
                run.pop(name, None)
            samples = folder.parent / "runs" / folder.name / run["folder"] / "samples.jsonl"
            run["samples"] = samples.read_text()
    return record


@pytest.mark.slow
def test_a_sweep_runs_names_its_mistakes_and_skips_what_is_finished(folder, cache):
    (folder / "300.gin").unlink()
    (folder / "2.gin").unlink()
    (folder / "sweep.toml").write_text('baseline = "8"\n')
    first = sweep(folder, cache)
    assert first.returncode == 1, first.stderr
    assert "[1/1] 8 seed 1: finished in" in first.stdout
    assert "failed: none seed 1: Data.eps is 0" in first.stdout
    record = results(folder)
    assert set(record["runs"]) == {"8"} and "Data.eps is 0" in record["unfinished"]["none"]["1"]
    run = record["runs"]["8"]["1"]
    assert run["average"] == pytest.approx(run["averages"]["average"]["score"]) and len(run["tasks"]) == 15
    log = folder.parent / "runs" / "caps" / "8" / "seed1.log"
    assert "into" in log.read_text()

    before = log.read_text()
    second = sweep(folder, cache)
    assert "2 runs into" in second.stdout and "1 finished" in second.stdout and "finished in" not in second.stdout
    assert log.read_text() == before and results(folder) == record

    # Other settings are not those of the results, and neither are results that are older than the weights.
    member = members.runs(members.load([str(folder)])[0], folder.parent / "runs", [1], [f"--gin.CACHE_DIR={cache}"])[0]
    wanted = state.settings(member)
    assert state.finished(member, wanted)
    for other in (["--gin.LIMIT=7"], ["--gin.TRAIN_STEPS=8"], ["--gin.EVALUATION_ROWS=4"]):
        changed = members.Member(
            *(getattr(member, name) for name in ("sweep", "name", "seed", "folder", "command")),
            (*member.arguments, *other),
        )
        assert not state.finished(member, state.settings(changed)), other
    evaluation = state.results_file(member).with_name("evaluation.json")
    os.utime(evaluation)  # as if stopped between the two files
    assert not state.finished(member, wanted)


@pytest.mark.slow
def test_a_sweep_that_is_killed_ends_in_the_results_of_one_left_alone(folder, cache):
    """SIGKILL at five random moments: of the whole group, or of the sweep alone, whose run must die with it."""
    draws = random.Random(7)
    for eps in (2, 8, 300):
        (folder / f"{eps}.gin").write_text(MEMBER.format(eps=eps).replace("TRAIN_STEPS = 6", "TRAIN_STEPS = 60"))
    left_alone = sweep(folder, cache, "--seeds=1")
    assert left_alone.returncode == 1  # of the member with a mistake
    wanted = results(folder)
    assert set(wanted["runs"]) == {"2", "8", "300"} and set(wanted["unfinished"]) == {"none"}
    shutil.rmtree(folder.parent / "runs")
    for kill in range(5):
        process = subprocess.Popen(
            words(folder, cache), cwd=ROOT, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL
        )
        time.sleep(draws.uniform(6, 22))
        if kill % 2:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = sweep(folder, cache)
    assert done.returncode == 1 and results(folder) == wanted, done.stdout


@pytest.mark.slow
def test_a_signal_saves_the_run_and_stops_the_sweep(folder, cache):
    (folder / "8.gin").write_text(MEMBER.format(eps=8).replace("TRAIN_STEPS = 6", "TRAIN_STEPS = 100_000"))
    process = subprocess.Popen(
        [*words(folder, cache), "--members=8"], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    metrics = folder.parent / "runs" / "caps" / "8" / "seed1" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.2)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130 and "run the same command again to resume" in process.stderr.read()
    assert "stopped at step" in (folder.parent / "runs" / "caps" / "8" / "seed1.log").read_text()


def test_members_are_in_the_order_of_the_table_and_then_of_their_numbers(folder):
    loaded = members.load([str(folder)])[0]
    assert list(loaded.members) == ["8", "300", "2", "none"] and loaded.baseline == "8" and loaded.table == 4
    runs = members.runs(loaded, Path("runs"), (1, 2), ["--gin_file=models/opt_125m.gin", "--gin.LIMIT=3"])
    assert [run.title for run in runs[:2]] == ["8 seed 1", "300 seed 1"] and runs[4].title == "8 seed 2"
    assert runs[4].arguments == (
        f"--gin_file={folder / '8.gin'}",
        "--gin_file=models/opt_125m.gin",
        "--gin.MODEL_DIR=runs/caps/8/seed2",
        "--gin.SEED=2",
        "--gin.LIMIT=3",
    )


def test_a_run_of_another_sweep_is_not_repeated():
    tasks = members.load(["experiments/tasks"])[0]
    (run,) = [run for run in members.runs(tasks, Path("runs"), [1], []) if run.name == "all"]
    assert run.folder == Path("runs/metaicl/baseline/seed1")
    assert run.arguments[0] == "--gin_file=experiments/metaicl/baseline.gin"
    (evaluation, *_) = members.runs(members.load(["experiments/separators"])[0], Path("runs"), [2], [])
    assert evaluation.command == "evaluate" and evaluation.arguments[1:] == (
        "--gin.WEIGHTS=runs/metaicl/baseline/seed2",
        "--gin.OUTPUT_DIR=runs/separators/baseline/seed2",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tabel = 4\n", "tabel"),
        ('table = "4"\n', "table"),
        ('baseline = "9"\n', "9.gin"),
        ('[rows]\n9 = "2^9"\n', "9.gin"),
        ('[same_as]\nall = "other/baseline"\n', "other/baseline"),
        ("table = = 4\n", "sweep.toml"),
    ],
)
def test_a_wrong_description_names_its_file(text, message, folder):
    (folder / "sweep.toml").write_text(text)
    with pytest.raises(DataError, match=r"sweep\.toml") as refused:
        members.load([str(folder)])
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["experiments/esp"], "did you mean experiments/eps"),
        (["experiments"], "choose of attention, categories"),
        (["experiments/eps", "--steps=3"], "--gin.NAME=VALUE"),
        (["experiments/eps", "--gin.SEED=3"], "--seeds"),
        (["experiments/eps", "--gin.MODEL_DIR=x"], "--output"),
        (["experiments/eps", "--seeds=0"], "--seeds=0"),
        (["experiments/eps", "--members=4097"], "did you mean 4096"),
        (["a.gin", "b/a.gin"], "another member a"),
    ],
)
def test_a_mistake_is_one_line(flags, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as refused:
        run_sweep.main([*flags, f"--output={tmp_path}"])
    error = capsys.readouterr().err
    assert refused.value.code == 2 and error.count("\n") == 1 and message in error


def test_a_member_that_is_not_evaluated_is_refused(folder):
    (folder / "8.gin").write_text(MEMBER.format(eps=8) + "train.evaluate_after = None\n")
    member = members.runs(members.load([str(folder)])[0], folder, [1], [])[0]
    with pytest.raises(UserError, match="@evaluate"):
        state.settings(member)


def launch(folder: Path, kind: str, *flags: str) -> None:
    run_sweep.main([str(folder), f"--output={folder.parent / 'runs'}", f"--launch={kind}", *flags])


def test_the_slurm_array_runs_a_command_per_index(folder, tmp_path):
    """Executed by bash with a stub of srun that prints its arguments."""
    (folder / "none.gin").unlink()
    launch(folder, "slurm", "--nodes=2", "--gpus=4", "--seeds=2", "--gin.INIT_WEIGHTS='my weights/opt'")
    script = folder.parent / "runs" / "caps" / "sweep.sbatch"
    text = script.read_text()
    assert "#SBATCH --array=0-5\n" in text and "--nodes=2\n" in text and "--gpus-per-node=4\n" in text
    stub = tmp_path / "srun"
    stub.write_text(f'#!/bin/bash\nexec {sys.executable} -c "import sys; print(sys.argv[1:])" "$@"\n')
    stub.chmod(0o755)
    loaded = members.load([str(folder)])[0]
    expected = members.runs(loaded, folder.parent / "runs", (1, 2), ["--gin.INIT_WEIGHTS='my weights/opt'"])
    for index, member in enumerate(expected):
        variables = {"SLURM_ARRAY_TASK_ID": str(index), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", script], env=variables, cwd=ROOT, capture_output=True, text=True, check=True)
        arguments = ["--kill-on-bad-exit=0", "--wait=300", ".venv/bin/python", *member.words]
        assert done.stdout == f"{arguments}\n"


def test_kubernetes_jobs_run_the_same_commands(folder, tmp_path):
    (folder / "none.gin").unlink()
    launch(folder, "kubernetes")
    path = folder.parent / "runs" / "caps" / "sweep.k8s.yaml"
    (job,) = yaml.safe_load_all(path.read_text())
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == 3
    container = spec["template"]["spec"]["containers"][0]
    stub = tmp_path / "python"
    stub.write_text('#!/bin/bash\necho "$@"\n')
    stub.chmod(0o755)
    for index, member in enumerate(members.runs(members.load([str(folder)])[0], folder.parent / "runs", [1], [])):
        variables = {"JOB_COMPLETION_INDEX": str(index), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(container["command"], env=variables, capture_output=True, text=True, check=True)
        assert done.stdout.split() == member.words
    launch(folder, "kubernetes", "--nodes=8")
    documents = list(yaml.safe_load_all(path.read_text()))
    assert [document["kind"] for document in documents] == ["Service", "Job"] * 3
    for service, job in zip(documents[::2], documents[1::2]):
        name = service["metadata"]["name"]
        assert job["spec"]["template"]["spec"]["subdomain"] == name == job["metadata"]["name"]
        variables = {entry["name"]: entry["value"] for entry in job["spec"]["template"]["spec"]["containers"][0]["env"]}
        assert variables["OPTIML_COORDINATOR"] == f"{name}-0.{name}:8476" and variables["OPTIML_PROCESSES"] == "8"


def test_printed_commands_are_those_that_would_run(folder, capsys):
    (folder / "none.gin").unlink()
    launch(folder, "print", "--members=8")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"python -m optiml_jax.train --gin_file={folder / '8.gin'} --gin.MODEL_DIR=")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.4, "12 s"), (300, "5 min"), (3599, "1 h 0 min"), (12000, "3 h 20 min"), (190000, "2 d 4 h")],
)
def test_a_time_is_shown_in_words(seconds, text):
    assert running.duration(seconds) == text


def test_progress_tells_the_step_and_the_time_left(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    member = members.Member("caps", "8", 1, tmp_path, "train", ())
    (tmp_path / "metrics.jsonl").write_text('{"step": 100, "loss": 1.5, "step_seconds": 6.0}\n')
    output = Terminal()
    progress = running.Progress(3, 2, output)
    now = time.monotonic()
    monkeypatch.setattr(running.time, "monotonic", lambda: now + 10)
    progress.show(member, 400, 1, 700.0, 0)
    assert "[4/5] 8 seed 1: step 100 of 400, loss 1.500, 30 min left, all runs 1 h 12 min" in output.getvalue()
    progress.finish(member, running.Outcome(2400.0, None), 1)
    progress.finish(member, running.Outcome(3.0, "DATA_DIR: none"), 2)
    assert (
        "[4/5] 8 seed 1: finished in 40 min\n" in output.getvalue() and "FAILED: DATA_DIR: none\n" in output.getvalue()
    )


def test_a_sweep_is_compared_with_its_baseline_and_corrected_over_all_members(tmp_path, capsys):
    from optiml_jax.evaluation.scores.samples import write_samples
    from tests.evaluation.example_prompts import sample

    def write(member: str, seed: int, right: int) -> dict:
        place = tmp_path / member / f"seed{seed}" / "evaluation" / "suite"
        place.mkdir(parents=True)
        samples = []
        for task in range(8):
            fields = {"task": f"bench.task{task}", "category": "copying", "level": "held_out_task"}
            samples += [sample(float((n + task + seed) % 40 < right), number=n, **fields) for n in range(40)]
        write_samples(place / "samples.jsonl", samples)
        return {"folder": f"{member}/seed{seed}/evaluation/suite"}

    right = {"base": (10, 12), "better": (25, 24), "same": (11, 11)}
    runs = {name: {str(seed): write(name, seed, n) for seed, n in enumerate(of, 1)} for name, of in right.items()}
    record = {"baseline": "base", "members": list(right), "runs": runs, "rows": {}, "table": None}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    result = comparing.compare(tmp_path)
    entries = {(entry["member"], entry["name"]): entry for entry in result["levels"]}
    better, same = entries["better", "held_out_task"], entries["same", "held_out_task"]
    assert better["difference"] == pytest.approx((15 + 12) / 2 / 40) and same["difference"] == 0
    assert better["p"] == pytest.approx(2 / 2**8)  # all eight tasks are better
    assert better["p_holm"] == pytest.approx(2 * better["p"]) and same["p_holm"] == 1
    # Student's interval of 37.5 and 30 points with one degree of freedom
    assert better["seeds_half_width"] == pytest.approx(12.706 * 7.5 / 2, rel=1e-3)
    compare_runs.main([f"--sweep={tmp_path}", f"--output={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    assert "+33.8" in printed and json.loads((tmp_path / "out" / "comparison.json").read_text())["baseline"] == "base"
    # A single seed is the comparison of two runs.
    for name in runs:
        del runs[name]["2"]
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    alone = comparing.compare(tmp_path)
    two = comparison.compare(
        comparison.pair(*(comparing._samples(tmp_path, runs[name])["1"] for name in ("base", "better")))
    )
    entry = next(entry for entry in alone["levels"] if entry["member"] == "better")
    assert entry["p"] == two["levels"]["held_out_task"]["p"] and entry["seeds_half_width"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sweep=nowhere"], "--sweep=nowhere"),
        (["a", "b", "--sweep=nowhere"], "--baseline and --output"),
        (["a"], "--sweep=DIR"),
        (["a", "b", "--baseline=c"], "--sweep=DIR"),
    ],
)
def test_a_mistake_in_comparing_is_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as refused:
        compare_runs.main(flags)
    error = capsys.readouterr().err
    assert refused.value.code == 2 and error.count("\n") == 1 and message in error
