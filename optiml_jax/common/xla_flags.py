"""XLA flags and memory of GPUs. XLA reads XLA_FLAGS when the first device is used and aborts on unknown flags: these
were tested with jax 0.10.2 and 0.11.2."""

from collections.abc import MutableMapping

FLAGS = {
    # cuBLAS is faster than its own matrix products at OPT's shapes: on an H200 a step of 1.3B takes 268 ms, not 278.
    "xla_gpu_enable_triton_gemm": "false",
    # Starts collectives early and waits for them late. XLA by itself does so on some GPUs only: of the bytes that 30B
    # on 64 A100s gathers, 2% are sent while kernels run, and with this flag all.
    "xla_gpu_enable_latency_hiding_scheduler": "true",
}
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
MEMORY_FRACTION = "0.9"  # of a GPU, as plans assume (`cards.Card.limit_bytes`); JAX by itself takes 0.75


def set_defaults(environ: MutableMapping[str, str]) -> None:
    """Adds to XLA_FLAGS what it does not name yet, and sets the share of the memory; call it before the first use of a
    device."""
    environ.setdefault(MEMORY, MEMORY_FRACTION)
    given = environ.get("XLA_FLAGS", "").split()
    named = {flag.removeprefix("--").partition("=")[0] for flag in given}
    environ["XLA_FLAGS"] = " ".join(
        [*given, *(f"--{name}={value}" for name, value in FLAGS.items() if name not in named)]
    )
