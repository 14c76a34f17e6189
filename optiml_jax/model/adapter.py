"""Low-rank adapters of a block's matrices (Hu et al. 2021): x W + scale (x A) B, of which W stays as it is.

A is `lora_a`, [*in, R], and B is `lora_b`, [R, *out], beside the kernel that they adapt. B starts at zero, so that an
adapter changes nothing before its first update.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from optiml_jax.common.errors import UserError, check_known
from optiml_jax.common.settings import check_fields

TARGETS = ("query", "key", "value", "out", "up", "down")  # the matrices of a block
NAMES = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class Lora:
    """The shape of adapters.

    Attributes:
      rank: R.
      alpha: the adapter's product is scaled by alpha / rank.
      dropout: rate on the input of A, in training only.
      targets: names of the matrices that have an adapter.
      rank_stabilized: scales by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski 2023).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Sequence[str] = TARGETS
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        check_fields(self, dropout=(0.0, 1.0 - 1e-9))
        object.__setattr__(self, "targets", tuple(self.targets))
        for name in self.targets:
            check_known("matrix of Lora.targets", name, TARGETS)
        if not self.targets:
            raise UserError(f"Lora.targets is empty; name some of {', '.join(TARGETS)}")

    @property
    def scale(self) -> float:
        """The factor of the adapter's product."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def merge(params: dict, adapter: Lora) -> dict:
    """The parameters without adapters, whose products are added to the kernels, in float32."""
    blocks = {name: part if NAMES[0] not in part else _merge(part, adapter) for name, part in params["blocks"].items()}
    return params | {"blocks": blocks}


def _merge(part: dict, adapter: Lora) -> dict:
    """Adds the adapter of one matrix to its kernel; the arrays are stacked over layers (N)."""
    kernel, a, b = (part[name].astype(jnp.float32) for name in ("kernel", *NAMES))
    layers, rank = a.shape[0], a.shape[-1]
    rows, columns = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
    product = jnp.einsum("nir,nro->nio", rows, columns, precision=jax.lax.Precision.HIGHEST)
    merged = (kernel + adapter.scale * product.reshape(kernel.shape)).astype(part["kernel"].dtype)
    return {name: leaf for name, leaf in part.items() if name not in NAMES} | {"kernel": merged}
