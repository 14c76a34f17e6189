"""Reads the model of a training run from its MODEL_DIR."""

import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from optiml_jax import weights
from optiml_jax.checkpoints.orbax import Checkpoints, with_shardings
from optiml_jax.common.errors import UserError
from optiml_jax.model import adapter, decoder, int8, layers, sharding, trainable
from optiml_jax.model.adapter import Lora
from optiml_jax.model.config import OPTConfig

# Settings in a checkpoint's metadata: the weights of step 0, their content, and what was trained.
INIT_WEIGHTS, INIT_CONTENT = "train.init_weights", "content of train.init_weights"
TRAINABLE = "Optimization.trainable"
WEIGHT_FILES = ("config.json", weights.peft.CONFIG, "*.safetensors", "*.bin", "*.pt")
MEGABYTE = 1 << 20


def is_run(directory: str | os.PathLike) -> bool:
    """Whether `directory` is the MODEL_DIR of a training run."""
    return (Path(directory) / "checkpoints").is_dir()


def read_run_config(directory: str | os.PathLike, step: int | None = None) -> tuple[OPTConfig, dict[str, Any]]:
    """Reads configuration (without adapters) and metadata of a run's checkpoint; arguments and errors as in
    `read_run`."""
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        number = checkpoints.latest if step is None else step
        if number is None:
            raise UserError(f"{directory}/checkpoints holds no complete checkpoint; train first")
        meta = checkpoints.meta(number)
    return _config(meta["model"], directory).base, meta


def _config(fields: dict[str, Any], directory: str | os.PathLike) -> OPTConfig:
    """The architecture of a run; a field that its version did not have has its default."""
    field_names = {field.name for field in dataclasses.fields(OPTConfig)}
    if unknown := sorted(fields.keys() - field_names):
        raise UserError(
            f"{directory}: its model has {unknown[0]} = {fields[unknown[0]]}, which this version does not have; read "
            "it with the version that wrote it"
        )
    adapter = fields.get("adapter")
    return OPTConfig(**fields | {"adapter": adapter and Lora(**adapter)})


def content(source: str | None) -> str | None:
    """A hash of initial weights, by which they are known when their folder has moved: the fingerprint of a run's
    parameters, else names, sizes, first and last megabyte of the weight files. None if there are no weights.

    Args:
      source: INIT_WEIGHTS.
    """
    if source is None:
        return None
    if is_run(source):
        return read_run_config(source)[1]["params"]
    path = Path(source)
    if path.is_dir():
        files = [file for pattern in WEIGHT_FILES for file in sorted(path.glob(pattern))]
    else:  # the files of a metaseq checkpoint; a name on the hub has none, and is its own identity
        files = sorted(path.parent.glob(f"{path.name.removesuffix('.pt')}*.pt"))
    if not files:
        return source if weights.is_hub_name(source) else None
    digest = hashlib.sha256()
    if weights.peft.is_adapter(path):
        digest.update(str(content(weights.peft.base_of(path))).encode())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as bytes_:
            digest.update(bytes_.read(MEGABYTE))
            bytes_.seek(max(0, size - MEGABYTE))
            digest.update(bytes_.read(MEGABYTE))
    return digest.hexdigest()[:32]


