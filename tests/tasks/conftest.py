"""Task files in the official layout, written for the tests."""

import json
from pathlib import Path

import pytest

from tasks import suites
from tasks.caching.work_item import Job
from tasks.suites import ledger_job

NAME = "super_natural_instructions"


def write_task(directory: Path, name: str, instances: list | None = None, **fields) -> Path:
    """A task file of release 2.x; `fields` replace its keys."""
    instances = (
        [{"id": f"{name}-{i}", "input": f"Input {i}", "output": [f"out {i}"]} for i in range(5)]
        if instances is None
        else instances
    )
    task = {
        "Source": ["a_source"],
        "Categories": ["Fill in The Blank"],
        "Definition": ["Do it."],
        "Positive Examples": [],
        "Instances": instances,
    }
    path = directory / "tasks" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**task, **fields}, ensure_ascii=False), encoding="utf-8")
    return path


def write_splits(directory: Path, **names: list[str]) -> None:
    """`splits/default/{role}_tasks.txt`."""
    folder = directory / "splits" / "default"
    folder.mkdir(parents=True, exist_ok=True)
    for role in ("train", "test", "excluded"):
        (folder / f"{role}_tasks.txt").write_text("".join(f"{name}\n" for name in names.get(role, [])))


def ask(job: Job, max_prompts: int = 0) -> ledger_job.LedgerResult:
    """The ledger of the suite of a mixture's name, beside its store."""
    return ledger_job.run(suites.suite(job.mixture), job.data_dir, job.cache_dir, job.options, max_prompts)


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """A data directory with two train tasks, a test task of a new category, one of a known one, an excluded task."""
    directory = tmp_path / "data" / NAME
    write_task(directory, "task1_one")
    many = [{"id": f"two-{i}", "input": f"Question {i}?\nThink.", "output": ["yes", "Yes."]} for i in range(150)]
    write_task(directory, "task2_two-too", many, Categories=["Question Answering"])
    write_task(directory, "task3_new", many, Categories=["Title Generation"])
    write_task(directory, "task4_known", Categories=["Question Answering"])
    write_task(directory, "task5_out")
    write_task(directory, "task6_nowhere")
    write_splits(
        directory, train=["task1_one", "task2_two-too"], test=["task3_new", "task4_known"], excluded=["task5_out"]
    )
    return tmp_path / "data"
