"""A user's own data: the validation and test splits of what is trained on, and data sets that are only tested on."""

from collections.abc import Iterator

from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, by_official_lists


def parts(discovered: Benchmark) -> Iterator[Part]:
    """Every split but the one that is trained on."""
    yield from by_official_lists(discovered)
    for task in discovered.listed("train"):
        if "test" in task.splits:
            yield Part(task, "test", "held_out_instances")


SUITE = Suite("jsonl", ("jsonl",), parts)
