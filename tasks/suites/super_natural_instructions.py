"""Super-NaturalInstructions: test tasks of the official split with 0, 2 and 5 positive examples shown (paper 5.4).

Beside them the held-out instances of train tasks, if any, without examples.
"""

from collections.abc import Iterator

from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, by_official_lists


def parts(discovered: Benchmark) -> Iterator[Part]:
    """By the official lists."""
    yield from by_official_lists(discovered, shots=(0, 2, 5))


SUITE = Suite("super_natural_instructions", ("super_natural_instructions",), parts)
