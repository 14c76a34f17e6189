"""Facts of training runs for Table 3, from their config.gin and metrics.jsonl."""

import math
from collections.abc import Sequence
from pathlib import Path

from optiml_jax import gin_cli
from optiml_jax.common.errors import UserError
from optiml_jax.common.metrics_log import read_metrics


def table_3(folder: str | Path, columns: Sequence[str]) -> list[list[str]]:
    """A row for each run below the folder, with the columns of Table 3.

    Raises:
      UserError: there is no run.
    """
    configurations = sorted(Path(folder).glob("**/config.gin"))
    if not configurations:
        raise UserError(f"--runs={folder}: no training run in its folders (config.gin)")
    return [[_facts(path, Path(folder))[name] for name in columns] for path in configurations]


def _facts(configuration: Path, folder: Path) -> dict[str, str]:
    settings = gin_cli.read_settings([f"--gin_file={configuration}"], "tools.paper_tables")
    optimization, data = settings["optimization"], settings["data"]
    rows = read_metrics(configuration.parent)
    steps = [row["step"] for row in rows]
    counts = [step - before for step, before in zip(steps, [0, *steps])]  # steps since the row before
    seconds = math.fsum(row["step_seconds"] * count for row, count in zip(rows, counts))
    tokens = math.fsum(row["step_seconds"] * count * row["tokens_per_second"] for row, count in zip(rows, counts))
    name = configuration.parent.relative_to(folder)
    return {
        "row": str(name) if name.parts else folder.name,
        "n_gpus": str(math.prod(settings["mesh"])),
        "batch_size": str(data.batch_rows),
        "learning_rate": f"{optimization.learning_rate:g}",
        "steps": f"{steps[-1] if steps else 0}",
        "warmup_steps": str(optimization.warmup_steps),
        "finetuning_hours": f"{seconds / 3600:.2g}",
        "n_tokens": f"{tokens / 1e9:.2g}B" if tokens >= 1e8 else f"{tokens / 1e6:.2g}M",
    }
