"""FLAN: 15 tasks by all their kept templates, 0 and 5 shots (paper 5.3, Table 11)."""

from collections.abc import Iterator

from tasks.benchmarks.flan import NAME
from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, named, stated

TABLE_11 = ("anli_r1", "anli_r2", "anli_r3", "cb", "mnli_matched", "mnli_mismatched", "rte", "snli", "wnli")
TABLE_11 += ("bool_q", "openbookqa", "arc_easy", "arc_challenge", "winogrande", "wsc")


def parts(discovered: Benchmark) -> Iterator[Part]:
    """The 15. "There is no few-shot setting for WSC" (Table 11)."""
    for task in named(discovered, NAME, *TABLE_11):
        shots = (0,) if task.name == f"{NAME}.wsc" else (0, 5)
        yield Part(task, ("test", "validation"), stated(task, discovered), shots=shots)


SUITE = Suite(NAME, (NAME,), parts)
