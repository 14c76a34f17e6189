"""OPT's 14 tasks: one prompt each, 0 shots, and 32 as far as they fit (paper 5.1, Table 9).

Each is asked on the split that GPT-3 reports: the test set where its labels are public, else the validation set.
"""

from collections.abc import Iterator

from tasks.benchmarks.opt_eval import NAME
from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, stated

ON_TEST = {"storycloze", "arc_easy", "arc_challenge", "openbookqa", "winograd"}
SEPARATOR = "\n\n"  # Brown et al. 2020, section 2.4: "1 or 2 newlines"; which of them where is not said


def parts(discovered: Benchmark) -> Iterator[Part]:
    """Every task."""
    for name, task in discovered.tasks.items():
        splits = ("test", "validation") if name.removeprefix(f"{NAME}.") in ON_TEST else ("validation",)
        yield Part(task, splits, stated(task, discovered), shots=(0, 32), separator=SEPARATOR)


SUITE = Suite(NAME, (NAME,), parts)
