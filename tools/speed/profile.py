"""`train --profile`: device time of this project's steps, by kind of kernel."""

import collections
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

# The first entry that is a substring of a kernel's name: cuBLAS's products, this package's kernels, XLA's own kernels.
KINDS = {
    "attention": ("attention_",),
    "matrix products": ("gemm", "nvjet", "cublas", "cutlass", "xmma", "splitk"),
    "copies": ("memcpy", "memset", "copy"),
    "reductions": ("reduce",),
    "other element-wise": ("",),
}


def kind(kernel: str) -> str:
    return next(name for name, parts in KINDS.items() if any(part in kernel.lower() for part in parts))


def measure(run: Callable[[], object]) -> dict:
    """Runs `run` once under JAX's profiler.

    Returns:
      For the kernels of all GPUs: `seconds` by kind; `kernels`, the largest ones with their counts (numbers in names
      are removed, so that the fusions of all layers are counted together); `wall_seconds` from the start of the first
      kernel to the end of the last; `idle_seconds`. Empty without a GPU, because XLA names no kernels on CPUs.
    """
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            run()
        traces = list(Path(directory).rglob("*.xplane.pb"))
        spans = [span for trace in traces for span in _kernels(trace)]
    if not spans:
        return {}
    seconds, kernels, counts = collections.Counter(), collections.Counter(), collections.Counter()
    for name, start, end in spans:
        short = re.sub(r"[._]?\d+(?=$|[._])", "", name)[:80]
        seconds[kind(name)] += (end - start) / 1e9
        kernels[short] += (end - start) / 1e9
        counts[short] += 1
    first, last = min(start for _, start, _ in spans), max(end for _, _, end in spans)
    busy, until = 0.0, first
    for _, start, end in sorted(spans, key=lambda span: span[1]):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return {
        "wall_seconds": (last - first) / 1e9,
        "idle_seconds": (last - first - busy) / 1e9,
        "seconds": dict(seconds.most_common()),
        "kernels": [{"name": name, "seconds": s, "count": counts[name]} for name, s in kernels.most_common(20)],
    }


def _kernels(trace: Path) -> list[tuple[str, float, float]]:
    """Returns (name, start, end) of every kernel on the streams of GPUs, in nanoseconds."""
    kernels = []
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        if plane.name.startswith("/device:GPU"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    kernels += [(event.name, event.start_ns, event.end_ns) for event in line.events]
    return kernels


def lines(kernels: dict, steps: int) -> list[str]:
    """Formats the result of `measure`: milliseconds per step."""
    if not kernels:
        return ["no profile: XLA names no kernels on this device"]
    per = 1e3 / steps
    kinds = ", ".join(f"{name} {s * per:.1f}" for name, s in kernels["seconds"].items())
    largest = ", ".join(
        f"{entry['name']} {entry['seconds'] * per:.1f} ({entry['count'] // steps} x)"
        for entry in kernels["kernels"][:8]
    )
    return [
        f"ms per step: {kinds}; idle {kernels['idle_seconds'] * per:.1f} of {kernels['wall_seconds'] * per:.1f}",
        f"largest: {largest}",
    ]