def read_run(
    directory: str | os.PathLike,
    mesh: Mesh,
    step: int | None = None,
    dtype: jnp.dtype | dict = jnp.float32,
    separate: bool = False,
    merged: bool = True,
) -> tuple[OPTConfig, dict, dict[str, Any]]:
    """Reads configuration, parameters (on `mesh`, in `dtype`) and metadata of a run's checkpoint; None: of its latest.

    Args:
      dtype: as in `abstract_params`.
      separate: as in `Checkpoints.restore_params`.
      merged: whether the products of adapters are added to the kernels, and int8 kernels become float ones; the
        configuration is then `OPTConfig.base`.

    Raises:
      UserError: there is no checkpoint of that step, it cannot be verified, or the weights that it started from and did
        not train are missing or have changed.
    """
    _, meta = read_run_config(directory, step)
    config = _config(meta["model"], directory)
    sharding.check_divides(config, mesh)
    trained = meta["settings"].get(TRAINABLE, "all")
    if trained == "all":
        return config, _restored(directory, meta, decoder.abstract_params(config, dtype), mesh, separate), meta
    like, _ = trainable.split(decoder.abstract_params(config, jnp.float32 if merged else dtype), trained)
    params = trainable.join(_restored(directory, meta, like, mesh), _frozen(config, directory, meta, mesh, dtype))
    returned = config.base if merged else config
    like = decoder.abstract_params(returned, dtype)
    if returned != config:
        merge = jax.jit(lambda part, dtype: adapter.merge_matrix(part, config.adapter, dtype), static_argnums=1)
        for name, part in params["blocks"].items():  # one at a time, so that only one is held twice
            if "kernel" in part:
                params["blocks"][name] = merge(part, like["blocks"][name]["kernel"].dtype)
    params = jax.tree.map(lambda x, like: x.astype(like.dtype), params, like)
    return returned, layers.separate(params) if separate else params, meta


def read_adapter(directory: str | os.PathLike, step: int | None = None) -> tuple[Lora, dict, dict[str, Any]]:
    """Reads the shape of a run's adapters, their parameters (on the first device) and the metadata; arguments and
    further errors as in `read_run`.

    Raises:
      UserError: the run has no adapters.
    """
    _, meta = read_run_config(directory, step)
    config = _config(meta["model"], directory)
    if config.adapter is None:
        raise UserError(f"{directory}: was trained without adapters")
    like, _ = trainable.split(decoder.abstract_params(config), "lora")
    return config.adapter, _restored(directory, meta, like, sharding.make_mesh(devices=jax.devices()[:1])), meta


def _restored(
    directory: str | os.PathLike, meta: dict[str, Any], like: dict, mesh: Mesh, separate: bool = False
) -> dict:
    """The parameters in a checkpoint."""
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        shardings = sharding.parameter_shardings(like, mesh)
        return checkpoints.restore_params(meta["step"], with_shardings(like, shardings), separate)


def _frozen(
    config: OPTConfig, directory: str | os.PathLike, meta: dict[str, Any], mesh: Mesh, dtype: jnp.dtype | dict
) -> dict:
    """The parameters that a run did not train: those that it started from."""
    settings = meta["settings"]
    source = settings[INIT_WEIGHTS]
    if source is None:
        shardings = sharding.parameter_shardings(decoder.abstract_params(config), mesh)
        init = jax.jit(lambda key: decoder.init_params(key, config), out_shardings=shardings)
        return trainable.split(init(jax.random.key(settings["Data.seed"])), settings[TRAINABLE])[1]
    if content(source) != settings[INIT_CONTENT]:
        raise UserError(
            f"{directory}: trained a part of the parameters of {source}, which is not there or has changed since; put "
            "the weights back"
        )
    params = initial_params(source, config, mesh, dtype)
    return trainable.split(params, settings[TRAINABLE])[1]


def initial_params(source: str | os.PathLike, config: OPTConfig, mesh: Mesh, dtype: jnp.dtype | dict) -> dict:
    """Reads the weights that a run starts from, and rounds them if the run has int8 kernels; without adapters.

    A run and a folder of `peft` are read in floating point, and rounded on the devices; other weights tensor by tensor.

    Args:
      source: INIT_WEIGHTS.
      dtype: as in `abstract_params`.
    """
    config = dataclasses.replace(config, adapter=None)
    like = decoder.abstract_params(config, dtype)
    shardings = sharding.parameter_shardings(like, mesh)
    if is_run(source):
        params = read_run(source, mesh, dtype=dtype)[1]
    elif not weights.peft.is_adapter(weights.resolve(source)):
        return weights.load(source, config, shardings, dtype)
    else:
        base = decoder.abstract_params(config.base, dtype)
        params = weights.load(source, config.base, sharding.parameter_shardings(base, mesh), dtype)
    if config.kernels == "float":
        return params
    quantize = jax.jit(lambda params: int8.quantize_blocks(params, like), out_shardings=shardings, donate_argnums=(0,))
    return quantize(params)
