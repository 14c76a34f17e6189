"""Reads rows of local files: JSON, tables, Parquet, and the formats of `datasets` and TensorFlow Datasets on disk.

Nothing is downloaded and nothing is executed. A line that cannot be used is reported with its file and number, and
reading continues with the next.
"""

import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from optiml_jax.common import typed_json
from optiml_jax.common.errors import DataError, UserError
from optiml_jax.common.surrogates import has_lone_surrogate
from tasks.example import Skipped

MAX_LINE = 16 << 20  # bytes; a longer line is skipped without holding it in memory
MAX_LIST = 1 << 30  # bytes of a JSON list, which is read whole
LINES = (".jsonl", ".json", ".jsonl.gz")
SUFFIXES = (*LINES, ".parquet", ".arrow")
TABLES = (".csv", ".tsv")  # read as rows too, but not part of any benchmark's splits
WRAPPERS = ("data", "rows", "records", "examples", "items")  # keys of a JSON object that holds the list of all records
PREPARED = re.compile(r"-(?P<split>\w+)\.tfrecord-\d{5}-of-\d{5}$")  # files of TensorFlow Datasets
_SPACE = re.compile(r"[\s,]*")  # also commas, which some exports put between objects
_PART = re.compile(r"-\d{5}-of-\d{5}$")  # data sets in several files: train-00000-of-00003.parquet


class Row(NamedTuple):
    """A row of a file. `number`: from 1 in its split, over all its files; `where`: "file:line"."""

    number: int
    where: str
    values: dict[str, Any]


def stem(path: Path, suffixes: Sequence[str] = SUFFIXES) -> str | None:
    """Name of a file of rows without its suffix and part number; None for other files."""
    suffix = next((suffix for suffix in suffixes if path.name.endswith(suffix)), None)
    return _PART.sub("", path.name.removesuffix(suffix)) if suffix and not path.name.startswith(".") else None


def splits(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, tuple[Path, ...]]:
    """Finds the splits of a data set in a folder: `<split>.<suffix>`, its parts, folders saved by `datasets`, or files
    prepared by TensorFlow Datasets (there, or in the latest of its version folders).

    Raises:
      DataError: a `state.json` of `datasets` cannot be read.
    """
    if (folder / "state.json").is_file():
        return {"train": _saved(folder)}
    files: dict[str, list[Path]] = {}
    versions = sorted(path.parent for path in folder.glob("*/features.json"))
    for path in sorted([*folder.iterdir(), *(versions[-1].iterdir() if versions else ())]):
        if (prepared := PREPARED.search(path.name)) and (path.parent / "features.json").is_file():
            files.setdefault(prepared["split"], []).append(path)
            continue
        if path.is_dir() and (path / "state.json").is_file():
            files.setdefault(path.name, []).extend(_saved(path))
        elif (
            path.is_file()
            and not path.name.endswith((".arrow", "dataset_dict.json"))
            and (name := stem(path, suffixes))
        ):
            files.setdefault(name, []).append(path)
    return {split: tuple(paths) for split, paths in files.items()}


def _saved(folder: Path) -> tuple[Path, ...]:
    """The Arrow files of one saved split, in order."""
    path = folder / "state.json"
    try:
        files = [entry["filename"] for entry in typed_json.loads(path.read_text(encoding="utf-8"))["_data_files"]]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not written by datasets' save_to_disk ({error!r})") from None
    return tuple(folder / Path(name).name for name in files)


def read(files: Sequence[Path]) -> Iterator[Row | Skipped]:
    """Yields a Row per usable record and a Skipped per unusable one, in file order.

    Raises:
      DataError: a file is damaged as a whole. UserError: a package that it needs is not installed.
    """
    numbers = itertools.count(1)
    for path in files:
        rows = _kind(path)(path)
        for line, values in rows:
            number = next(numbers)
            yield (
                Row(number, f"{path}:{line}", values) if isinstance(values, dict) else Skipped(f"{path}:{line}", values)
            )


def content(path: Path) -> str:
    """Reads a text file.

    Raises:
      DataError: the file is missing, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the file again") from None


def lines(path: Path) -> Iterator[tuple[int, str | Skipped]]:
    """Yields the lines of a text file by number, without line ends.

    Raises:
      DataError: the file cannot be read.
    """
    for number, raw in _raw_lines(path):
        if raw is None:
            yield number, Skipped(f"{path}:{number}", f"a line of more than {MAX_LINE >> 20} MB")
            continue
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield number, Skipped(f"{path}:{number}", f"not UTF-8 at byte {error.start:,} of the line")


def tabs(*columns: str, rest: bool = False) -> Callable[[Path, str], Iterator[Row | Skipped]]:
    """Returns a reader of tab-separated files without header and quotes; empty lines are ignored.

    Args:
      columns: their names. With `rest`, rows may have more cells, which become the list "rest".
    """
    expected = f"{len(columns)}{' or more' if rest else ''}"

    def read(path: Path, split: str) -> Iterator[Row | Skipped]:
        for number, line in lines(path):
            if isinstance(line, Skipped):
                yield line
            elif line.strip():
                cells = line.split("\t")
                if len(cells) < len(columns) or (len(cells) > len(columns) and not rest):
                    yield Skipped(f"{path}:{number}", f"{len(cells)} columns, not {expected}")
                else:
                    values: dict[str, Any] = dict(zip(columns, cells))
                    yield Row(number, f"{path}:{number}", values | ({"rest": cells[len(columns) :]} if rest else {}))

    return read


def table(
    path: Path, split: str = "", *, delimiter: str = ",", columns: Sequence[str] = (), quotes: bool = True
) -> Iterator[Row | Skipped]:
    """Yields the rows of a CSV file; `columns` are given if it has no header.

    Raises:
      DataError: the file cannot be read, or a quote never ends.
    """
    start = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
            reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
            header = list(columns) or next(reader, [])
            start = reader.line_num + 1
            for cells in reader:
                where, start = f"{path}:{start}", reader.line_num + 1
                if len(cells) != len(header):
                    yield Skipped(where, f"{len(cells)} columns, not {len(header)}")
                else:
                    yield Row(reader.line_num, where, dict(zip(header, cells)))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start:,} of the last block; fetch the file again") from None
    except csv.Error as error:
        raise DataError(f"{path}:{start}: not a table ({error}); fetch the file again") from None


def _kind(path: Path) -> Callable[[Path], Iterator[tuple[int, dict[str, Any] | str]]]:
    if PREPARED.search(path.name):
        return _prepared
    if path.suffix in TABLES:
        return _cells
    return _columnar if path.suffix in (".parquet", ".arrow") else _json


def _cells(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line numbers with the cells of a row by their column, without empty ones, or error messages."""
    for row in table(path, delimiter="\t" if path.suffix == ".tsv" else ","):
        line = int(row.where.rpartition(":")[2])
        yield line, row.reason if isinstance(row, Skipped) else {k.strip(): v for k, v in row.values.items() if v}


