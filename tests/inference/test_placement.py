"""Which devices hold a model: hand arithmetic with the sizes of OPT."""

import jax
import jax.numpy as jnp
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.inference.placement import Axes, choose_axes, choose_mesh
from optiml_jax.model.config import OPTConfig

GB = 10**9


def opt(layers: int, width: int, heads: int) -> OPTConfig:
    return OPTConfig(
        vocab_size=50272, layers=layers, model_dim=width, heads=heads, ffn_dim=4 * width, max_positions=2048
    )


@pytest.mark.parametrize(
    ("config", "devices", "gigabytes", "expected"),
    [
        (opt(12, 768, 12), 8, 72, (8, 1, 1)),  # 125M: 0.25 GB
        (opt(48, 7168, 56), 8, 72, (4, 1, 2)),  # 30B: 60 GB, more than three quarters of 72
        (opt(48, 7168, 56), 8, 128, (8, 1, 1)),
        (opt(96, 12288, 96), 8, 72, (1, 1, 8)),  # 175B: 350 GB
        (opt(96, 12288, 96), 16, 128, (4, 1, 4)),
        (opt(96, 12288, 96), 2, 36, (1, 1, 2)),  # does not fit: the most that divides
        (opt(24, 2048, 32), 3, 2, (3, 1, 1)),  # 32 heads are not divisible by 3
        (opt(48, 7168, 56), 8, None, (8, 1, 1)),
    ],
)
def test_weights_are_split_only_where_they_must_be(config, devices, gigabytes, expected):
    free = None if gigabytes is None else gigabytes * GB
    assert choose_axes(config, jnp.bfloat16, Axes(), devices, free) == expected


def test_what_is_set_is_not_chosen(config):
    assert choose_axes(config, jnp.float32, Axes(fsdp=4), 8, None) == (2, 4, 1)
    assert choose_axes(config, jnp.float32, Axes(data=2, fsdp=2, tensor=2), 8, None) == (2, 2, 2)
    assert choose_axes(config, jnp.float32, Axes(tensor=8), 8, GB) == (1, 1, 8)
    assert choose_axes(config, jnp.float32, Axes(data=2), 8, None) == (2, 1, 1)
    with pytest.raises(UserError, match="2 \\* 1 \\* 1 = 2, but there are 8 devices"):
        choose_mesh(config, jnp.float32, Axes(data=2), jax.devices()[:8])
    with pytest.raises(UserError, match=r"Axes\.fsdp is 0"):
        choose_mesh(config, jnp.float32, Axes(fsdp=0), jax.devices()[:8])
    assert dict(choose_mesh(config, jnp.float32, Axes()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
