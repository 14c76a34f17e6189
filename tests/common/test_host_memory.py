"""A command starts itself again with glibc's settings, once, and only where that is safe."""

import json
import os
import platform
import subprocess
import sys

import pytest

from optiml_jax.common import host_memory
from tests.conftest import ROOT

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
CODE = """
import json, os, sys
from optiml_jax.common import host_memory
print("started")
sys.stdout.flush()
host_memory.restart_with_settings()
print(json.dumps([os.getpid(), sys.argv[1:], {name: os.environ.get(name) for name in host_memory.SETTINGS}]))
"""


def start(**variables: str) -> tuple[int, int, list]:
    """How often the program started, its process, and what it printed at the end."""
    environ = {name: value for name, value in os.environ.items() if name not in host_memory.SETTINGS}
    words = [sys.executable, "-c", CODE, "a b", "--c='d'"]
    process = subprocess.Popen(words, cwd=ROOT, env={**environ, **variables}, stdout=subprocess.PIPE, text=True)
    output = process.communicate()[0].splitlines()
    assert process.returncode == 0
    return output.count("started"), process.pid, json.loads(output[-1])


@needs_glibc
def test_a_command_starts_again_with_the_settings_in_the_same_process():
    starts, process, (process_at_end, arguments, settings) = start(JAX_PLATFORMS="cpu")
    assert starts == 2 and process_at_end == process and arguments == ["a b", "--c='d'"]
    assert settings == host_memory.SETTINGS


def test_variables_of_the_user_and_gpus_are_left_alone(monkeypatch):
    assert start(JAX_PLATFORMS="cpu", MALLOC_MMAP_MAX_="9")[0] == 1
    monkeypatch.setattr(host_memory, "GPU_DRIVERS", ("/dev/null",))
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    assert not host_memory.wants_settings({}) and not host_memory.wants_settings({"JAX_PLATFORMS": "cuda,cpu"})
    monkeypatch.setattr(host_memory, "GPU_DRIVERS", ())
    assert host_memory.wants_settings({}) == (platform.libc_ver()[0] == "glibc")
