"""What the tests of tasks with one wording share: records of a folder written for the test."""

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
    found = registry.discover(benchmark, data_dir).tasks[f"{benchmark}.{task}"]
    records = list(found.read(split))
    rendered = [one if isinstance(one, Skipped) else found.render(one, found.templates[0]) for one in records]
    return [one for one in rendered if not isinstance(one, Skipped)], [
        one for one in rendered if isinstance(one, Skipped)
    ]
