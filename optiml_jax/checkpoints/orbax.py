"""Checkpoints of a run: parameters, optimizer and metadata as separate items, written in the background by Orbax.

This is the only file that imports Orbax. Evaluation restores only the parameters; every restore states the target
shardings, so that a run can resume on another mesh. The metadata contain hashes of the arrays and of themselves, so
that a restore returns exactly what was saved or raises an error.
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import orbax.checkpoint as ocp

from optiml_jax.common.errors import UserError
from optiml_jax.model.fingerprint import fingerprint

FORMAT = 2


class Saveable(Protocol):
    """State that can be saved and restored: a named tuple of trees of arrays (`training.step.TrainState`)."""

    params: Any
    optimizer: Any
    scale: Any


S = TypeVar("S", bound=Saveable)


class Checkpoints:
    """The `checkpoints/` folder of a MODEL_DIR; a step is the number of batches seen.

    Args:
      keep: number of newest checkpoints to keep; None opens the folder read-only, even while a run writes to it.
    """

    def __init__(self, model_dir: str | os.PathLike, keep: int | None = None) -> None:
        self.directory = Path(model_dir).absolute() / "checkpoints"
        read_only = keep is None
        # Orbax logs every step of every save, and warns about read-only access.
        logging.getLogger("absl").setLevel(logging.ERROR if read_only else logging.WARNING)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=not read_only, create=not read_only, read_only=read_only
        )
        self._manager = ocp.CheckpointManager(
            self.directory, item_names=("params", "optimizer", "meta"), options=options
        )

    @property
    def latest(self) -> int | None:
        """The last complete step, or None. A checkpoint whose writing was interrupted does not count."""
        return self._manager.latest_step()

    def save(self, step: int, state: Saveable, meta: dict[str, Any]) -> None:
        """Starts saving. Returns once the values are copied, so that the state may be donated afterwards."""
        optimizer = {"optimizer": state.optimizer, "scale": state.scale}
        meta = meta | {"optimizer": fingerprint((state.optimizer, state.scale))}
        self._save(step, state.params, meta, optimizer=ocp.args.StandardSave(optimizer))

    def save_weights(self, step: int, params: Any, meta: dict[str, Any]) -> None:
        """Starts saving only parameters, for loading and initialization; a run cannot resume from them."""
        self._save(step, params, meta)

    def delete_after(self, step: int) -> None:
        """Deletes checkpoints of later steps."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def _save(self, step: int, params: Any, meta: dict[str, Any], **items: Any) -> None:
        meta = meta | {"format": FORMAT, "step": step, "params": fingerprint(params)}
        meta |= {"checksum": _checksum(meta)}
        saved = {"params": ocp.args.StandardSave(params), **items, "meta": ocp.args.JsonSave(meta)}
        self._manager.save(step, args=ocp.args.Composite(**saved))

    def meta(self, step: int) -> dict[str, Any]:
        """Reads the metadata of a step.

        Raises:
          UserError: the checkpoint is missing, has another format, or cannot be verified.
        """
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            version = meta.get("format") if isinstance(meta, dict) else "unknown"
            raise UserError(f"{self.directory / str(step)}: checkpoint format {version}, this version reads {FORMAT}")
        if meta.pop("checksum", None) != _checksum(meta):
            raise self._damaged(step, "metadata")
        return meta

    def restore(self, step: int, like: S) -> S:
        """Restores a step, in the shardings and dtypes of `like` (`ShapeDtypeStruct`s with shardings).

        Raises:
          UserError: the arrays do not match their hashes.
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
        """Restores only the parameters; arguments and errors as in `restore`."""
        params = self._read(step, params=ocp.args.StandardRestore(like))["params"]
        self._check(step, "params", params, self.meta(step))
        return params

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (MemoryError, jax.errors.JaxRuntimeError):  # out of memory or a failing device: the files may be intact
            raise
        except Exception as error:  # a damaged or missing file raises many kinds of exceptions
            raise self._damaged(step, type(error).__name__) from error

    def _check(self, step: int, item: str, tree: Any, meta: dict[str, Any]) -> None:
        if fingerprint(tree) != meta[item]:
            raise self._damaged(step, item)

    def _damaged(self, step: int, what: str) -> UserError:
        return UserError(
            f"{self.directory / str(step)}: checkpoint could not be verified ({what}); if its files are damaged, "
            "delete this step's folder to resume from the previous one"
        )

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _checksum(meta: dict[str, Any]) -> str:
    """Hash of metadata after a round trip through JSON."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(meta)), sort_keys=True).encode()).hexdigest()


def with_shardings(tree: Any, shardings: Any) -> Any:
    """`ShapeDtypeStruct`s of `tree` with the given shardings."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, shardings)
