"""Instruction-tunes OPT: python -m optiml_jax.train --gin_file=tiny.gin --gin.MODEL_DIR="'runs/tiny'".

Builds the token store if it is missing, trains, writes checkpoints and metrics to MODEL_DIR, and evaluates at the end
if the gin file says so. Run again with the same MODEL_DIR, it resumes. See `training/run.py`.
"""

from optiml_jax.common import host_memory


def main() -> None:
    """Runs the command in this process."""
    from optiml_jax import gin_cli  # here, because the import takes seconds, which a restart would repeat

    gin_cli.main("train")


def command() -> None:
    """The command, also installed as `optiml-train`."""
    host_memory.restart_with_settings()
    main()


if __name__ == "__main__":
    command()
