"""RAFT (Alex et al. 2021): eleven small real-world classification tasks, evaluated on the public labels.

`data/<task>/train.csv` holds the fifty labelled rows of a task, `example_prompts/<task>.txt` (from the authors'
raft-baselines) the instruction, the labels and the order of the fields. Paper 6.1 ranks the labels on
"the evaluation split released by HELM": of the fifty, the forty that `datasets` puts into the test split of
`train_test_split(test_size=0.8, seed=42)`; the other ten may be demonstrations.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optiml_jax.common.errors import DataError
from optiml_jax.data.specification import CacheOptions
from tasks.catalog.registry import Benchmark, stems
from tasks.example import Skipped
from tasks.prompting import wordings
from tasks.prompting.wordings import Fields, Source, Wording, answers
from tasks.reading import records
from tasks.reading.fields import UnusableError, text
from tasks.reading.records import Row
from tasks.task import SHOWN_SPLIT

NAME = "raft"
LABELS = "Possible labels:\n"
SEED = 42
UNREAD = {
    "data/*/test_unlabeled.csv": "its labels are hidden",
    "*/test_unlabeled.csv": "its labels are hidden",
    "example_predictions.csv": "an example of a submission",
    "example_prompts/*.txt": "instructions; data/<task>/train.csv, whose rows they ask for, is not there",
}


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks that have data.

    Raises:
      MissingError: there are none.
      DataError: the instructions of a task are not available.
    """
    sources = {}
    for task in stems(NAME):
        patterns = (f"data/{task}/train.csv", f"{task}/train.csv")
        available = any((directory / pattern).is_file() for pattern in patterns)
        sources[task] = _source(task, patterns, directory) if available else Source(patterns, _recipe)
    return wordings.discover(NAME, directory, options, sources, UNREAD)


def _source(task: str, patterns: tuple[str, ...], directory: Path) -> Source:
    prompt = f"example_prompts/{task}.txt"
    instruction, labels, shown = read_prompt(directory / prompt)
    return Source(
        (),
        functools.partial(_recipe, labels=labels, shown=shown),
        _read,
        beside=(prompt,),
        named=dict.fromkeys(("test", SHOWN_SPLIT), patterns),
        wording=Wording(f"{instruction}\n\n{{asked}}\nLabel:", labels, exact=True),
    )


def read_prompt(path: Path) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Reads the instruction, its labels, and the fields of its examples.

    Raises:
      DataError: the file is missing, or not in the format of raft-baselines.
    """
    instruction, _, examples = records.content(path).partition("\n\n")
    labels = tuple(re.findall(r"^\d+\. (.+?)\s*$", instruction.partition(LABELS)[2], re.MULTILINE))
    first = examples.partition("\nLabel:")[0]
    shown = tuple(re.findall(r"^([A-Z][\w ]*): ", first, re.MULTILINE))
    if len(labels) < 2 or not shown:
        raise DataError(f"{path}: no list of possible labels, or no example with its fields; fetch it again")
    return instruction, labels, shown


def _read(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Yields the rows of HELM's split."""
    rows = list(records.table(path))
    order = np.random.default_rng(SEED).permutation(len(rows))
    evaluated = -(-len(rows) * 8 // 10)
    for index in order[evaluated:] if split == SHOWN_SPLIT else order[:evaluated]:
        yield rows[index]


def _recipe(row: Mapping[str, Any], labels: tuple[str, ...] = (), shown: tuple[str, ...] = ()) -> Iterator[Fields]:
    label = text(row, "Label").strip()
    if label.isdecimal() and 0 < int(label) <= len(labels):
        label = labels[int(label) - 1]  # label ids of `datasets`; 0 is "Unlabeled"
    if label not in labels:
        raise UnusableError(f"the label {label!r} is none of {', '.join(labels[:5])}")
    question = "\n".join(f"{field}: {text(row, field).strip()}" for field in shown)
    yield {"asked": question} | answers(label)
