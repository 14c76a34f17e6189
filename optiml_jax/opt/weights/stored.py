"""One tensor in a file: where its bytes are, read into memory only when asked (safetensors and torch share it)."""

import dataclasses
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np

from optiml_jax.errors import UserError

FLOATS = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
ALIGNMENT = 64  # jax takes a host buffer without a copy only at this alignment; numpy gives 16


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
        """Part of the tensor: rows `start` to `stop` of its first axis."""
        start, stop = min(start, self.shape[0]), min(stop, self.shape[0])
        row = math.prod(self.shape[1:]) if self.strides is None else self.strides[0]
        offset = self.offset + start * row * self.dtype.itemsize
        return dataclasses.replace(self, offset=offset, shape=(stop - start, *self.shape[1:]))

    def read(self) -> np.ndarray:
        """The tensor, in memory of its own: a memory map counts as resident once touched, whole shards at a time."""
        if self.strides is None:
            return read_bytes(self.file, self.offset, self.nbytes).view(self.dtype).reshape(self.shape)
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides)) if self.nbytes else 0
        flat = read_bytes(self.file, self.offset, span * self.dtype.itemsize).view(self.dtype)
        steps = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)


def read_bytes(file: Path, offset: int, size: int) -> np.ndarray:
    """`size` bytes from `offset` as uint8, aligned so that jax need not copy them.

    Raises:
      UserError: the file is shorter, or cannot be read.
    """
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    data = raw[start : start + size]
    view, done = memoryview(data), 0
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            while done < size:  # Linux hands over at most 2 GiB a call
                got = stream.readinto(view[done:])
                if not got:
                    raise UserError(f"{file}: truncated at byte {offset + done}; fetch or write the file again")
                done += got
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({os.strerror(error.errno) if error.errno else error})") from error
    return data
