"""Reads the model of a training run from its MODEL_DIR."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from optiml_jax.checkpoints.orbax import Checkpoints, with_shardings
from optiml_jax.common.errors import UserError
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig

INIT_WEIGHTS = "train.init_weights"  # the setting in a checkpoint's metadata that names the weights of step 0


def is_run(directory: str | os.PathLike) -> bool:
    """Whether `directory` is the MODEL_DIR of a training run."""
    return (Path(directory) / "checkpoints").is_dir()


def read_run_config(directory: str | os.PathLike, step: int | None = None) -> tuple[OPTConfig, dict[str, Any]]:
    """Reads configuration and metadata of a run's checkpoint; arguments and errors as in `read_run`."""
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        number = checkpoints.latest if step is None else step
        if number is None:
            raise UserError(f"{directory}/checkpoints holds no complete checkpoint; train first")
        meta = checkpoints.meta(number)
    return _config(meta["model"], directory), meta


def _config(fields: dict[str, Any], directory: str | os.PathLike) -> OPTConfig:
    """The architecture of a run; a field that its version did not have has its default."""
    field_names = {field.name for field in dataclasses.fields(OPTConfig)}
    if unknown := sorted(fields.keys() - field_names):
        raise UserError(
            f"{directory}: its model has {unknown[0]} = {fields[unknown[0]]}, which this version does not have; read "
            "it with the version that wrote it"
        )
    return OPTConfig(**fields)


def read_run(
    directory: str | os.PathLike,
    mesh: Mesh,
    step: int | None = None,
    dtype: jnp.dtype = jnp.float32,
    separate: bool = False,
) -> tuple[OPTConfig, dict, dict[str, Any]]:
    """Reads configuration, parameters (on `mesh`, in `dtype`) and metadata of a run's checkpoint; None: of its latest.

    Args:
      separate: as in `Checkpoints.restore_params`.

    Raises:
      UserError: there is no checkpoint of that step, or it cannot be verified.
    """
    config, meta = read_run_config(directory, step)
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        sharding.check_divides(config, mesh)
        abstract = decoder.abstract_params(config, dtype)
        params = checkpoints.restore_params(
            meta["step"], with_shardings(abstract, sharding.parameter_shardings(abstract, mesh)), separate
        )
    return config, params, meta
