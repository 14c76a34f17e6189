"""CrossFit (Ye et al. 2021): lines of tabs, an input and one or more accepted outputs.

The files are those that CrossFit's own `tasks/` scripts write from a data set's splits (56285ca2):
`<task>/<task>_{train,dev,test}.tsv`, or, of its few-shot gym, `<task>/<task>_<k>_<seed>_{train,dev,test}.tsv`, whose
seeds are read one after the other, each line once. They may lie in `data/`, as the scripts leave them.

Only tasks whose data set is in no other benchmark are read (paper 2.2); the catalog keeps the others as "duplicate" and
says where they are. Where a name is in another benchmark and the paper shows the CrossFit task all the same (BLiMP,
LAMA: Figures 44, 45, 48, 49), it is read. "[SEP]" between the parts of an input is a space, as in those figures.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.catalog.registry import Benchmark, task_name
from tasks.prompting import wordings
from tasks.prompting.wordings import Source, answers
from tasks.reading import records
from tasks.task import Options

NAME = "crossfit"
FILE = re.compile(r"(?P<task>.+?)(?P<shots>_\d+_\d+)?_(train|dev|test)\.tsv")


def discover(directory: Path, options: Options) -> Benchmark:
    """Discovers the tasks that have data.

    Raises:
      MissingError: there are none.
    """
    patterns: dict[str, set[tuple[bool, str]]] = {}
    for path in directory.rglob("*.tsv"):
        if match := FILE.fullmatch(path.name):
            name = task_name(NAME, match["task"]).removeprefix(f"{NAME}.")
            some = f"{match['task']}{'_*' if match['shots'] else ''}_{{split}}.tsv"
            pattern = path.relative_to(directory).with_name(some)
            patterns.setdefault(name, set()).add((match["shots"] is not None, str(pattern)))
    read = records.tabs("input", "output", rest=True)
    sources = {
        name: Source(tuple(pattern for _, pattern in sorted(match)), _record, read, once=True)
        for name, match in patterns.items()
    }
    return wordings.discover(NAME, directory, options, sources)


def _record(row: Mapping[str, Any]) -> Iterator[wordings.Fields]:
    text = row["input"].replace(" [SEP]", "").removeprefix("summarize: ")
    yield {"input": text} | answers(row["output"], *row["rest"])
