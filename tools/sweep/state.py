"""Whether a run of a sweep is finished with its present settings, and what it has reached."""

import inspect
import tempfile
from pathlib import Path
from typing import Any

from optiml_jax import gin_cli
from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError
from optiml_jax.common.metrics_log import read_metrics
from tools.sweep.members import Member

RESULTS, EVALUATION = "results.json", "evaluation.json"


def settings(member: Member) -> dict[str, Any]:
    """The settings of a run, with those of its evaluation.

    Raises:
      UserError: a gin file or an override is wrong, or the run would not be evaluated.
    """
    complete = _complete(gin_cli.read_settings(member.arguments, f"optiml_jax.{member.command}", member.command))
    if member.command == "train" and not complete["evaluate_after"]:
        raise UserError(f"{member.name}: is not evaluated after training; add train.evaluate_after = @evaluate")
    return complete


def _complete(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `train` or `evaluate` as data, with the defaults of those that are not bound."""
    arguments = dict(arguments)
    if callable(evaluate := arguments.get("evaluate_after")):
        arguments["evaluate_after"] = _with_defaults("evaluate", evaluate())
    if "optimization" in arguments:
        return _with_defaults("train", arguments)
    return _with_defaults("evaluate", arguments)


def _with_defaults(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(gin_cli.CONFIGURABLES[command]).parameters
    passed = set(gin_cli.NOT_BOUND[command]) | {"trained_on"}  # by the caller
    defaults = {name: parameter.default for name, parameter in parameters.items() if name not in passed}
    return defaults | {name: value for name, value in arguments.items() if name not in passed}


def results_file(member: Member) -> Path | None:
    """The results.json of a run; None if it has none."""
    if member.command == "evaluate":
        files = [member.folder / RESULTS]
    else:
        files = sorted(member.folder.glob(f"evaluation/*/{RESULTS}"))
    return next((file for file in files if file.exists()), None)


def finished(member: Member, current: dict[str, Any]) -> bool:
    """Whether a run has results that it computed with these settings, after its last step.

    Settings are those that the evaluation recorded, so that a run which is extended is unfinished until its last step.
    """
    results = results_file(member)
    if results is None or not (recorded := results.with_name(EVALUATION)).exists():
        return False
    if results.stat().st_mtime_ns < recorded.stat().st_mtime_ns:  # stopped between the two files
        return False
    try:
        text = typed_json.loads(recorded.read_text(encoding="utf-8"))["context"]["provenance"]["configuration"]
        return _recorded(text, member.command) == current and not _newer_weights(member, current, results)
    except (ValueError, KeyError, UserError):  # of another version
        return False


def _newer_weights(member: Member, current: dict[str, Any], results: Path) -> bool:
    """Whether the model was trained further after it was evaluated."""
    if member.command == "train":
        return False
    files = Path(current["weights"], "checkpoints").glob("*")
    return any(file.stat().st_mtime_ns > results.stat().st_mtime_ns for file in files)


def _recorded(text: str, command: str) -> dict[str, Any]:
    """The settings in a recorded configuration."""
    with tempfile.NamedTemporaryFile("w", suffix=".gin", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return _complete(gin_cli.read_settings([f"--gin_file={file.name}"], f"optiml_jax.{command}", command))


def last_step(member: Member) -> dict[str, Any] | None:
    """The last row of the training log; None before the first."""
    rows = read_metrics(member.folder)
    return rows[-1] if rows else None
