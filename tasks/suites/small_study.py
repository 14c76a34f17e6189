"""The small study (`tools/small_study`): all test tasks, and held-out instances of eight train tasks, 0 and 5 shots.

A run with few tasks trains on these eight as well: their names end in "_supervised".
"""

import dataclasses
from collections.abc import Iterator

from tasks.benchmarks.small_study import NAME
from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, by_official_lists

SHOTS = (0, 5)


def parts(discovered: Benchmark) -> Iterator[Part]:
    """By the official lists."""
    for part in by_official_lists(discovered, SHOTS):
        if part.level != "held_out_instances":
            yield part
        elif part.task.name.endswith("_supervised"):
            yield dataclasses.replace(part, shots=SHOTS)


SUITE = Suite(NAME, (NAME,), parts)
