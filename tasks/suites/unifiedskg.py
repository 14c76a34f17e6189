"""UnifiedSKG: DART, Spider and MultiWOZ, one prompt each, 0 and 5 shots (paper 5.5, Table 13)."""

from collections.abc import Iterator

from tasks.benchmarks.unifiedskg import NAME
from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, named, stated

TABLE_13 = ("dart", "spider", "multiwoz")


def parts(discovered: Benchmark) -> Iterator[Part]:
    """The three, on their test sets; Spider's was not public, so its validation set."""
    for task in named(discovered, NAME, *TABLE_13):
        yield Part(task, ("test", "validation"), stated(task, discovered), shots=(0, 5))


SUITE = Suite(NAME, (NAME,), parts)
