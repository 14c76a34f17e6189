"""Faults while a store is written or afterwards: kills, concurrent writers, damage; also plans and caps."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.data.cache_paths import tokenizer_path
from optiml_jax.data.verify import check_store
from optiml_jax.tokenizer import Tokenizer
from tasks.benchmarks import super_natural_instructions
from tasks.benchmarks.samples import TOKENIZER
from tasks.caching import build, estimate, shard, work_item
from tasks.caching.work_item import Job, Origin
from tasks.catalog import registry
from tasks.example import Example, Skipped
from tasks.prompting import subsampling
from tests.stores import counted, opened
from tests.tasks.caching.test_build import contents, job
from tests.tasks.conftest import NAME, write_splits, write_task
from tests.tasks.prompting.test_subsampling import task_of
from tools import cache_tasks

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER)


# kills and rivals

KILLED = """
import json, os, signal, sys
from optiml_jax.tokenizer import Tokenizer
from tasks.caching import build
from tasks.caching.work_item import Job

name, data, tokenizer = sys.argv[1:4]
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")


def run(cache, limit):
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in EVENTS and str(arguments[0]).startswith(cache):
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(hook)
    build.run(Job(name, data, cache), Tokenizer.load(tokenizer))
    return count


for line in sys.stdin:
    cache, limit = json.loads(line)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, str(run(cache, limit)).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    print(os.read(reader, 20).decode() or "killed", flush=True)
    os.close(reader)
"""


def test_a_job_killed_at_any_file_operation_leaves_only_what_is_whole_and_goes_on(data_dir, tmp_path, tokenizer):
    """SIGKILL before the n-th open, rename, removal or mkdir, n at random; each run goes on where the last ended."""
    command = [sys.executable, "-c", KILLED, NAME, str(data_dir), str(TOKENIZER)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(cache: Path, limit: int) -> str:
        process.stdin.write(json.dumps([str(cache), limit]) + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    with process:
        whole, cache = tmp_path / "whole", tmp_path / "cache"
        operations = int(run(whole, -1))
        assert operations > 25
        finished: dict[Path, int] = {}
        ended = []
        for limit in np.random.default_rng(0).integers(0, operations, 12).tolist():
            ended.append(run(cache, limit))
            if (cache / "store.json").exists():
                assert not list(check_store(cache)), f"killed before operation {limit}"
            stats = {path: path.stat().st_mtime_ns for path in cache.glob("renderings/*/*.json")}
            assert finished.items() <= stats.items(), "what was finished is not written again"
            assert len(stats) == 2 or not (cache / "mixtures").exists()
            finished = stats
            if ended[-1] != "killed":  # there was less left to do
                assert contents(cache) == contents(whole)
                shutil.rmtree(cache)
                finished = {}
        assert run(cache, -1) != "killed" and contents(cache) == contents(whole)
        assert ended.count("killed") > 5, ended
        process.stdin.close()


def test_two_processes_cannot_write_one_store_at_a_time(data_dir, tmp_path, tokenizer):
    """The second names the first, and the store is that of one run alone."""
    many = [{"id": f"x{i}", "input": f"Question {i} " * 40, "output": ["yes"]} for i in range(1200)]
    names = [f"task{i}" for i in range(10, 18)]
    for name in names:
        write_task(data_dir / NAME, name, many)
    write_splits(data_dir / NAME, train=names)
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "tools.cache_tasks", f"--mixture={NAME}", f"--data_dir={data_dir}"]
    command += [f"--cache_dir={cache}", f"--tokenizer={TOKENIZER}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    rivals = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    ended = {rival.pid: (*rival.communicate(timeout=60), rival.returncode) for rival in rivals}
    codes = sorted(code for *_, code in ended.values())
    if codes == [0, 2]:  # they met
        (winner,) = (pid for pid, (*_, code) in ended.items() if code == 0)
        (message,) = (error for _, error, code in ended.values() if code == 2)
        assert f"error: {cache}: " in message and f" process {winner} on " in message
        assert "--cache_dir" in message
    else:
        assert codes == [0, 0]  # on a busy machine one may be through before the other starts
    build.run(job(data_dir, tmp_path / "alone"), tokenizer)
    assert tokens(cache) == tokens(tmp_path / "alone")


def tokens(cache: Path) -> dict[str, bytes]:
    """The contents of a store, and what they were made from."""
    return {name: data for name, data in contents(cache).items() if name.startswith(("tasks/", "renderings/"))}


SLOW = """
import os, sys, time
from optiml_jax.tokenizer import Tokenizer
from tasks.caching import build, pipeline, work_item
from tasks.caching.work_item import Job

