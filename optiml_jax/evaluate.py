"""Evaluates a model: python -m optiml_jax.evaluate --gin_file=evaluate.gin --gin.WEIGHTS="'runs/tiny'" ...

Writes `results.json`, `samples.jsonl`, `report.md`, `report.html` and `chain.txt` to OUTPUT_DIR; run again, it resumes.
See `evaluation/run.py`.
"""

from optiml_jax import gin_cli


def main() -> None:
    """The command, also installed as `optiml-evaluate`."""
    gin_cli.main("evaluate")


if __name__ == "__main__":
    main()
