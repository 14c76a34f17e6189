"""MMLU (Hendrycks et al. 2021): 57 subjects of questions with four answers, with its authors' prompts.

`{dev,val,test}/<subject>_<split>.csv`, without a header: question, four answers, the letter of the correct one. As in
the authors' `evaluate.py`, prompts show the five questions of `dev` in order, rank the letters, and have two spaces
before the subject's name.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optiml_jax.data.specification import CacheOptions
from tasks.catalog.registry import Benchmark, stems
from tasks.prompting import wordings
from tasks.prompting.wordings import Fields, Source, Wording, answers
from tasks.reading import records
from tasks.reading.fields import UnusableError, text
from tasks.task import SHOWN_SPLIT

NAME = "mmlu"
LETTERS = ("A", "B", "C", "D")
QUESTION = "{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer:"
UNREAD = {
    "dev_reheadered/*": "not the authors' files: with a header and numbers for letters",
    "auxiliary_train/*": "other data sets' questions, not MMLU's",
}


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the subjects that have data.

    Raises:
      MissingError: there are none.
    """
    return wordings.discover(NAME, directory, options, {subject: _source(subject) for subject in stems(NAME)}, UNREAD)


def _source(subject: str) -> Source:
    header = f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}.\n\n"
    return Source(
        (),
        _recipe,
        functools.partial(records.table, columns=("question", *LETTERS, "answer")),
        named={
            SHOWN_SPLIT: (f"dev/{subject}_dev.csv",),
            "validation": (f"val/{subject}_val.csv",),
            "test": (f"test/{subject}_test.csv",),
        },
        wording=Wording(header + QUESTION, LETTERS, exact=True),
        drawn=False,
    )


def _recipe(row: Mapping[str, Any]) -> Iterator[Fields]:
    if (right := text(row, "answer").strip()) not in LETTERS:
        raise UnusableError(f"the answer is {right!r}, none of {', '.join(LETTERS)}")
    yield {name: text(row, name) for name in ("question", *LETTERS)} | answers(right)
