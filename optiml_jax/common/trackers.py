"""Trackers of experiments, to which a run logs beside TensorBoard: Weights & Biases."""

import importlib.util
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from optiml_jax.common.errors import UserError
from optiml_jax.common.files import write_atomically

ID = "run_id"  # in MODEL_DIR/wandb, so that a resumed run goes on in the same curves


class Tracker(Protocol):
    """Receives the values that a run logs."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class WandB:
    """Weights & Biases. Its own environment variables say where to: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline."""

    def __init__(self, model_dir: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        path = model_dir / "wandb" / ID
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, uuid.uuid4().hex[:12])
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "optiml-jax"),
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

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {"wandb": WandB}


def unavailable(name: str | None) -> str | None:
    """Why a tracker cannot be used; None if it can."""
    if name is None:
        return None
    if name not in TRACKERS:
        return f"{name!r} is unknown; use {', '.join(map(repr, TRACKERS))} or None"
    return None if importlib.util.find_spec(name) else f"{name!r} is not installed: pip install {name}"