def _json(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line numbers with objects or error messages; numbers of records if the file is one JSON value or several, which
    take more than a line each."""
    if (values := _documents_of(path)) is not None:
        yield from enumerate(_records(values), start=1)
        return
    for line, raw in _raw_lines(path):
        if raw is None:
            yield line, f"a line of more than {MAX_LINE >> 20} MB"
        elif raw.strip():
            yield line, _object(raw)


def _documents_of(path: Path) -> list[Any] | None:
    """The JSON values of a file; None if it has a record per line.

    Raises:
      DataError: its first line starts a list or object that ends elsewhere, and the file is damaged.
    """
    lines = (raw for _, raw in _raw_lines(path) if raw is None or raw.strip())
    first, second = next(lines, b""), next(lines, b"")
    if first is None:  # too long for a line
        return None if second is None or second else documents(path)
    start = first.lstrip(b"\xef\xbb\xbf \t").rstrip()
    values = _object(start)
    if isinstance(values, dict):
        return [values] if not second and _wrapped(values) is not None else None
    is_open = start.startswith(b"[") or start == b"{"
    if not is_open and not (start.startswith(b"{") and second and isinstance(_object(second), str)):
        return None
    try:
        return documents(path)
    except DataError:
        if is_open:
            raise
        return None  # lines, of which the first two are damaged


def _wrapped(values: dict[str, Any]) -> list[Any] | None:
    """The records of an object that only holds them: a list under a name in `WRAPPERS`, or an object for each."""
    for name in WRAPPERS:
        if isinstance(values.get(name), list) and all(isinstance(value, dict) for value in values[name]):
            return values[name]
    if len(values) > 1 and all(isinstance(value, dict) for value in values.values()):
        return list(values.values())
    return None


def _records(values: Iterable[Any]) -> Iterator[dict[str, Any] | str]:
    """The records of the JSON values of a file."""
    for value in values:
        inner = value if isinstance(value, list) else _wrapped(value) if isinstance(value, dict) else None
        for item in [value] if inner is None else inner:
            yield _checked(item)


def _checked(value: Any, may_have_surrogates: bool = True) -> dict[str, Any] | str:
    """A record, or why the value is none."""
    if may_have_surrogates and has_lone_surrogate(value):
        return "text with half a surrogate pair"
    return value if isinstance(value, dict) else f"{type(value).__name__}, not an object"


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yields the lines of a file by number; None for a line that is too long to hold in memory."""
    try:
        with _open(path) as file:
            line = 0
            while raw := file.readline(MAX_LINE + 1):
                line += 1
                if len(raw) <= MAX_LINE:
                    yield line, raw
                    continue
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(MAX_LINE)
                yield line, None
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the file again") from None


def _object(raw: bytes) -> dict[str, Any] | str:
    try:
        values = typed_json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start:,} of the line"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:  # also raised for numbers with too many digits
        return f"not JSON ({str(error).splitlines()[0]})"
    return _checked(values, b"\\u" in raw)


def document(path: Path) -> Any:
    """Reads a file that is a single JSON value.

    Raises:
      DataError: the file is not JSON, or too large.
    """
    values = documents(path)
    if len(values) != 1:
        raise DataError(f"{path}: not JSON ({len(values)} values, not one)")
    return values[0]


def documents(path: Path) -> list[Any]:
    """Reads a file of one JSON value after another, with any white space between them.

    Raises:
      DataError: the file is not JSON, or too large.
    """
    try:
        with _open(path) as file:
            raw = file.read(MAX_LIST + 1)
        if len(raw) > MAX_LIST:
            raise DataError(f"{path}: a JSON value of more than {MAX_LIST >> 30} GB; convert it to JSON lines")
        text, end, values = raw.decode("utf-8-sig"), 0, []
        decoder = json.JSONDecoder()
        while (start := _SPACE.match(text, end).end()) < len(text) or not values:
            value, end = decoder.raw_decode(text, start)
            values.append(value)
        return values
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start:,}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({str(error).splitlines()[0]})") from None
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the file again") from None


def _columnar(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
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
            yield from zip(numbers, _rows_of(batch))
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); fetch the file again") from None


def _rows_of(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; why a row is none, if a text of it is not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(len(batch)):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield f"text that is not UTF-8 at byte {error.start:,}"


def _prepared(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the records of a file written by TensorFlow Datasets, whose features describe its content."""
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
    """Converts NumPy values to JSON types."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
