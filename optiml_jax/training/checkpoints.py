"""Checkpoints of a run: parameters, optimizer and metadata as separate items, written in the background by Orbax.

This is the only file that knows Orbax. Evaluation restores the parameters alone; every restore states the target
shardings, so a run may go on with another mesh.
"""

import logging
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from optiml_jax.errors import UserError
from optiml_jax.training.step import TrainState

FORMAT = 1
MAY_DIFFER = ("Optimization.train_steps",)  # a larger TRAIN_STEPS extends a run; mesh, paths and logging are not listed


class Checkpoints:
    """The `checkpoints/` folder of a MODEL_DIR; a step is the number of batches seen."""

    def __init__(self, model_dir: str | os.PathLike, keep: int = 2) -> None:
        self.directory = Path(model_dir).absolute() / "checkpoints"
        logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax narrates every step of every save
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(
            self.directory, item_names=("params", "optimizer", "meta"), options=options
        )

    @property
    def latest(self) -> int | None:
        """The last complete step; one that was interrupted while it was written does not count."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts writing; returns once the values are copied, so the state may be donated afterwards."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave({"optimizer": state.optimizer, "scale": state.scale}),
                meta=ocp.args.JsonSave(meta | {"format": FORMAT, "step": step}),
            ),
        )

    def meta(self, step: int) -> dict[str, Any]:
        """The metadata of a step.

        Raises:
          UserError: the checkpoint has another format.
        """
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if meta.get("format") != FORMAT:
            raise UserError(
                f"{self.directory / str(step)}: checkpoint format {meta.get('format')}, this version reads {FORMAT}"
            )
        return meta

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, in the shardings and dtypes of `like` (`ShapeDtypeStruct`s with shardings)."""
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(like.params),
                optimizer=ocp.args.StandardRestore({"optimizer": like.optimizer, "scale": like.scale}),
            ),
        )
        return TrainState(items["params"], items["optimizer"]["optimizer"], items["optimizer"]["scale"])

    def restore_params(self, step: int, like: dict) -> dict:
        """The parameters alone."""
        return self._manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(like)))["params"]

    def wait(self) -> None:
        """Until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def with_shardings(tree: Any, shardings: Any) -> Any:
    """`ShapeDtypeStruct`s that say where each array shall lie."""
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings)


def check_same_run(saved: dict[str, Any], settings: dict[str, Any], directory: Path) -> None:
    """Refuses to go on with other settings than those of the checkpoint, by name.

    Args:
      saved, settings: flat dicts of JSON values, keys such as "OPTConfig.layers".

    Raises:
      UserError: names the setting and both values.
    """
    for name in sorted(saved.keys() | settings.keys()):
        if name not in MAY_DIFFER and saved.get(name) != settings.get(name):
            raise UserError(
                f"{directory}: this run was started with {name} = {saved.get(name)}, now it is {settings.get(name)}; "
                "set it back, or choose another MODEL_DIR"
            )
