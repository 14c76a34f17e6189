"""MFU against hand arithmetic, and the peaks of the makers' data sheets."""

import jax
import pytest

from optiml_jax.common import cards
from optiml_jax.training import flops


def test_mfu_is_the_share_of_the_peak_that_parameters_and_real_tokens_need():
    # 6 * 1e9 * 10,000 = 6e13 FLOPs in half a second on two devices of 1e14 FLOP/s.
    assert flops.mfu(1_000_000_000, 10_000, 0.5, 2, 1e14) == pytest.approx(0.6)
    assert flops.mfu(1_000_000_000, 10_000, 0.5, 2, None) is None


def test_a_given_peak_goes_before_the_table_and_a_cpu_has_none():
    assert flops.peak_flops(1e12) == 1e12
    if jax.default_backend() == "cpu":
        assert flops.peak_flops() is None


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
    ],
)
def test_the_peak_of(kind, teraflops):
    assert cards.card_of(kind).flops == teraflops * 1e12
