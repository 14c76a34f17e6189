"""Checkpoints of a run: parameters, optimizer and metadata as separate items, written in the background by Orbax.

This is the only file that knows Orbax. Evaluation restores the parameters alone; every restore states the target
shardings, so a run may go on with another mesh. The metadata hold hashes of the arrays and of themselves: what is read
is what was written, to the bit, or an error.
"""

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from optiml_jax.common.errors import UserError
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.fingerprint import fingerprint

FORMAT = 2


class State(Protocol):
    """What is saved and restored: a named tuple of trees of arrays, `training.step.TrainState`."""

    params: Any
    optimizer: Any
    scale: Any


S = TypeVar("S", bound=State)


class Checkpoints:
    """The `checkpoints/` folder of a MODEL_DIR; a step is the number of batches seen.

    Args:
      keep: newest ones kept; None opens the folder to read, of a run that may be going on: nothing in it is touched,
        not even what is being written.
    """

    def __init__(self, model_dir: str | os.PathLike, keep: int | None = None) -> None:
        self.directory = Path(model_dir).absolute() / "checkpoints"
        read_only = keep is None
        # Orbax narrates every step of every save, and warns that what is opened to read is.
        logging.getLogger("absl").setLevel(logging.ERROR if read_only else logging.WARNING)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=not read_only, create=not read_only, read_only=read_only
        )
        self._manager = ocp.CheckpointManager(
            self.directory, item_names=("params", "optimizer", "meta"), options=options
        )

    @property
    def latest(self) -> int | None:
        """The last complete step; one that was interrupted while it was written does not count."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, meta: dict[str, Any]) -> None:
        """Starts writing; returns once the values are copied, so the state may be donated afterwards."""
        optimizer = {"optimizer": state.optimizer, "scale": state.scale}
        meta = meta | {"optimizer": fingerprint((state.optimizer, state.scale))}
        self._save(step, state.params, meta, optimizer=ocp.args.StandardSave(optimizer))

    def save_weights(self, step: int, params: Any, meta: dict[str, Any]) -> None:
        """Starts writing parameters alone: to load and to start from, not to go on from."""
        self._save(step, params, meta)

    def forget_after(self, step: int) -> None:
        """Removes checkpoints of later steps."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def _save(self, step: int, params: Any, meta: dict[str, Any], **items: Any) -> None:
        meta = meta | {"format": FORMAT, "step": step, "params": fingerprint(params)}
        meta |= {"checksum": _checksum(meta)}
        saved = {"params": ocp.args.StandardSave(params), **items, "meta": ocp.args.JsonSave(meta)}
        self._manager.save(step, args=ocp.args.Composite(**saved))

    def meta(self, step: int) -> dict[str, Any]:
        """The metadata of a step.

        Raises:
          UserError: the checkpoint has another format, is not there, or is not what was written.
        """
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            found = meta.get("format") if isinstance(meta, dict) else "unknown"
            raise UserError(f"{self.directory / str(step)}: checkpoint format {found}, this version reads {FORMAT}")
        if meta.pop("checksum", None) != _checksum(meta):
            raise self._damaged(step, "metadata")
        return meta

    def restore(self, step: int, like: S) -> S:
        """The state of a step, in the shardings and dtypes of `like` (`ShapeDtypeStruct`s with shardings).

        Raises:
          UserError: the arrays are not those that were written.
        """
        items = self._read(
            step,
            params=ocp.args.StandardRestore(like.params),
            optimizer=ocp.args.StandardRestore({"optimizer": like.optimizer, "scale": like.scale}),
        )
        state = like._replace(params=items["params"], **items["optimizer"])
        meta = self.meta(step)
        self._check(step, "params", state.params, meta)
        self._check(step, "optimizer", (state.optimizer, state.scale), meta)
        return state

    def restore_params(self, step: int, like: dict) -> dict:
        """The parameters alone; arguments and errors as in `restore`."""
        params = self._read(step, params=ocp.args.StandardRestore(like))["params"]
        self._check(step, "params", params, self.meta(step))
        return params

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (MemoryError, jax.errors.JaxRuntimeError):  # no room, or a failing device: the files may be sound
            raise
        except Exception as error:  # what a damaged or missing file raises depends on where in it the damage is
            raise self._damaged(step, type(error).__name__) from error

    def _check(self, step: int, item: str, tree: Any, meta: dict[str, Any]) -> None:
        if fingerprint(tree) != meta[item]:
            raise self._damaged(step, item)

    def _damaged(self, step: int, what: str) -> UserError:
        return UserError(
            f"{self.directory / str(step)}: not as it was written, or removed meanwhile ({what}); remove the folder to "
            "go on from the checkpoint before it"
        )

    def wait(self) -> None:
        """Until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def is_run(directory: str | os.PathLike) -> bool:
    """Whether it is a MODEL_DIR of ours."""
    return (Path(directory) / "checkpoints").is_dir()


def read_run_config(directory: str | os.PathLike, step: int | None = None) -> tuple[OPTConfig, dict[str, Any]]:
    """Configuration and metadata of a run's checkpoint; arguments and errors as in `read_run`."""
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        number = checkpoints.latest if step is None else step
        if number is None:
            raise UserError(f"{directory}/checkpoints holds no complete checkpoint; train first")
        meta = checkpoints.meta(number)
    return OPTConfig(**meta["model"]), meta


def read_run(
    directory: str | os.PathLike, mesh: Mesh, step: int | None = None
) -> tuple[OPTConfig, dict, dict[str, Any]]:
    """Configuration, parameters (on `mesh`) and metadata of a run's checkpoint; None: of its latest.

    Raises:
      UserError: there is none of that step, or it is not as it was written.
    """
    config, meta = read_run_config(directory, step)
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        sharding.check_divides(config, mesh)
        abstract = decoder.abstract_params(config)
        params = checkpoints.restore_params(
            meta["step"], with_shardings(abstract, sharding.parameter_shardings(abstract, mesh))
        )
    return config, params, meta


def _checksum(meta: dict[str, Any]) -> str:
    """Of metadata as JSON gives them back."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(meta)), sort_keys=True).encode()).hexdigest()


def with_shardings(tree: Any, shardings: Any) -> Any:
    """`ShapeDtypeStruct`s that say where each array shall lie."""
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings)
