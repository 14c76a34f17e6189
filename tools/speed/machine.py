"""The machine and versions of a measurement."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tokenizers", "torch", "transformers")
PACKAGES += ("seqio", "tensorflow", "apache-beam")

QUIET = 0.1  # fraction of the cores that other processes may use while a publishable ratio is measured


class Others:
    """Measures the load of all processes other than this one and its children."""

    def __init__(self) -> None:
        self._start, self._before = time.monotonic(), self._seconds()

    def cores(self) -> float:
        """Returns the mean number of cores in use since the start, including steal time of a virtual machine."""
        return round(max(0.0, (self._seconds() - self._before) / (time.monotonic() - self._start)), 3)

    @staticmethod
    def _seconds() -> float:
        first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
        user, nice, system, _, _, interrupts, soft, steal = map(int, first.split()[1:9])
        mine = os.times()
        everyone = (user + nice + system + interrupts + soft + steal) / os.sysconf("SC_CLK_TCK")
        return everyone - (mine.user + mine.system + mine.children_user + mine.children_system)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def load() -> float:
    """Returns the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def machine() -> dict:
    """Returns the processor, the cores this process may use, memory, and the accelerator or None."""
    device = jax.devices()[0]
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": None if device.platform == "cpu" else device.device_kind,
    }


def versions() -> dict:
    """Returns the versions of Python and the packages (None: not installed)."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
