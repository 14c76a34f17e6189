"""The safetensors format: a JSON header, then the tensors' bytes (huggingface/safetensors, README, "Format").

Read and written here because the library memory-maps files on reading, and holds all tensors in memory on writing.
"""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import numpy as np

from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError
from optiml_jax.common.typed_json import Count
from optiml_jax.weights.stored import FLOATS, Stored

NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
MAX_HEADER = 100_000_000  # the library's own limit


class Entry(TypedDict):
    """A tensor in the header of a file."""

    dtype: str
    shape: list[Count]
    data_offsets: tuple[Count, Count]


def read_header(file: Path) -> dict[str, Stored]:
    """Reads the header of a file: its tensors in the order of their bytes.

    Raises:
      UserError: the file is not safetensors, is truncated, or has a tensor that is not fp16, bf16, fp32 or fp64.
    """
    try:
        total = file.stat().st_size
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if total < 8 or size > min(MAX_HEADER, total - 8):
                raise UserError(f"{file}: truncated or not a safetensors file; fetch or write it again")
            header = msgspec.convert(typed_json.loads(stream.read(size)), dict[str, Any])
        header.pop("__metadata__", None)
        tensors = {name: _entry(file, name, entry, 8 + size) for name, entry in header.items()}
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, msgspec.ValidationError) as error:
        raise UserError(
            f"{file}: the safetensors header is damaged ({error}); fetch or write the file again"
        ) from error
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1].offset))
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=8 + size)
    if end != total:
        state = "truncated" if total < end else "longer than its header says"
        raise UserError(f"{file}: {state} ({total:,} bytes, expected {end:,}); fetch or write it again")
    return tensors


def _entry(file: Path, name: str, content: Any, base: int) -> Stored:
    entry = msgspec.convert(content, Entry)
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in NAMES:
        raise UserError(f"{file}: tensor {name} is {entry['dtype']}; only F64, F32, F16 and BF16 weights can be loaded")
    dtype, shape = FLOATS[NAMES[entry["dtype"]]], tuple(entry["shape"])
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise UserError(
            f"{file}: tensor {name} has {end - begin:,} bytes, which does not match {entry['dtype']} {shape}"
        )
    return Stored(file, base + begin, dtype, shape)


def write_file(file: Path, shapes: dict[str, tuple[int, ...]], dtype: str, tensors: Iterable[np.ndarray]) -> None:
    """Writes tensors one at a time; `tensors` yields them in the order of `shapes`."""
    code = next(code for code, name in NAMES.items() if name == dtype)
    header, offset = {"__metadata__": {"format": "pt"}}, 0  # transformers requires a format
    for name, shape in shapes.items():
        size = math.prod(shape) * FLOATS[dtype].itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            stream.write(memoryview(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)))


def shard(shapes: dict[str, tuple[int, ...]], itemsize: int, limit: float) -> Iterator[dict[str, tuple[int, ...]]]:
    """Groups tensors, in order, into files of at most `limit` bytes (a larger tensor gets its own file)."""
    group: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        nbytes = math.prod(shape) * itemsize
        if group and size + nbytes > limit:
            yield group
            group, size = {}, 0
        group[name] = shape
        size += nbytes
    if group:
        yield group
