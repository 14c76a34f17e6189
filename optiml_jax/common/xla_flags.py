"""XLA flags for GPUs. XLA reads XLA_FLAGS when the first device is used and aborts on unknown flags: these were tested
with jax 0.10.2 and 0.11.2."""

from collections.abc import MutableMapping

FLAGS = {
    # cuBLAS is faster than its own matrix products at OPT's shapes: on an H200 a step of 1.3B takes 268 ms, not 278.
    "xla_gpu_enable_triton_gemm": "false",
}


def set_defaults(environ: MutableMapping[str, str]) -> None:
    """Adds to XLA_FLAGS what it does not name yet; call it before the first use of a device."""
    given = environ.get("XLA_FLAGS", "").split()
    named = {flag.removeprefix("--").partition("=")[0] for flag in given}
    environ["XLA_FLAGS"] = " ".join(
        [*given, *(f"--{name}={value}" for name, value in FLAGS.items() if name not in named)]
    )
