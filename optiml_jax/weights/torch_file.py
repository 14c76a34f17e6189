"""Reads torch's files (`.bin`, `.pt`) without torch, and without running code that a pickle asks for.

A zip holds `<root>/data.pkl`, a pickle of the state with persistent ids for storages, and `<root>/data/<key>`, the
storages' bytes, uncompressed. Files of torch before 1.6 are pickles one after another (a number, a version, facts about
the machine, the state, the storages' keys), and then each storage: its number of elements in 8 bytes, and its bytes.
The unpickler below knows the few names that tensors need and refuses all others.
"""

import collections
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.weights.stored import FLOATS, Stored

STORAGES = {"FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"}
STORAGES["DoubleStorage"] = "float64"
# Storages of buffers and counters; weights cannot have these types.
OTHER_STORAGES = {"LongStorage": np.int64, "IntStorage": np.int32, "BoolStorage": np.bool_}
LEGACY = 0x1950A86A20F9469CFC6C  # the number at the start of a file of torch before 1.6
MAX_PICKLE = 1 << 30  # names and shapes only: the 175B model's are a few megabytes


def load(file: Path, inert_class: Callable[[str, str], Any] | None = None) -> Any:
    """Reads the contents of `file`, each tensor as a `Stored`.

    Args:
      inert_class: returns a replacement for a (module, name) that tensors do not need, or None to refuse it.

    Raises:
      UserError: the file is truncated, not torch's, or its pickle needs an unknown class.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(1) == b"\x80":
                return _load_legacy(file, inert_class)
        with zipfile.ZipFile(file) as archive:
            records = {info.filename: info for info in archive.infolist()}
            root = next((name[: -len("data.pkl")] for name in records if name.endswith("/data.pkl")), None)
            if root is None:
                raise UserError(f"{file}: a zip without data.pkl; is this a torch file?")
            if f"{root}byteorder" in records and archive.read(f"{root}byteorder") != b"little":
                raise UserError(f"{file}: written on a big-endian machine; save it again on another")
            if records[f"{root}data.pkl"].file_size > MAX_PICKLE:
                raise UserError(f"{file}: data.pkl is too large to hold names and shapes only")
            with archive.open(f"{root}data.pkl") as stream, file.open("rb") as raw:
                return _Unpickler(stream, file, raw, root, records, inert_class).load()
    except UserError:
        raise
    except zipfile.BadZipFile as error:
        raise UserError(f"{file}: truncated or not a torch file; fetch it again") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: data.pkl is damaged ({type(error).__name__}: {reason}); fetch it again") from error


def _load_legacy(file: Path, inert_class: Callable | None) -> Any:
    """Reads a file of torch before 1.6: once for the storages' places, and again for the tensors in them."""
    with file.open("rb") as stream:

        def unpickle(starts: dict[str, int] | None) -> Any:
            return _LegacyUnpickler(stream, file, starts, inert_class).load()

        if unpickle(None) != LEGACY:
            raise UserError(f"{file}: a pickle that is not torch's; is this a file of weights?")
        unpickle(None), unpickle(None)  # the version, and facts about the machine
        state = stream.tell()
        first = _LegacyUnpickler(stream, file, None, inert_class)
        first.load()
        starts, size = {}, file.stat().st_size
        for key in map(str, unpickle(None)):
            (count,) = struct.unpack("<q", stream.read(8))
            starts[key] = stream.tell()
            dtype, expected = first.storages[key]
            end = starts[key] + count * dtype.itemsize
            if count != expected or end > size:
                raise UserError(f"{file}: truncated in storage {key}; fetch it again")
            stream.seek(end)
        stream.seek(state)
        return unpickle(starts)


class _Unpickler(pickle._Unpickler):
    """Rebuilds what tensors need, and refuses everything else.

    Python's own unpickler, because the one in C allocates as many places as a number in the file says.
    """

    def __init__(self, stream, file: Path, raw, root: str, records: dict, inert_class: Callable | None) -> None:
        super().__init__(stream)
        self._file, self._raw, self._root, self._records, self._inert_class = file, raw, root, records, inert_class

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, requires_grad, hooks: tensor,
            ("torch", "Size"): tuple,
        }
        if (module, name) in allowed:
            return allowed[module, name]
        if module == "torch" and name in STORAGES:
            return FLOATS[STORAGES[name]]
        if module == "torch" and name in OTHER_STORAGES:
            return np.dtype(OTHER_STORAGES[name])
        if self._inert_class is not None and (replacement := self._inert_class(module, name)) is not None:
            return replacement
        raise UserError(f"{self._file}: its pickle needs {module}.{name}, which weights do not need; it was not run")

    def persistent_load(self, pid: tuple) -> tuple[np.dtype, str, int]:
        kind, dtype, key, _, count, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"unknown persistent id {kind!r}")
        return dtype, str(key), int(count)

    def _tensor(self, storage, offset, shape, strides, *_: Any) -> Stored:
        dtype, key, count = storage
        record = self._records.get(f"{self._root}data/{key}")
        if record is None or record.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{self._file}: storage {key} is missing or compressed; fetch or write the file again")
        if count * dtype.itemsize > record.file_size:
            raise UserError(f"{self._file}: storage {key} is smaller than its tensor; fetch the file again")
        return self._stored(self._data_start(record), storage, offset, shape, strides)

    def _stored(self, start: int, storage: tuple[np.dtype, str, int], offset: int, shape, strides) -> Stored:
        """The tensor in a storage that starts at a byte of the file."""
        dtype, key, count = storage
        shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides)) if 0 not in shape else offset
        if min((offset, *shape, *strides)) < 0 or last >= max(count, 1):
            raise UserError(f"{self._file}: storage {key} is smaller than its tensor {shape}; fetch the file again")
        start += offset * dtype.itemsize
        return Stored(self._file, start, dtype, shape, None if _contiguous(shape, strides) else strides)

    def _data_start(self, record: zipfile.ZipInfo) -> int:
        """Offset of the record's data, from its local header, whose length may differ from the central one's."""
        self._raw.seek(record.header_offset)
        signature, name_length, extra_length = struct.unpack("<4s22xHH", self._raw.read(30))
        if signature != b"PK\x03\x04":
            raise UserError(f"{self._file}: the zip directory is damaged; fetch the file again")
        return record.header_offset + 30 + name_length + extra_length


class _LegacyUnpickler(_Unpickler):
    """Reads the state in a file of torch before 1.6.

    Attributes:
      storages: type and number of elements of each storage that the state uses, by key.
    """

    def __init__(self, stream, file: Path, starts: dict[str, int] | None, inert_class: Callable | None) -> None:
        """`starts`: the first byte of each storage, by key; None reads the state without its tensors."""
        super().__init__(stream, file, None, "", {}, inert_class)
        self._starts, self.storages = starts, {}

    def persistent_load(self, pid: tuple) -> tuple[np.dtype, str, int]:
        storage = super().persistent_load(pid)
        if len(pid) > 5 and pid[5] is not None:
            raise UserError(
                f"{self._file}: storage {storage[1]} is a view of another; save it again with a newer torch"
            )
        self.storages[storage[1]] = storage[0], storage[2]
        return storage

    def _tensor(self, storage, offset, shape, strides, *_: Any) -> Stored | None:
        if self._starts is None:
            return None
        return self._stored(self._starts[storage[1]], storage, offset, shape, strides)


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
