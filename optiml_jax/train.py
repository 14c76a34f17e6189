"""Instruction-tunes OPT: python -m optiml_jax.train --gin_file=tiny.gin --gin.MODEL_DIR="'runs/tiny'".

Builds the token store if it is missing, trains, writes checkpoints and metrics to MODEL_DIR, and evaluates at the end
if the gin file says so. Run again with the same MODEL_DIR, it resumes. See `training/run.py`.
"""

from optiml_jax import gin_cli


def main() -> None:
    """The command, also installed as `optiml-train`."""
    gin_cli.main("train")


if __name__ == "__main__":
    main()
