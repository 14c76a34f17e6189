"""Text for continued pre-training (paper 4.5). The paper used the last shard of OPT's own corpus, which is not public.

Reads files of rows with a field `text` (JSON lines, Parquet, ...: `tasks/reading/records.py`), one document per row,
and `.txt` files, one document per file. The source is empty: the whole document is predicted. A document longer than
a training row is cut into chunks that fill rows.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optiml_jax.data.specification import CacheOptions
from tasks.catalog.registry import Benchmark
from tasks.example import Skipped
from tasks.prompting import wordings
from tasks.prompting.wordings import Source, answers
from tasks.reading import records
from tasks.reading.fields import text
from tasks.reading.records import Row

NAME = "pretrain_text"
STRETCH = 4 << 20  # maximum characters of a document of a .txt file; the rest is the next document


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Makes one task of all files.

    Raises:
      MissingError: there is no file.
    """
    source = Source((), _document, _read, named={"train": ("**/*.*",)})
    return wordings.discover(NAME, directory, options, {"documents": source}, longer="chunk")


def _read(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Yields the documents of a file."""
    if records.stem(path) is not None:
        yield from records.read([path])
        return
    if path.suffix != ".txt":
        yield Skipped(str(path), f"not one of .txt, {', '.join(records.SUFFIXES)}; take it away")
        return
    number, paragraphs, size = 1, [], 0
    for line, content in records.lines(path):
        if isinstance(content, Skipped):
            yield content
            continue
        paragraphs.append(content)
        size += len(content) + 1
        if size > STRETCH and not content.strip():  # split at the end of a paragraph
            yield Row(number, f"{path}:{number}", {"text": "\n".join(paragraphs)})
            number, paragraphs, size = line + 1, [], 0
    if any(map(str.strip, paragraphs)):
        yield Row(number, f"{path}:{number}", {"text": "\n".join(paragraphs)})


def _document(row: Mapping[str, Any]) -> Iterator[wordings.Fields]:
    yield answers(text(row, "text"))
