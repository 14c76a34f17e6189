"""Runs Triton kernels in JAX programs: on GPUs through jax-triton, on CPUs in Triton's interpreter, which tests use.

A plan compiles programs for GPUs that are not there; in them a kernel is an opaque call with the same arrays.
"""

import functools
import importlib
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from optiml_jax.common.errors import UserError

SMALLEST = 16  # rows and columns of a Triton product at least
OPTIONS = {
    "ptx_version": 87,  # CUDA 12.8's, which every ptxas of CUDA 13 assembles; Triton's own may be newer
    "enable_fp_fusion": True,  # fused multiply-adds, which Triton 3.10 will not use by itself
}
AMPERE = 8.0  # the first compute capability with bfloat16 products
INSTALL = "pip install 'optiml-jax[cuda]' (Python 3.12, jax 0.11 or newer)"


def column_groups(K: int) -> dict[str, int]:
    """Sizes of the two arrays, powers of two, that hold the K columns of a head; the second may be empty."""
    wide = max(SMALLEST, 1 << (K.bit_length() - 1))
    rest = K - wide
    return {"WIDE": wide, "REST": max(SMALLEST, 1 << (rest - 1).bit_length()) if rest > 0 else 0}


@functools.cache
def reason_against() -> str | None:
    """Why the kernels cannot run on the GPUs of this machine; None if they can."""
    if not all(importlib.util.find_spec(name) for name in ("triton", "jax_triton")):
        return f"jax-triton is not installed: {INSTALL}"
    device = jax.local_devices()[0]
    if not re.fullmatch(r"\d+\.\d+", device.compute_capability) or float(device.compute_capability) < AMPERE:
        return f"{device.device_kind} is no NVIDIA GPU from Ampere on"
    return None


@functools.cache
def has_kernels() -> bool:
    """Whether GPUs run the kernels: those of this machine or, where it has none, those that a plan describes. If not,
    says why, once."""
    reason = reason_against() if jax.default_backend() == "gpu" else None
    if reason and jax.process_index() == 0:
        print(f"attention in plain JAX, exact but several times slower than the kernel: {reason}", file=sys.stderr)
    return reason is None


def triton_call(
    module: str,
    name: str,
    inputs: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    grid: tuple[int, ...],
    constants: Mapping[str, Any],
    warps: int,
    stages: int,
    updated: Sequence[int] = (),
    interpret: bool = False,
) -> list[jax.Array]:
    """Calls a kernel.

    Args:
      module, name: the module of the kernel, which is imported only where it runs, and its name there. It takes
        pointers to the inputs and then to the outputs, all of them in row-major order.
      grid: number of programs along each axis.
      constants: the kernel's `tl.constexpr` arguments.
      warps, stages: of each program: its size in 32 threads, and the depth of its pipeline of loads.
      updated: the inputs, by number, that the kernel writes in place.
      interpret: runs the kernel on the CPU; otherwise a machine without a GPU only compiles the program.

    Returns:
      The updated inputs, then the outputs.

    Raises:
      UserError: the kernels cannot run on this machine.
      RuntimeError: Triton was imported before, for the other mode.
    """
    written = [*(jax.ShapeDtypeStruct(inputs[i].shape, inputs[i].dtype) for i in updated), *outputs]
    aliases = {number: result for result, number in enumerate(updated)}
    if not interpret and jax.default_backend() != "gpu":
        return jax.ffi.ffi_call(name, written, input_output_aliases=aliases)(*inputs)
    kernel = getattr(_kernels(module, interpret), name)
    if interpret:
        run = functools.partial(_interpret, kernel, grid, constants, updated, outputs)
        return jax.pure_callback(run, written, *inputs)
    import jax_triton

    references = {number: jax.new_ref(inputs[number]) for number in updated}
    new = jax_triton.triton_call(
        *(references.get(number, x) for number, x in enumerate(inputs)),
        kernel=kernel,
        out_type=list(outputs),
        grid=grid,
        name=name,
        num_warps=warps,
        num_stages=stages,
        backend_options=OPTIONS,
        **constants,
    )
    return [*map(jax.freeze, references.values()), *new]


def _kernels(module: str, interpret: bool) -> ModuleType:
    if interpret:
        os.environ.setdefault("TRITON_INTERPRET", "1")
    elif reason := reason_against():
        raise UserError(f"attention implementation 'triton' cannot run: {reason}; or choose 'blocked'")
    try:
        import triton
    except ImportError:
        raise UserError("Triton's interpreter is not installed; pip install triton") from None
    if triton.knobs.runtime.interpret != interpret:
        raise RuntimeError("to run kernels on a CPU, and only then, set TRITON_INTERPRET=1 before Triton is imported")
    return importlib.import_module(module)


_INTERPRETER = threading.Lock()  # it has one state, and every device of a mesh has a thread


class _HostArray:
    """An array as Triton's interpreter expects a tensor, all of whose storage it may write."""

    def __init__(self, x: np.ndarray | None = None) -> None:
        self.x = x

    @property
    def dtype(self) -> str:
        return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32"}[self.x.dtype.name]

    def data_ptr(self) -> int:
        return self.x.ctypes.data

    def untyped_storage(self) -> "_HostArray":
        return self

    cpu = untyped_storage

    def new_empty(self, *_: Any, **__: Any) -> "_HostArray":
        return _HostArray()

    def set_(self, storage: "_HostArray", *_: Any) -> None:
        self.x = storage.x

    def storage_offset(self) -> None: ...

    size = stride = storage_offset

    def copy_(self, other: "_HostArray") -> None:
        """Nothing to copy: the interpreter wrote this array itself."""


def _interpret(
    kernel: Callable,
    grid: tuple[int, ...],
    constants: Mapping[str, Any],
    updated: Sequence[int],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *inputs: jax.Array,
) -> list[np.ndarray]:
    arrays = [np.array(x) for x in inputs]
    # Outputs start as NaN: on a GPU, elements that a kernel does not write have undefined values.
    new = [np.full(output.shape, np.nan, output.dtype) for output in outputs]
    with _INTERPRETER:
        kernel[grid](*map(_HostArray, [*arrays, *new]), **constants)
    return [*(arrays[number] for number in updated), *new]
