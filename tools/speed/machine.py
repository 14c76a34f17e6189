"""What a number was measured on."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tokenizers", "torch", "transformers")
PACKAGES += ("seqio", "tensorflow", "apache-beam")

QUIET = 0.1  # of the cores: what others may use where a ratio is to be published


class Others:
    """What all processes but this one and its children use of the machine, from now on."""

    def __init__(self) -> None:
        self._start, self._before = time.monotonic(), self._seconds()

    def cores(self) -> float:
        """Cores they used on average since the start; what a host took from a virtual machine counts too."""
        return round(max(0.0, (self._seconds() - self._before) / (time.monotonic() - self._start)), 3)

    @staticmethod
    def _seconds() -> float:
        first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
        user, nice, system, _, _, interrupts, soft, steal = map(int, first.split()[1:9])
        own = os.times()
        everyone = (user + nice + system + interrupts + soft + steal) / os.sysconf("SC_CLK_TCK")
        return everyone - (own.user + own.system + own.children_user + own.children_system)


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0))


def load() -> float:
    """Runnable processes over the last minute: above what this process used, others took part of the machine."""
    return round(os.getloadavg()[0], 2)


def machine() -> dict:
    """Processor, the cores this process may use, memory, and the accelerator or None."""
    device = jax.devices()[0]
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": None if device.platform == "cpu" else device.device_kind,
    }


def versions() -> dict:
    """Python's and the packages' (None: not installed)."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
