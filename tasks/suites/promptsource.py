"""PromptSource: the tasks that are not trained on, by all their original-task templates, 0 and 5 shots (paper 5.2)."""

from collections.abc import Iterator

from tasks.benchmarks.promptsource import applicable
from tasks.registry import Benchmark
from tasks.suites import Part, Suite, level_of


def parts(found: Benchmark) -> Iterator[Part]:
    """Every test task, on its validation split, whose labels are public, and by templates that fit all of it."""
    for task in found.listed("test"):
        split = next((split for split in ("validation", "test") if split in task.splits), None)
        if split and (templates := applicable(task, split)):
            yield Part(task, split, level_of(task, found), templates, shots=(0, 5))


SUITE = Suite("promptsource", ("promptsource",), parts)
