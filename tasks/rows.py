"""Rows of local files: JSON lines, JSON lists, Parquet, and what `datasets` and TensorFlow Datasets keep on disk.

What benchmarks of tables read their records through. Nothing is fetched, nothing is executed; a line that cannot be
used is named with its file and number, and the next one is read.
"""

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optiml_jax.errors import DataError, UserError
from tasks.example import Skipped

MAX_LINE = 16 << 20  # bytes; a longer line is passed over, never held in memory
MAX_LIST = 1 << 30  # bytes of a JSON list, which is read whole
LINES = (".jsonl", ".json", ".jsonl.gz")
SUFFIXES = (*LINES, ".parquet", ".arrow")
PREPARED = re.compile(r"-(?P<split>\w+)\.tfrecord-\d{5}-of-\d{5}$")  # by TensorFlow Datasets, with features.json
_PART = re.compile(r"-\d{5}-of-\d{5}$")  # data sets in several files: train-00000-of-00003.parquet


class Row(NamedTuple):
    """One row. `number`: from 1 in its split, over all its files; `where`: "file:line", as an editor takes it."""

    number: int
    where: str
    values: dict[str, Any]


def stem(path: Path) -> str | None:
    """What a file of rows is called without its ending and its part number; None where it is none."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
    return _PART.sub("", path.name.removesuffix(suffix)) if suffix and not path.name.startswith(".") else None


def splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The splits of a data set in a folder: `<split>.<suffix>`, its parts, what `datasets` saves to disk, or what
    TensorFlow Datasets prepared (there, or in the last of its folders of versions).

    Raises:
      DataError: a `state.json` of `datasets` cannot be read.
    """
    if (folder / "state.json").is_file():
        return {"train": _saved(folder)}
    found: dict[str, list[Path]] = {}
    versions = sorted(path.parent for path in folder.glob("*/features.json"))
    for path in sorted([*folder.iterdir(), *(versions[-1].iterdir() if versions else ())]):
        if (prepared := PREPARED.search(path.name)) and (path.parent / "features.json").is_file():
            found.setdefault(prepared["split"], []).append(path)
            continue
        if path.is_dir() and (path / "state.json").is_file():
            found.setdefault(path.name, []).extend(_saved(path))
        elif path.is_file() and not path.name.endswith((".arrow", "dataset_dict.json")) and (name := stem(path)):
            found.setdefault(name, []).append(path)
    return {split: tuple(paths) for split, paths in found.items()}


def _saved(folder: Path) -> tuple[Path, ...]:
    """The Arrow files of one saved split, in order."""
    path = folder / "state.json"
    try:
        files = [entry["filename"] for entry in json.loads(path.read_text(encoding="utf-8"))["_data_files"]]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not what datasets' save_to_disk writes ({error!r})") from None
    return tuple(folder / Path(name).name for name in files)


def read(files: Sequence[Path]) -> Iterator[Row | Skipped]:
    """The rows of the files, one after the other, and what is none.

    Raises:
      DataError: a file is damaged as a whole. UserError: it needs a package that is not there.
    """
    numbers = itertools.count(1)
    for path in files:
        rows = _kind(path)(path)
        for line, values in rows:
            number = next(numbers)
            yield (
                Row(number, f"{path}:{line}", values) if isinstance(values, dict) else Skipped(f"{path}:{line}", values)
            )


def _kind(path: Path) -> Callable[[Path], Iterator[tuple[int, dict[str, Any] | str]]]:
    if PREPARED.search(path.name):
        return _prepared
    return _columnar if path.suffix in (".parquet", ".arrow") else _json


def _json(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line numbers with objects, or with what is wrong. A file that starts with "[" is one list."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            line, first = 0, True
            while raw := file.readline(MAX_LINE + 1):
                line += 1
                if len(raw) > MAX_LINE:
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(MAX_LINE)
                    yield line, f"a line of more than {MAX_LINE >> 20} MB"
                elif raw.strip():
                    if first and raw.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                        yield from _list(path, raw, file)
                        return
                    first = False
                    yield line, _object(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the file again") from None


def _object(raw: bytes) -> dict[str, Any] | str:
    try:
        values = json.loads(raw.decode("utf-8-sig"))
        if b"\\u" in raw:
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start:,} of the line"
    except UnicodeEncodeError:
        return "text with half a surrogate pair"
    except RecursionError:
        return "nested too deep"
    except ValueError as error:  # and numbers of too many digits
        return f"not JSON ({str(error).splitlines()[0]})"
    return values if isinstance(values, dict) else f"{type(values).__name__}, not an object"


def _list(path: Path, head: bytes, file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """A file that is one JSON list, its elements by number."""
    raw = head + file.read(MAX_LIST)
    if len(raw) > MAX_LIST:
        raise DataError(f"{path}: a JSON list of more than {MAX_LIST >> 30} GB; make JSON lines of it")
    try:
        values = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start:,}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({str(error).splitlines()[0]})") from None
    for number, value in enumerate(values, start=1):
        yield number, value if isinstance(value, dict) else f"{type(value).__name__}, not an object"


def _columnar(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: reading it needs pyarrow; pip install 'optiml-jax[hub]'") from None
    numbers = itertools.count(1)
    try:
        if path.suffix == ".parquet":
            batches = parquet.ParquetFile(path).iter_batches(batch_size=1024)
        else:
            batches = arrow.ipc.open_stream(arrow.memory_map(str(path)))
        for batch in batches:
            for values in batch.to_pylist():
                yield next(numbers), values
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); fetch the file again") from None


def _prepared(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A file that TensorFlow Datasets wrote: its features say what is in it."""
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(f"{path}: reading it needs tensorflow_datasets, which comes with seqio") from None
    try:
        features = tfds.features.FeatureConnector.from_config(str(path.parent))
        for number, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), start=1):
            yield number, _plain(tfds.as_numpy(features.deserialize_example(record)))
    except (tf.errors.OpError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); prepare it again") from None


def _plain(value: Any) -> Any:
    """NumPy's values as JSON would have them."""
    if isinstance(value, dict):
        return {name: _plain(own) for name, own in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(own) for own in value] if isinstance(value, (list, tuple)) else value
