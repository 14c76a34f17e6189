"""Trackers of experiments, to which a run logs beside TensorBoard: Weights & Biases and MLflow."""

import importlib.util
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from optiml_jax.common.errors import UserError
from optiml_jax.common.files import write_atomically

ID = "run_id"  # in MODEL_DIR/wandb or MODEL_DIR/mlflow, so that a resumed run goes on in the same curves
PROJECT = "optiml-jax"  # unless the tracker's environment variable names another one
COLUMNS = ("task", "prompt", "references", "prediction", "score")  # of the samples of a validation


class Tracker(Protocol):
    """Receives the values that a run logs."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def log_samples(self, rows: Sequence[Sequence[str]], step: int) -> None:
        """`rows`: some prompts of a validation with their answers, in `COLUMNS`."""

    def close(self) -> None: ...


class WandB:
    """Weights & Biases. Its own environment variables say where to: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline."""

    def __init__(self, model_dir: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        path = model_dir / "wandb" / ID
        if not path.exists():
            _write(path, uuid.uuid4().hex[:12])
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=model_dir.resolve().name,
                id=path.read_text(encoding="utf-8"),
                resume="allow",
                dir=str(model_dir),
                config=dict(settings),
                settings=wandb.Settings(silent=True),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"Logging.tracker: wandb cannot start ({str(error).splitlines()[0]}); run `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        # A resumed run logs the steps after its checkpoint again, which the tracker's own count of steps would drop.
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({"step": step, **values})

    def log_samples(self, rows: Sequence[Sequence[str]], step: int) -> None:
        import wandb

        table = wandb.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        self._run.log({"step": step, "validation/samples": table})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow. Its own environment variables say where to: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, model_dir: Path, settings: Mapping[str, Any]) -> None:
        import mlflow

        path = model_dir / "mlflow" / ID
        try:
            if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
                mlflow.set_experiment(PROJECT)
            if path.exists():
                mlflow.start_run(path.read_text(encoding="utf-8"))
            else:
                run = mlflow.start_run(run_name=model_dir.resolve().name)
                mlflow.log_params(dict(settings))
                _write(path, run.info.run_id)
        except mlflow.exceptions.MlflowException as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"Logging.tracker: mlflow cannot start ({reason}); check MLFLOW_TRACKING_URI, and {path}, which names "
                "the run to go on with"
            ) from error
        self._mlflow = mlflow

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step, synchronous=False)

    def log_samples(self, rows: Sequence[Sequence[str]], step: int) -> None:
        table = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
        self._mlflow.log_dict(table, f"validation/samples-{step}.json")

    def close(self) -> None:
        self._mlflow.flush_async_logging()
        self._mlflow.end_run()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {"wandb": WandB, "mlflow": MLflow}


def unavailable(name: str | None) -> str | None:
    """Why a tracker cannot be used; None if it can."""
    if name is None:
        return None
    if name not in TRACKERS:
        return f"{name!r} is unknown; use {', '.join(map(repr, TRACKERS))} or None"
    return None if importlib.util.find_spec(name) else f"{name!r} is not installed: pip install {name}"
