"""Checkpoints of a run: parameters, optimizer and metadata as separate items, written in the background by Orbax.

This is the only file that imports Orbax. Evaluation restores only the parameters; every restore states the target
shardings, so that a run can resume on another mesh. The metadata contain hashes of the arrays and of themselves, so
that a restore returns exactly what was saved or raises an error.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from optiml_jax.common.errors import UserError
from optiml_jax.model.fingerprint import Fingerprint, fingerprint
from optiml_jax.model.layers import Layers, split

FORMAT = 2
SAVED = jnp.float32  # dtype of parameters in a checkpoint
FULL = ("No space left on device", "Disk quota exceeded", "RESOURCE_EXHAUSTED")  # in messages about writing
DAMAGE = ("DATA_LOSS", "checksum", "CRC-32C")  # in messages of TensorStore about bytes that differ from those written


class Saveable(Protocol):
    """State that can be saved and restored: a named tuple of trees of arrays (`training.step.TrainState`)."""

    trainable: Any
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
        self._failed = False
        # Orbax logs every step of every save, warns about read-only access, and prints the exceptions of its threads,
        # which it raises here too.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if threading.excepthook is not _print_thread:
            threading.excepthook, sys.unraisablehook = _print_thread, _print_unraisable
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
        self._save(step, state.trainable, meta, optimizer=ocp.args.StandardSave(optimizer))

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
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**saved))

    def meta(self, step: int) -> dict[str, Any]:
        """Reads the metadata of a step.

        Raises:
          UserError: the checkpoint is missing, has another format, or cannot be verified.
        """
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        version = meta.get("format") if isinstance(meta, dict) else None
        if type(version) is not int:
            raise self._damaged(step, "its metadata")
        if version != FORMAT:
            raise UserError(f"{self.directory / str(step)}: checkpoint format {version}, this version reads {FORMAT}")
        if meta.pop("checksum", None) != _checksum(meta):
            raise self._damaged(step, "checksum of its metadata")
        return meta

    def restore(self, step: int, like: S) -> S:
        """Restores a step, in the shardings and dtypes of `like` (`ShapeDtypeStruct`s with shardings); what is frozen
        is not in it, and stays as in `like`.

        Raises:
          UserError: the arrays do not match their hashes.
        """
        items = self._read(
            step,
            params=ocp.args.StandardRestore(like.trainable),
            optimizer=ocp.args.StandardRestore({"optimizer": like.optimizer, "scale": like.scale}),
        )
        state = like._replace(trainable=items["params"], **items["optimizer"])
        meta = self.meta(step)
        self._check(step, "params", state.trainable, meta)
        self._check(step, "optimizer", (state.optimizer, state.scale), meta)
        return state

    def restore_params(self, step: int, like: dict, separate: bool = False) -> dict:
        """Restores only the parameters, cast to the dtypes of `like`; arguments and errors as in `restore`.

        One array after another, so that at most one is in memory in the float32 of the checkpoint.

        Args:
          separate: whether the blocks get one array per layer (`model.layers`) instead of stacked ones.
        """
        total = Fingerprint()

        def read(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array | Layers:
            array = self._read_array(step, path, jax.ShapeDtypeStruct(leaf.shape, SAVED, sharding=leaf.sharding), like)
            total.add(path, array)
            return split(array, leaf.dtype) if separate and path[0].key == "blocks" else array.astype(leaf.dtype)

        params = jax.tree_util.tree_map_with_path(read, like)
        if str(total) != self.meta(step)["params"]:
            raise self._damaged(step, "checksum of its params")
        return params

    def _read_array(self, step: int, path: tuple, leaf: jax.ShapeDtypeStruct, like: dict) -> jax.Array:
        tree: Any = leaf
        for key in reversed(path):
            tree = {key.key: tree}
        arguments = ocp.args.PyTreeRestore(
            tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
        )
        items = {"params": ocp.args.StandardRestore(like)}
        with self._explained(step, items), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return jax.tree.leaves(checkpointer.restore(self.directory / str(step) / "params", args=arguments))[0]

    def _read(self, step: int, **items: Any) -> Any:
        with self._explained(step, items):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def _explained(self, step: int, items: dict[str, Any]) -> Iterator[None]:
        """Turns the errors of reading these items into a `UserError` that says why."""
        try:
            yield
        except (MemoryError, jax.errors.JaxRuntimeError):  # out of memory or a failing device: the files may be intact
            raise
        except Exception as error:  # a damaged or missing file raises many kinds of exceptions
            raise self._unreadable(step, items, error) from error

    def _unreadable(self, step: int, items: dict[str, Any], error: Exception) -> UserError:
        """Says why a step cannot be read. Deleting it is advised only if a checksum proves damage."""
        folder = self.directory / str(step)
        if denied := next((path for path in sorted(folder.rglob("*")) if not os.access(path, os.R_OK)), None):
            return UserError(f"{denied}: no permission to read it; the checkpoint may be intact")
        if (problem := self._other_structure(step, items)) is not None:
            return UserError(
                f"{folder}: {problem}; resume it with the version and settings that wrote it, or move this step's "
                "folder away to resume from the previous one"
            )
        if any(proof in str(error) for proof in DAMAGE):
            return self._damaged(step, type(error).__name__)
        if items.keys() == {"meta"} and isinstance(error, ValueError | RecursionError):  # not JSON
            return self._damaged(step, "its metadata")
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"
        version = f"orbax-checkpoint {importlib.metadata.version('orbax-checkpoint')}"
        return UserError(f"{folder}: {version} cannot read it ({reason}); nothing was changed, and it may be intact")

    def _other_structure(self, step: int, items: dict[str, Any]) -> str | None:
        """How the arrays of a step differ from those that are expected; None if they do not, or are unknown."""
        for name, expected in items.items():
            if not isinstance(expected, ocp.args.StandardRestore):
                continue
            try:
                saved = _saved_shapes(self.directory / str(step) / name)
            except Exception:  # Orbax cannot read the tree either, so the original error is reported
                return None
            needed = {_path(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(expected.item)}
            for path in sorted(saved.keys() | needed.keys()):
                if saved.get(path) != needed.get(path):
                    has, needs = (str(list(shapes[path])) if path in shapes else "none" for shapes in (saved, needed))
                    return f"its {name} has {path} {has}, where {needs} is expected"
        return None

    def _check(self, step: int, item: str, tree: Any, meta: dict[str, Any]) -> None:
        if fingerprint(tree) != meta[item]:
            raise self._damaged(step, f"checksum of its {item}")

    def _damaged(self, step: int, what: str) -> UserError:
        return UserError(
            f"{self.directory / str(step)}: checkpoint is damaged ({what}); delete this step's folder to resume from "
            "the previous one"
        )

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          UserError: the disk is full.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written, and ends Orbax's threads."""
        if self._failed:  # it would raise the same error again
            with contextlib.suppress(Exception):
                self._manager.close()
            return
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns the errors of a full disk into a `UserError`. Earlier checkpoints are as they were."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of a device, whose memory can be exhausted too
            self._failed = True
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds for a write that fails
            self._failed = True
            if not any(sign in str(error) for sign in FULL):
                raise
            saved = self.latest
            intact = "there is no earlier one" if saved is None else f"that of step {saved} is intact"
            raise UserError(
                f"{self.directory}: a checkpoint cannot be written, because the disk is full ({intact}); make room, "
                "then run the same command again"
            ) from error


