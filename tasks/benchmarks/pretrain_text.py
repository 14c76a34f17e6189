"""Text to go on pre-training with (paper 4.5): the paper took the last shard of OPT's own corpus, which is not public.

Files of rows with a field `text` (JSON lines, Parquet, ...: `tasks/rows.py`), where a row is a document, and `.txt`
files, each of which is one. The source is empty, all of the document is predicted; one that is longer than a row comes
in pieces that fill rows.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks import rows, worded
from tasks.example import Skipped
from tasks.fields import text
from tasks.registry import Benchmark
from tasks.rows import Row
from tasks.task import Options
from tasks.worded import Source, answers

NAME = "pretrain_text"
STRETCH = 4 << 20  # characters of a .txt file that are one document; what follows is the next one


def discover(directory: Path, options: Options) -> Benchmark:
    """One task of all files.

    Raises:
      MissingError: there is no file.
    """
    source = Source((), _document, _read, named={"train": ("**/*.*",)})
    return worded.discover(NAME, directory, options, {"documents": source}, longer="chunk")


def _read(path: Path, split: str) -> Iterator[Row | Skipped]:
    """The documents of a file."""
    if rows.stem(path) is not None:
        yield from rows.read([path])
        return
    if path.suffix != ".txt":
        yield Skipped(str(path), f"not one of .txt, {', '.join(rows.SUFFIXES)}; take it away")
        return
    number, kept, size = 1, [], 0
    for line, content in rows.lines(path):
        if isinstance(content, Skipped):
            yield content
            continue
        kept.append(content)
        size += len(content) + 1
        if size > STRETCH and not content.strip():  # at the end of a paragraph
            yield Row(number, f"{path}:{number}", {"text": "\n".join(kept)})
            number, kept, size = line + 1, [], 0
    if any(map(str.strip, kept)):
        yield Row(number, f"{path}:{number}", {"text": "\n".join(kept)})


def _document(row: Mapping[str, Any]) -> Iterator[worded.Fields]:
    yield answers(text(row, "text"))
