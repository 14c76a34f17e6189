"""Shared by the tests of tasks with one wording: records of a folder that the test writes."""

from tasks.catalog import registry
from tasks.example import Skipped


def write(directory, **files):
    """Files by path, each a text."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")


def examples(benchmark, data_dir, task, split="train"):
    """The examples of a task, and what was skipped."""
    discovered = registry.discover(benchmark, data_dir).tasks[f"{benchmark}.{task}"]
    records = list(discovered.read(split))
    rendered = [
        record if isinstance(record, Skipped) else discovered.render(record, discovered.templates[0])
        for record in records
    ]
    return [record for record in rendered if not isinstance(record, Skipped)], [
        record for record in rendered if isinstance(record, Skipped)
    ]
