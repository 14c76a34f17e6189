"""T5 (Raffel et al. 2020): seven of its tasks, which the paper kept (Appendix A.1), with T5's prefixes.

Rows are in `rows/<data set>/[<config>/]<split>.jsonl` or any other file of `tasks/reading/records.py`, with the field
names of TensorFlow Datasets or of `datasets`; missing rows are searched in FLAN's and PromptSource's folders beside
this one.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optiml_jax.data.specification import CacheOptions
from tasks.catalog.registry import Benchmark
from tasks.prompting import wordings
from tasks.prompting.wordings import Source, answers
from tasks.reading.fields import text

NAME = "t5"
PLACES = ("rows", "../flan/rows", "../promptsource/rows")
# task -> the language that English is translated into
LANGUAGES = {
    "wmt14_ende_v003": "de",
    "wmt14_enfr_v003": "fr",
    "wmt15_enfr_v003": "fr",
    "wmt16_enro_v003": "ro",
    "wmt19_ende_v003": "de",
    "wmt_t2t_ende_v003": "de",
}
DATA_SETS = {
    "cnn_dailymail_v002": ("cnn_dailymail", "cnn_dailymail/3.0.0"),
    "wmt14_ende_v003": ("wmt14_translate/de-en", "wmt14/de-en"),
    "wmt14_enfr_v003": ("wmt14_translate/fr-en", "wmt14/fr-en"),
    "wmt15_enfr_v003": ("wmt15_translate/fr-en", "wmt15/fr-en"),
    "wmt16_enro_v003": ("wmt16_translate/ro-en", "wmt16/ro-en"),
    "wmt19_ende_v003": ("wmt19_translate/de-en", "wmt19/de-en"),
    "wmt_t2t_ende_v003": ("wmt_t2t_translate/de-en", "wmt_t2t/de-en"),
}


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks that have rows.

    Raises:
      MissingError: there are none.
    """
    sources = {}
    for task, names in DATA_SETS.items():
        recipe = functools.partial(_translation, LANGUAGES[task]) if task in LANGUAGES else _summary
        sources[task] = Source(tuple(f"{folder}/{name}/" for folder in PLACES for name in names), recipe)
    return wordings.discover(NAME, directory, options, sources)


def _translation(language: str, row: Mapping[str, Any]) -> Iterator[wordings.Fields]:
    english, other = (text(row, f"{code}|translation.{code}") for code in ("en", language))
    yield {"input": english} | answers(other)


def _summary(row: Mapping[str, Any]) -> Iterator[wordings.Fields]:
    yield {"input": text(row, "article")} | answers(text(row, "highlights"))
