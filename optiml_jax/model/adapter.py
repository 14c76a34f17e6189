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
from optiml_jax.model import int8

TARGETS = ("query", "key", "value", "out", "up", "down")  # the matrices of a block
NAMES = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class Lora:
    """The shape of adapters.

    Attributes:
      rank: R, width of the product.
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


def merge(params: dict, adapter: Lora | None) -> dict:
    """The parameters of the base model: the adapters' products are added to the kernels, and int8 kernels become float
    ones."""
    return params | {"blocks": {name: merge_matrix(part, adapter) for name, part in params["blocks"].items()}}


def merge_matrix(part: dict, adapter: Lora | None, dtype: jnp.dtype | None = None) -> dict:
    """Adds the adapter of one matrix to its kernel; the arrays are stacked over layers (N). A part without adapter and
    integers stays as it is.

    Args:
      dtype: of the sum; None: that of the kernel, and float32 for integers.
    """
    if not part.keys() & {NAMES[0], int8.SCALE}:
        return part
    kernel = int8.float_kernel(part)
    if adapter is not None and NAMES[0] in part:
        a, b = (part[name].astype(jnp.float32) for name in NAMES)
        layers, rank = a.shape[0], a.shape[-1]
        rows, columns = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
        product = jnp.einsum("nir,nro->nio", rows, columns, precision=jax.lax.Precision.HIGHEST)
        kernel += adapter.scale * product.reshape(kernel.shape)
    if dtype is None:
        dtype = jnp.float32 if int8.SCALE in part else part["kernel"].dtype
    rest = {name: leaf for name, leaf in part.items() if name not in (*NAMES, int8.SCALE)}
    return rest | {"kernel": kernel.astype(dtype)}
