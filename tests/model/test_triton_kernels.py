"""The kernels' code: it compiles for every card, within its shared memory, and its way into a JAX program.

The results are compared in test_attention.py, test_norm.py and tests/inference/test_cache_attention.py.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from optiml_jax.common.cards import CARDS
from optiml_jax.common.errors import UserError
from optiml_jax.model import triton_call
from optiml_jax.model.attention import attention
from tests.conftest import ROOT

needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton: pip install triton")
needs_jax_triton = pytest.mark.skipif(
    not importlib.util.find_spec("jax_triton"), reason="needs jax-triton, which needs Python 3.12 and jax 0.11"
)


def run(module: str, *arguments: str) -> str:
    """The output of a test's program, in which Triton compiles."""
    environ = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "XLA_FLAGS")}
    words = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True)
    if "needs XLA's CUDA compiler" in done.stderr:
        pytest.skip("needs XLA's CUDA compiler: pip install '.[plan]'")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@needs_triton
@pytest.mark.parametrize(
    ("card", "numbers"),
    [
        ("rtx-4090", "bf16"),  # the least shared memory
        *[
            pytest.param(card, "bf16,fp16,fp32", marks=pytest.mark.slow)
            for card in ("a100-40gb", "rtx-4090", "h200", "b200")
        ],
    ],
)
def test_every_kernel_compiles_within_the_shared_memory_of(card, numbers):
    kernels = list(map(json.loads, run("tests.model.compile_kernels", card, numbers).splitlines()))
    assert len(kernels) == 3 * (1 + numbers.count(",")) * (7 + 1)  # three sizes of heads, three widths of norms
    most = max(kernels, key=lambda kernel: kernel["shared_bytes"])
    assert most["shared_bytes"] <= CARDS[card].block_shared_bytes, most


@needs_jax_triton
def test_programs_use_no_deprecated_interface_and_do_not_copy_the_cache():
    lines = run("tests.model.lower_kernels", "h200").splitlines()
    assert [line for line in lines if line.startswith("kernels")] == ["kernels: 3", "kernels: 4", "kernels: 1"]
    assert [line for line in lines if line.startswith("copies")] == ["copies: 0"] * 3


def test_nothing_uses_the_deprecated_backend_of_pallas():
    for path in (ROOT / "optiml_jax").rglob("*.py"):
        assert not re.search(r"experimental(\.| import )pallas", path.read_text()), path


def test_heads_of_any_size_are_two_arrays_of_powers_of_two():
    for K in range(1, 129):
        wide, rest = triton_call.column_groups(K).values()
        assert wide + rest >= K and wide >= 16 and (rest == 0 or rest >= 16)
        assert {size.bit_count() for size in (wide, rest or wide)} == {1}
    assert triton_call.column_groups(80) == {"WIDE": 64, "REST": 16}


class Gpu:
    device_kind = "NVIDIA Tesla V100"
    compute_capability = "7.0"


def test_gpus_without_the_kernels_compute_in_plain_jax_and_say_so(monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Gpu()])
    for installed, reason in ((True, "V100 is no NVIDIA GPU from Ampere on"), (False, "jax-triton is not installed")):
        for function in (triton_call.has_kernels, triton_call.reason_against):
            function.cache_clear()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, installed=installed: installed)
        x, ids = np.ones((1, 8, 1, 8), np.float32), np.ones((1, 8), np.int32)
        for _ in range(2):
            np.testing.assert_allclose(attention(x, x, x, ids), x)
        assert capsys.readouterr().err.count(reason) == 1
        with pytest.raises(UserError, match=f"'triton' cannot run: .*{reason}"):
            attention(x, x, x, ids, implementation="triton")
    for function in (triton_call.has_kernels, triton_call.reason_against):
        function.cache_clear()
