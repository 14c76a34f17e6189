"""Model FLOP/s utilisation, with the formula beside the number."""

import jax

# Dense bf16/fp16 FLOP/s of one device, from the makers' data sheets; by a part of `device_kind`.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
FORMULA = "6 * parameters * real_tokens / (step_seconds * devices * peak FLOP/s)"


def peak_flops(override: float | None = None) -> float | None:
    """Peak of one of this process's devices; None where it is not known (CPU)."""
    if override is not None:
        return override
    kind = jax.local_devices()[0].device_kind
    return next((peak for name, peak in PEAK_FLOPS.items() if name.lower() in kind.lower()), None)


def mfu(parameters: int, real_tokens: int, seconds: float, devices: int, peak: float | None) -> float | None:
    """By `FORMULA`: attention, recomputation and padding do not count; None without a peak."""
    return None if peak is None else 6 * parameters * real_tokens / (seconds * devices * peak)
