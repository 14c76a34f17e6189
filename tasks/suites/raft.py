"""RAFT: eleven tasks on HELM's split, 0 and 5 shots (paper 6.1, Table 14, which does not say how many)."""

from collections.abc import Iterator

from tasks.benchmarks.raft import NAME
from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite


def parts(discovered: Benchmark) -> Iterator[Part]:
    """Every task."""
    for task in discovered.tasks.values():
        yield Part(task, "test", None, shots=(0, 5), separator="\n\n")


SUITE = Suite(NAME, (NAME,), parts)
