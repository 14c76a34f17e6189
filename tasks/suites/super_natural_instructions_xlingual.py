"""Super-NaturalInstructions' cross-lingual track: 35 test tasks in other languages, with 0 and 2 examples shown."""

from collections.abc import Iterator

from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, level_of


def parts(discovered: Benchmark) -> Iterator[Part]:
    """Every task of the track."""
    for task in discovered.listed("test_xlingual"):
        yield Part(task, "test", level_of(task, discovered), shots=(0, 2))


SUITE = Suite("super_natural_instructions_xlingual", ("super_natural_instructions",), parts)
