"""Tensors on disk, located by file and offset and read on demand (shared by safetensors and torch files)."""

import dataclasses
import math
from pathlib import Path

import ml_dtypes
import numpy as np

from optiml_jax.common.errors import UserError

FLOATS = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
FLOATS["float64"] = np.dtype(np.float64)  # rounded to float32 on its way to the device
ALIGNMENT = 64  # jax uses a host buffer without a copy only at this alignment; numpy's is 16


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor on disk.

    Attributes:
      offset: of its first element in the file, in bytes.
      strides: in elements, as torch counts them; None for a contiguous tensor.
    """

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> "Stored":
        """Rows `start` to `stop` of the first axis."""
        start, stop = min(start, self.shape[0]), min(stop, self.shape[0])
        row = math.prod(self.shape[1:]) if self.strides is None else self.strides[0]
        offset = self.offset + start * row * self.dtype.itemsize
        return dataclasses.replace(self, offset=offset, shape=(stop - start, *self.shape[1:]))

    def read(self) -> np.ndarray:
        """Reads the tensor into new memory: touched pages of a memory map count as resident, whole shards at a time."""
        if self.strides is None:
            return read_bytes(self.file, self.offset, self.nbytes).view(self.dtype).reshape(self.shape)
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides)) if self.nbytes else 0
        flat = read_bytes(self.file, self.offset, span * self.dtype.itemsize).view(self.dtype)
        steps = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)


@dataclasses.dataclass(frozen=True)
class Flat:
    """A contiguous tensor whose elements lie in several files, one run after another (FSDP's flat parameters)."""

    runs: tuple[Stored, ...]  # of one dimension
    shape: tuple[int, ...]

    @property
    def file(self) -> Path:
        return self.runs[0].file

    @property
    def dtype(self) -> np.dtype:
        return self.runs[0].dtype

    def rows(self, start: int, stop: int) -> "Flat":
        row = math.prod(self.shape[1:])
        return Flat(cut(self.runs, start * row, stop * row), (stop - start, *self.shape[1:]))

    def read(self) -> np.ndarray:
        data, done = aligned(math.prod(self.shape) * self.dtype.itemsize), 0
        for run in self.runs:
            read_into(run.file, run.offset, data[done : done + run.nbytes])
            done += run.nbytes
        return data.view(self.dtype).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Joined:
    """A tensor split along one axis (Megatron's tensor parallelism) into parts of equal shape."""

    parts: tuple["Stored | Flat", ...]
    axis: int

    @property
    def file(self) -> Path:
        return self.parts[0].file

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.parts[0].shape
        return (*shape[: self.axis], shape[self.axis] * len(self.parts), *shape[self.axis + 1 :])

    def read(self) -> np.ndarray:
        size = math.prod(self.shape) * self.dtype.itemsize
        whole = aligned(size).view(self.dtype).reshape(self.shape)
        for part, target in zip(self.parts, np.split(whole, len(self.parts), self.axis)):
            target[...] = part.read()
        return whole


Tensor = Stored | Flat | Joined


def cut(runs: tuple[Stored, ...], start: int, stop: int) -> tuple[Stored, ...]:
    """Selects elements `start` to `stop` of runs laid end to end."""
    selected, first = [], 0
    for run in runs:
        low, high = max(start - first, 0), min(stop - first, run.shape[0])
        if low < high:
            selected.append(run.rows(low, high))
        first += run.shape[0]
    return tuple(selected)


def aligned(size: int) -> np.ndarray:
    """Allocates `size` bytes aligned so that jax uses them without a copy."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def read_bytes(file: Path, offset: int, size: int) -> np.ndarray:
    """Reads `size` bytes from `offset`, see `read_into`."""
    data = aligned(size)
    read_into(file, offset, data)
    return data


def read_into(file: Path, offset: int, data: np.ndarray) -> None:
    """Fills `data` (uint8) from `offset`.

    Raises:
      UserError: the file is too short, or cannot be read.
    """
    view, done = memoryview(data), 0
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            while done < len(view):  # Linux reads at most 2 GiB per call
                got = stream.readinto(view[done:])
                if not got:
                    raise UserError(f"{file}: truncated at byte {offset + done}; fetch or write the file again")
                done += got
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
