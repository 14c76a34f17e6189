"""What a number was measured on."""

import importlib.metadata
import os
import platform
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tokenizers", "torch", "transformers")
PACKAGES += ("seqio", "tensorflow", "apache-beam")


def load() -> float:
    """Runnable processes over the last minute: above what this process used, others took part of the machine."""
    return round(os.getloadavg()[0], 2)


def machine() -> dict:
    """Processor, the cores this process may use, memory, and the accelerator or None."""
    device = jax.devices()[0]
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
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
