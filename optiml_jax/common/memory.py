"""Peak memory of the devices and of the process."""

import resource
import sys

import jax


def device_peak() -> int | None:
    """Bytes: the highest peak of this process's devices; None if they do not report it (CPUs)."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [values["peak_bytes_in_use"] for values in statistics if "peak_bytes_in_use" in values]
    return max(peaks, default=None)


def host_peak() -> int:
    """Bytes: the largest resident size of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
