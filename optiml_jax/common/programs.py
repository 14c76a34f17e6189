"""Compiled programs: JAX's cache of them on disk, and how many a command compiles."""

import os
from collections.abc import Mapping
from pathlib import Path

import jax
from jax import monitoring

COMPILED = "/jax/core/compile/backend_compile_duration"  # also when a program is read from the cache
READ = "/jax/compilation_cache/cache_hits"


def cache_folder(environ: Mapping[str, str]) -> Path:
    """~/.cache/optiml_jax/programs, or below XDG_CACHE_HOME if that is set."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "optiml_jax", "programs")


def use_cache(environ: Mapping[str, str] = os.environ) -> None:
    """Lets JAX write the programs that take a second or more to compile to `cache_folder`, and read them from there.

    JAX's own variables take precedence: JAX_COMPILATION_CACHE_DIR names another folder,
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. Without permission to write there is none.
    """
    if environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = cache_folder(environ)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


class Programs:
    """Prints each program as it is compiled, with its time, and their number at the end."""

    def __init__(self) -> None:
        self._count, self._cached, self._seconds, self._is_cached = 0, 0, 0.0, False
        monitoring.register_event_listener(self._event)
        monitoring.register_event_duration_secs_listener(self._duration)

    def _event(self, event: str, **_: object) -> None:
        self._is_cached |= event == READ

    def _duration(self, event: str, seconds: float, fun_name: str = "", **_: object) -> None:
        if event != COMPILED:
            return
        source = "read from the cache" if self._is_cached else "compiled"
        self._count, self._cached = self._count + 1, self._cached + self._is_cached
        self._seconds, self._is_cached = self._seconds + seconds, False
        print(f"program   {fun_name or 'unnamed'}: {source} in {seconds:.2f} s", flush=True)

    def __str__(self) -> str:
        folder = jax.config.jax_compilation_cache_dir if jax.config.jax_enable_compilation_cache else None
        cached = f", {self._cached} of them read from {folder}" if folder else ""
        return f"programs  {self._count} in {self._seconds:.1f} s{cached}"
