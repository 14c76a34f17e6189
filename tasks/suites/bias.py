"""WinoGender, CrowS-Pairs and WinoBias as their authors released them, 0 shots (paper 5.2, Table 10).

None has a train split, so nothing can be shown: Table 10 has the same figures for 0 and 5 shots.
"""

from collections.abc import Iterator

from tasks.benchmarks.bias import NAME
from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, stated


def parts(discovered: Benchmark) -> Iterator[Part]:
    """Every set."""
    for task in discovered.tasks.values():
        group = "winobias" if "winobias" in task.name else None
        yield Part(task, ("test", "validation"), stated(task, discovered), group=group)


SUITE = Suite(NAME, (NAME,), parts)
