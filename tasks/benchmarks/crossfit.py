"""CrossFit (Ye et al. 2021): tab-separated lines of an input and one or more accepted outputs.

The files are written by CrossFit's own `tasks/` scripts (56285ca2) from the splits of a data set:
`<task>/<task>_{train,dev,test}.tsv`, or, in its few-shot gym, `<task>/<task>_<k>_<seed>_{train,dev,test}.tsv`, whose
seeds are read in order, each line once. They may be in `data/`, where the scripts write them.

Only tasks whose data set is in no other benchmark are read (paper 2.2); the catalog lists the others as "duplicate"
with their benchmark. Tasks that the paper shows as CrossFit's although another benchmark has them (BLiMP, LAMA: Figures
44, 45, 48, 49) are read. "[SEP]" between the parts of an input becomes a space, as in those figures.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optiml_jax.data.specification import CacheOptions
from tasks.catalog.registry import Benchmark, task_name
from tasks.prompting import wordings
from tasks.prompting.wordings import Source, answers
from tasks.reading import records

NAME = "crossfit"
FILE = re.compile(r"(?P<task>.+?)(?P<shots>_\d+_\d+)?_(train|dev|test)\.tsv")


def discover(directory: Path, options: CacheOptions) -> Benchmark:
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
