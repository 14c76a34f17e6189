"""Super-NaturalInstructions: three categories that OPT-IML holds out, 0, 2 and 5 examples (paper 5.4, Table 12).

The first hundred instances of 24 + 14 + 7 tasks. The paper counts 44: task1664_winobias, which the release has among
Coreference Resolution, is a validation task of Stereotype Detection there (Table 15), and is so here.
"""

from collections.abc import Iterator

from tasks.benchmarks.super_natural_instructions import NAME
from tasks.catalog.registry import Benchmark, CatalogRow
from tasks.suites import Part, Suite, stated

CATEGORIES = ("textual_entailment", "coreference_resolution", "dialogue_act_recognition")
VALIDATION = f"{NAME}.task1664_winobias_text_generation"


def asks(row: CatalogRow) -> bool:
    """Whether it is one of the 44."""
    return row.split == "test" and row.category in CATEGORIES and row.name != VALIDATION


def parts(discovered: Benchmark) -> Iterator[Part]:
    """Every test task of the three categories."""
    for name, task in discovered.tasks.items():
        if asks(discovered.rows[name]):
            yield Part(task, "test", stated(task, discovered), shots=(0, 2, 5))


SUITE = Suite("super_natural_instructions_held_out", (NAME,), parts)
