"""BIG-Bench Hard (Suzgun et al. 2022): 27 files, prompted for the answer only and for a chain of thought.

In the authors' release `bbh/<task>.json` has the questions and `cot-prompts/<task>.txt` a description and three solved
questions, which all prompts show in this order (paper 6.1: generation, exact match). The task `<task>` asks for the
answer only and shows the three questions without their reasons; the means of Table 14 are of this form (52.8 for
code-davinci-002 equals the authors' direct predictions). `<task>_cot` is the prompt with chains of thought.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import DataError
from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.metrics import Metric
from tasks.catalog.registry import Benchmark, stems
from tasks.example import Skipped
from tasks.prompting import wordings
from tasks.prompting.wordings import Fields, Source, Wording, answers
from tasks.reading import records
from tasks.reading.fields import text
from tasks.reading.records import Row
from tasks.task import SHOWN_SPLIT

NAME = "bbh"
COT = "_cot"
THINK = " Let's think step by step."
METRIC = Metric.parse({"name": "exact_match", "normalization": "bbh"})
STOP = ("\nQ:",)  # the start of the next question, which models without instruction tuning generate
UNREAD = {"model_outputs/*": "answers of models", "code-davinci-002-outputs/**/*": "answers of models"}


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks that have data.

    Raises:
      MissingError: there are none.
      DataError: a task's prompt file is missing or not in the authors' format.
    """
    sources = {}
    for name in stems(NAME):
        file = name.removesuffix(COT)
        if any((directory / pattern).is_file() for pattern in _patterns(file)):
            sources[name] = _source(file, name.endswith(COT), directory / "cot-prompts" / f"{file}.txt")
    return wordings.discover(NAME, directory, options, sources, UNREAD)


def _patterns(file: str) -> tuple[str, ...]:
    return f"bbh/{file}.json", f"{file}.json"


def _source(file: str, reasoned: bool, prompt: Path) -> Source:
    description, solved, after = read_prompt(prompt)
    return Source(
        (),
        functools.partial(_recipe, reasoned, after),
        functools.partial(_read, solved, prompt),
        beside=(f"cot-prompts/{file}.txt",),
        named=dict.fromkeys(("test", SHOWN_SPLIT), _patterns(file)),
        wording=Wording(f"{description}\n\nQ: {{input}}\nA:{THINK if reasoned else ''}", exact=True),
        metric=METRIC,
        drawn=False,
    )


def read_prompt(path: Path) -> tuple[str, list[tuple[str, str]], str]:
    """Reads a prompt file.

    Returns:
      The description, the solved questions (question, reasons that end in the answer), and the separator before the
      reasons: a line break, in one file a space.

    Raises:
      DataError: the file does not exist, or has no solved question.
    """
    description, *questions = records.content(path).partition("-----\n")[2].strip().split("\n\nQ: ")
    solved = [question.partition(f"\nA:{THINK}") for question in questions]
    if not solved or not all(reasons.strip() for _, _, reasons in solved):
        raise DataError(f"{path}: no solved questions (Q: ... A:{THINK} ...) after -----; fetch it again")
    return description, [(question, reasons.strip()) for question, _, reasons in solved], solved[0][2][0]


def _read(solved: list[tuple[str, str]], prompt: Path, path: Path, split: str) -> Iterator[Row | Skipped]:
    if split == SHOWN_SPLIT:
        for number, (question, reasons) in enumerate(solved, start=1):
            yield Row(number, f"{prompt}#{number}", {"input": question, "reasons": reasons})
        return
    content = records.document(path)
    if not isinstance(content, dict) or not isinstance(content.get("examples"), list):
        raise DataError(f'{path}: not an object with "examples", as BIG-Bench Hard writes it')
    for number, example in enumerate(content["examples"], start=1):
        where = f"{path}#{number}"
        yield Row(number, where, example) if isinstance(example, dict) else Skipped(where, "not an object")


def _recipe(reasoned: bool, after: str, row: Mapping[str, Any]) -> Iterator[Fields]:
    reasons = row.get("reasons")
    answer = text(row, "target") if reasons is None else reasons.rpartition("answer is ")[2].removesuffix(".")
    solution = reasons if reasoned and reasons else answer
    yield {"input": text(row, "input"), "stop": STOP, "separator": after if reasoned else " "} | answers(solution)
