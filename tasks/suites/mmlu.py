"""MMLU: the test sets of 57 subjects, 0 shots and the 5 of its authors (paper 6.1, Table 14)."""

from collections.abc import Iterator

from tasks.benchmarks.mmlu import NAME
from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, stated

SEPARATOR = "\n\n"


def parts(discovered: Benchmark, split: str = "test") -> Iterator[Part]:
    """Every subject."""
    for task in discovered.tasks.values():
        if task.benchmark == NAME:
            yield Part(task, split, stated(task, discovered), shots=(0, 5), separator=SEPARATOR, group=NAME)


SUITE = Suite(NAME, (NAME,), parts)
