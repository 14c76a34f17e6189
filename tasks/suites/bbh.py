"""BIG-Bench Hard: 27 files with three solved questions each, direct and with chains of thought (paper 6.1, Table 14).

The two are categories of their own. Table 14's figure is that of `big_bench_hard`, at no level: the benchmark is an
external one.
"""

from collections.abc import Iterator

from tasks.benchmarks.bbh import NAME
from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite

SHOTS = 3


def parts(discovered: Benchmark) -> Iterator[Part]:
    """Every file, twice."""
    for task in discovered.tasks.values():
        yield Part(task, "test", None, shots=(SHOTS,), separator="\n\n")


SUITE = Suite(NAME, (NAME,), parts)
