"""A task in plain Python: its raw files, how they are read, and how its records are rendered."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from optiml_jax.data.specification import DEFAULTS, CacheOptions
from tasks.example import Example, Record, Skipped, Template

SHOWN_SPLIT = "shown"  # a split of records that only serve as demonstrations
MAX_EXAMPLES = 100_000  # per task, chosen at random (paper 2.2 and Table 1); FLAN uses 30,000


@dataclass(frozen=True)
class Task:
    """A task. It does not determine its use: mixtures train on it, suites evaluate on it.

    Attributes:
      name: "<benchmark>.<task>" of letters, digits and `_ . : #`, the characters that seqio allows.
      category: task category in lower case with underscores; source: the data set it was made from.
      files: the raw files; reading depends on nothing else.
      splits: the names that `read` accepts, such as "train", "validation" and "test".
      templates: the ways in which its records are phrased.
      read: split -> its raw records and the unusable ones, as a stream; may be called repeatedly.
      render: (record, template, id whose hash chooses the wording, None for the record's) -> an example, or why the
        template does not fit the record.
      demonstrations: the split, one of the above or another, whose records serve as demonstrations
        (`tasks/prompting/demonstrations.py`).
      demonstrations_drawn: whether each example has randomly drawn demonstrations; otherwise all have the first ones,
        in the order of the task's authors.
      max_examples: maximum number of training examples, chosen at random; benchmarks may set their own.
      options_used: the options on which its training examples depend, besides those of the store itself.
      may_be_empty: whether its train split may have no records, because all of them are evaluated.
      longer: what happens to an example longer than a row: "cut" (it loses the start of its source) or "chunk" (it has
        no source, and continues in further rows).
    """

    name: str
    benchmark: str
    category: str
    source: str
    files: tuple[Path, ...]
    splits: tuple[str, ...]
    templates: tuple[Template, ...]
    read: Callable[[str], Iterator[Record | Skipped]]
    render: Callable[..., Example | Skipped]
    options: CacheOptions = DEFAULTS
    demonstrations: str = "train"
    demonstrations_drawn: bool = True
    max_examples: int = MAX_EXAMPLES
    longer: str = "cut"
    options_used: tuple[str, ...] = ()
    may_be_empty: bool = False

    def pair_id(self, record: Record, template: Template) -> str:
        """Name of an example in the task: the record's id, with the template's if there are several."""
        return record.id if len(self.templates) == 1 else f"{record.id}/{template.id}"
