"""Sound files of every kind that the project writes: a cache, a run, an evaluation, an export, sweep results."""

import shutil
from pathlib import Path

from tests.commands import run_all
from tests.test_train import SMALL, command, environment

CACHE, RUN, EVALUATION, EXPORT = "cache", "run", "evaluation", "export"
STEPS = 4


def build(directory: Path) -> Path:
    """Writes the files below `directory`, in half a minute."""
    cache, run = directory / CACHE, directory / RUN
    settings = SMALL | {"CACHE_DIR": str(cache), "MODEL_DIR": str(run), "TRAIN_STEPS": STEPS, "OPTConfig.layers": 1}
    settings |= {"VALIDATE_EVERY": 2, "VALIDATION_LIMIT": 1}
    commands = [
        ("optiml_jax.train", command("train", settings)[3:]),
        ("optiml_jax.evaluate", evaluation(directory, directory / EVALUATION)),
        ("tools.convert_weights", [f"--source={run}", f"--target={directory / EXPORT}", "--to=hf"]),
    ]
    for (module, words), (code, error) in zip(commands, run_all(commands, environment())):
        assert code == 0, (module, words, error[-2000:])
    return directory


def training(material: Path, model_dir: Path | None = None, **changes) -> list[str]:
    """The words of the command that trains, or goes on with, the run of `material`."""
    settings = SMALL | {"CACHE_DIR": str(material / CACHE), "MODEL_DIR": str(model_dir or material / RUN)}
    settings |= {"TRAIN_STEPS": STEPS, "OPTConfig.layers": 1, "VALIDATE_EVERY": 2, "VALIDATION_LIMIT": 1}
    return command("train", settings | changes)[3:]


def evaluation(material: Path, output: Path | None = None, **changes) -> list[str]:
    """The words of the command that evaluates the run of `material`."""
    settings = {
        "WEIGHTS": str(material / RUN),
        "LEDGER": str(material / CACHE / "ledgers" / "samples.jsonl"),
        "OUTPUT_DIR": str(output or material / EVALUATION),
        "MAX_NEW_TOKENS": 4,
        "LIMIT": 1,
        "SHOTS": 0,
    }
    return command("evaluate", settings | changes, gin_file="evaluate.gin")[3:]


def copied(material: Path, target: Path, *parts: str) -> Path:
    """A copy of parts of the material, to be damaged."""
    for part in parts:
        shutil.copytree(material / part, target / part)
    return target
