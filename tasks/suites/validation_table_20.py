"""The validation suite as in Table 20: two line breaks between demonstrations, and summaries with 5 of them as well.

MMLU keeps its authors' prompts, whose demonstrations are separated in that way in any case.
"""

import dataclasses
from collections.abc import Iterator

from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, validation

SEPARATOR = "\n\n"


def parts(discovered: Benchmark) -> Iterator[Part]:
    """The parts of the validation suite."""
    for part in validation.parts(discovered):
        yield dataclasses.replace(part, shots=validation.BOTH, separator=SEPARATOR)


SUITE = Suite("validation_table_20", validation.SUITE.benchmarks, parts)