_usual_print_thread, _usual_print_unraisable = threading.excepthook, sys.unraisablehook


def _print_thread(raised: threading.ExceptHookArgs) -> None:
    """Prints the exceptions of threads other than Orbax's."""
    if not type(raised.thread).__module__.startswith("orbax"):
        _usual_print_thread(raised)


def _print_unraisable(raised: Any) -> None:
    """Prints exceptions other than those of TensorStore, which reports writes that fail after the first one to an event
    loop that has ended."""
    if not (raised.exc_type is RuntimeError and str(raised.exc_value) == "Event loop is closed"):
        _usual_print_unraisable(raised)


def _saved_shapes(item: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays in the folder of an item, by their paths."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about a file that only single-item checkpoints have
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(item)
    finally:
        logger.setLevel(level)
    tree = getattr(metadata, "item_metadata", metadata)
    leaves = jax.tree.leaves_with_path(getattr(tree, "tree", tree))
    return {_path(path): tuple(leaf.shape) for path, leaf in leaves}


def _path(path: tuple) -> str:
    """A path in a tree, equal for attributes, keys and indices of the same name."""
    return "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)


def _checksum(meta: dict[str, Any]) -> str:
    """Hash of metadata after a round trip through JSON."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(meta)), sort_keys=True).encode()).hexdigest()


def with_shardings(tree: Any, shardings: Any) -> Any:
    """`ShapeDtypeStruct`s of `tree` with the given shardings."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, shardings)