pipeline.IN_MEMORY_BYTES = 0
work_item.shard.write_shard = lambda *_: (os.write(1, b"begun\\n"), time.sleep(600))
build.run(Job(sys.argv[1], sys.argv[2], sys.argv[3]), Tokenizer.load(sys.argv[4]))
"""


def test_the_worker_processes_of_a_killed_job_end_too(data_dir, tmp_path, tokenizer):
    """They would keep its lock, and go on writing."""
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", SLOW, NAME, str(data_dir), str(cache), str(TOKENIZER)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as killed:
        try:
            assert killed.stdout.readline() == "begun\n"
            (children,) = (
                path.read_text().split() for path in Path(f"/proc/{killed.pid}/task").glob(f"{killed.pid}/children")
            )
            assert children
        finally:
            killed.kill()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert len(build.run(job(data_dir, cache), tokenizer).written) == 2


def test_a_store_that_is_being_written_is_refused_in_one_line(data_dir, tmp_path, tokenizer):
    """A process that holds the lock until it is killed; after that the store is free."""
    cache = tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path; from tasks.caching import build\n"
        "with build.exclusive(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(cache)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"{cache}: is being written by process {holder.pid} on .*; wait for it"):
            build.run(job(data_dir, cache), tokenizer)
        assert {path.name for path in cache.iterdir()} == {".lock", ".lock.holder"}
        holder.kill()
    assert len(build.run(job(data_dir, cache), tokenizer).written) == 2


# damage


def test_verify_names_what_is_damaged(data_dir, tmp_path, tokenizer, capsys, other_tokenizer):
    cache = tmp_path / "cache"
    build.run(job(data_dir, cache), tokenizer)
    cache_tasks.main(["--verify", f"--cache_dir={cache}"])
    assert f"{cache}: 2 contents of tasks are intact" in capsys.readouterr().out
    damaged = [next(cache.glob("tasks/*task2*/*/*.ids")), next(cache.glob("tasks/*task1_one/*/*.tokens"))]
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    Tokenizer.load(other_tokenizer).save(tokenizer_path(cache, tokenizer.fingerprint))
    with pytest.raises(SystemExit) as error:
        cache_tasks.main(["--verify", f"--cache_dir={cache}"])
    printed = capsys.readouterr()
    assert error.value.code == 2
    assert printed.err.startswith(f"error: {damaged[1]}: damaged (checksum ")
    assert "remove its folder and cache the mixture again (and 2 more faults, listed above)\n" in printed.err
    assert f"{damaged[0]}: damaged" in printed.out
    assert f"{tokenizer_path(cache, tokenizer.fingerprint)}: " in printed.out


# plan


def test_the_planned_size_of_real_tasks_is_within_5_percent(shared, tmp_path):
    """Estimates tokens and bytes for all official tasks of the sample; counts are exact."""
    tokenizer = Tokenizer.load(shared / "tokenizer")
    plans: list[estimate.StorePlan] = []
    job_ = Job(NAME, str(shared / "data"), str(tmp_path))
    result = build.run(job_, tokenizer, announce=plans.append)
    store = opened(tmp_path)
    stats = [store.stats(task.name, "train") for task in result.tasks]
    (plan,) = plans
    assert (plan.tasks, plan.examples) == (len(stats), sum(s["examples"] for s in stats))
    assert plan.tokens == pytest.approx(sum(s["tokens"] for s in stats), rel=0.05)
    size = sum(path.stat().st_size for path in tmp_path.glob("tasks/*/*/*-of-*"))
    assert plan.bytes == pytest.approx(size, rel=0.05)
    assert str(plan).startswith(f"planned: {len(stats)} tasks, {plan.examples:,} examples, {plan.tokens:,} tokens, ")


def test_a_plan_of_few_examples_is_exact_and_leaves_out_what_cannot_be_read(data_dir, tmp_path, tokenizer):
    """Every example is in the sample."""
    plans: list[estimate.StorePlan] = []
    result = build.run(job(data_dir, tmp_path / "cache"), tokenizer, announce=plans.append)
    files = list((tmp_path / "cache").glob("tasks/*/*/*-of-*"))
    tokens = sum(path.stat().st_size for path in files if path.suffix == ".tokens") // 2
    assert plans[0].tokens == tokens and plans[0].examples == 5 + 150
    assert plans[0].bytes == sum(path.stat().st_size for path in files)
    (data_dir / NAME / "tasks" / "task1_one.json").write_text("{")
    job_ = job(data_dir, tmp_path / "cache")
    origins = [build.origin(job_, tokenizer.fingerprint, task) for task in result.tasks]
    assert estimate.plan(job_, origins, map).examples == 150


def test_a_plan_counts_as_many_examples_as_records_though_a_template_fits_none(tmp_path, tokenizer):
    def render(record, template, worded_as=None):
        return Example(record.id, "ask", "x", ("x",)) if template.id == "plain" else Skipped(record.id, "does not fit")

    task = dataclasses.replace(task_of(40), render=render)
    job_ = job(tmp_path, tmp_path / "cache")
    work_item.provide(job_, {task.name: task}, tokenizer)
    assert estimate.plan(job_, [Origin(task.name, tokenizer.fingerprint, "", {})], map).examples == 40


# caps


def test_a_cap_takes_examples_at_random_by_id_and_is_counted(data_dir, tmp_path, tokenizer, monkeypatch):
    instances = [{"id": f"i{i}", "input": f"q{i}", "output": ["x"]} for i in range(2000)]
    instances[7]["output"] = []
    write_task(data_dir / NAME, "task1_one", instances)
    write_task(data_dir / NAME, "task2_two-too", instances[::-1], Categories=["Question Answering"])

    def discover(directory, options):
        result = super_natural_instructions.discover_folder(NAME, directory, options)
        tasks = {name: dataclasses.replace(task, max_examples=500) for name, task in result.tasks.items()}
        return dataclasses.replace(result, tasks=tasks)

    monkeypatch.setattr(super_natural_instructions, "discover", discover)
    monkeypatch.setattr(shard, "SHARD_BYTES", 30_000)
    monkeypatch.setattr(subsampling, "IN_MEMORY_BYTES", 30_000)  # read as a stream, once to choose and once a shard
    cache = tmp_path / "cache"
    build.run(job(data_dir, cache), tokenizer)
    store = opened(cache)
    chosen = {}
    for name in ("task1_one", "task2_two_too"):
        stats = counted(cache, f"{NAME}.{name}")
        assert stats["shards"] > 2
        assert (stats["raw_examples"], stats["examples"], stats["skipped_count"]) == (2000, 500, 1)
        assert stats["max_examples"] == 500
        ids = [store.example_id(f"{NAME}.{name}", "train", i) for i in range(500)]
        chosen[name] = {int(item[1:]) for item in ids}
        assert len(chosen[name]) == 500
    places = np.array(sorted(chosen["task1_one"]))
    assert np.histogram(places, bins=10, range=(0, 2000))[0].min() > 25  # all over the file: 50 expected, sd 6
    assert 80 < len(chosen["task1_one"] & chosen["task2_two_too"]) < 170  # each task by itself: 125 expected, sd 8
    write_task(data_dir / NAME, "task1_one", instances[::-1])
    build.run(job(data_dir, cache), tokenizer)
    again = opened(cache)
    ids = [again.example_id(f"{NAME}.task1_one", "train", i) for i in range(500)]
    assert {int(item[1:]) for item in ids} == chosen["task1_one"], "the choice depends on ids, not on their order"


def test_the_paper_s_cap_is_the_default():
    assert {task.max_examples for task in registry.discover("samples").tasks.values()} == {100_000}


def test_what_a_row_of_2048_would_cut_is_counted(data_dir, tmp_path, tokenizer):
    words = [" a" * n for n in (2040, 2047, 2048, 5000)]
    lengths = [len(tokenizer.encode("Do it." + text)) for text in words]
    instances = [{"id": f"i{i}", "input": text, "output": ["x"]} for i, text in enumerate(words)]
    write_task(data_dir / NAME, "task1_one", instances)
    build.run(job(data_dir, tmp_path / "cache"), tokenizer)
    store = opened(tmp_path / "cache")
    have = store.lengths(f"{NAME}.task1_one", "train")
    assert counted(tmp_path / "cache", f"{NAME}.task1_one")["truncated"] == (have > 2047).sum() > 0, lengths


# runners


def test_a_portable_runner_writes_the_same_store(data_dir, tmp_path, tokenizer):
    """Beam's job service and a worker pool, in this process: the pipeline travels as it would to a cluster."""
    build.run(job(data_dir, tmp_path / "here"), tokenizer)
    flags = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]
    build.run(job(data_dir, tmp_path / "there"), tokenizer, flags)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
