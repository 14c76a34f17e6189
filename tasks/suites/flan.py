"""FLAN: the tasks that are not trained on, by all their kept templates, 0 and 5 shots (paper 5.3)."""

from collections.abc import Iterator

from tasks.registry import Benchmark
from tasks.suites import Part, Suite, by_official_lists


def parts(found: Benchmark) -> Iterator[Part]:
    """By the catalog's splits."""
    yield from by_official_lists(found, shots=(0, 5))


SUITE = Suite("flan", ("flan",), parts)
