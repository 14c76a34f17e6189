"""Settings of glibc's allocator for training on CPUs."""

import os
import platform
import sys
from collections.abc import Mapping

# Every step on a CPU requests gigabytes of fresh pages from the system, a tenth to a seventh of its time, unless glibc
# retains what was freed. Huge pages are requested once, so their size costs nothing.
SETTINGS = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
}
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")


def restart_with_settings() -> None:
    """Starts this command again with `SETTINGS`, because glibc reads them only when a process starts.

    Call it first in a command. It does nothing on machines with a GPU, without glibc, or where one of the variables is
    set, as it is after the restart.
    """
    if wants_settings(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **SETTINGS})


def wants_settings(environ: Mapping[str, str]) -> bool:
    """Whether this process can be restarted, and trains faster if it is."""
    if any(name in environ for name in SETTINGS) or platform.libc_ver()[0] != "glibc" or sys.gettrace():
        return False
    return environ.get("JAX_PLATFORMS") == "cpu" or not any(map(os.path.exists, GPU_DRIVERS))
