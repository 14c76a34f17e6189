"""A task in plain Python: where its raw files are, how they are read, into which words its records are put."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from optiml_jax.data.settings import REFUSE
from tasks.example import Example, Record, Skipped, Template

SHOWN_SPLIT = "shown"  # a split of records that are only there to be shown, solved, before others
MAX_EXAMPLES = 100_000  # of a task, at random (paper 2.2 and Table 1); FLAN takes 30,000


@dataclass(frozen=True)
class Options:
    """What a user may change about reading.

    Attributes:
      held_out_instances: of each task; None: the benchmark's default.
      all_templates: those too that alter the original task (PromptSource, FLAN).
      t0_truncation: fields of PromptSource's rows are cut to 2,048 characters, as T0 was trained.
      review: a file of decisions on pairs of tasks (`tasks/catalog/review.py`), beside the project's own.
      missing_benchmarks: of several, those whose data are not there: "refuse", or "leave_out" and share what they had.
    """

    held_out_instances: int | None = None
    all_templates: bool = False
    t0_truncation: bool = False
    allow_bad_records: bool = False
    allow_empty_tasks: bool = False
    missing_benchmarks: str = REFUSE
    review: str | None = None


@dataclass(frozen=True)
class Task:
    """One task. What it is used for is not its business: mixtures train on it, suites evaluate on it.

    Attributes:
      name: "<benchmark>.<task>" of letters, digits and `_ . : #`, which is what seqio admits.
      category: task category in lower case with underscores; source: the data set it was made from.
      files: the raw files; what is read depends on nothing else.
      splits: what `read` knows, such as "train", "validation" and "test".
      templates: the ways its records are put into words.
      read: split -> its raw records and the unusable ones, as a stream; may be called again.
      render: a record, a template and the id whose draws choose the wording (None: the record's own) -> an example, or
        why the template does not fit the record.
      demonstrations: the split, of those above or one more, whose records are shown, solved, before others
        (`tasks/prompting/demonstrations.py`).
      demonstrations_drawn: whether each example is shown others, at random; else all are shown the first ones, as the
        task's authors chose them.
      max_examples: to train on; of more, so many are chosen at random. A benchmark with a cap of its own sets it.
      longer: what happens to an example longer than a row: "cut" (it loses the start of its source) or "chunk" (it has
        no source, and goes on in the next row as if there were no end).
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
    options: Options = Options()
    demonstrations: str = "train"
    demonstrations_drawn: bool = True
    max_examples: int = MAX_EXAMPLES
    longer: str = "cut"

    def pair_id(self, record: Record, template: Template) -> str:
        """The name of an example in the task: the record's, and the template's where there are several."""
        return record.id if len(self.templates) == 1 else f"{record.id}/{template.id}"
