"""Model FLOP/s utilization (MFU), reported with its formula."""

import jax

from optiml_jax.common.cards import card_of

FORMULA = "6 * parameters * real_tokens / (step_seconds * devices * peak FLOP/s)"
FORMULA_FROZEN = "(4 * parameters + 2 * trained) * real_tokens / (step_seconds * devices * peak FLOP/s)"


def peak_flops(override: float | None = None) -> float | None:
    """Peak bf16 FLOP/s of one of this process's devices; None if unknown (CPU)."""
    if override is not None:
        return override
    card = card_of(jax.local_devices()[0].device_kind)
    return card and card.flops


def mfu(
    parameters: int, real_tokens: int, seconds: float, devices: int, peak: float | None, trained: int | None = None
) -> float | None:
    """MFU by `FORMULA`, which excludes attention, recomputation and padding; None without a peak.

    Args:
      trained: number of parameters that are trained, if it is not all of them: the gradients of the others are not
        computed (`FORMULA_FROZEN`).
    """
    trained = parameters if trained is None else trained
    return None if peak is None else (4 * parameters + 2 * trained) * real_tokens / (seconds * devices * peak)
