"""The state from which a run starts: its latest checkpoint, given weights, or random ones."""

import hashlib
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from optiml_jax import weights
from optiml_jax.checkpoints.orbax import Checkpoints, with_shardings
from optiml_jax.checkpoints.runs import is_run, read_run, read_run_config
from optiml_jax.common.errors import UserError
from optiml_jax.data.loader import Loader
from optiml_jax.data.store import TokenStore
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.training import step
from optiml_jax.training.settings import RunSettings, check_same_run

WEIGHT_FILES = ("config.json", "*.safetensors", "*.bin", "*.pt")
MEGABYTE = 1 << 20


def start_state(
    run: RunSettings, checkpoints: Checkpoints, fixed: dict[str, Any], loader: Loader, store: TokenStore
) -> tuple[step.TrainState, int]:
    """Returns the state to continue from and its step; moves the loader to that step's position.

    Args:
      fixed: result of `RunSettings.fixed`.

    Raises:
      UserError: the checkpoint is of another run, or the weights do not fit the model.
    """
    model, optimization, computation = run.model, run.optimization, run.computation
    abstract = step.abstract_state(model, optimization, computation)
    shardings = step.state_shardings(abstract, optimization, run.mesh)
    if checkpoints.latest is not None:
        meta = checkpoints.meta(checkpoints.latest)
        if "optimizer" not in meta:
            raise UserError(
                f"{checkpoints.directory} holds converted weights without optimizer state; pass them as INIT_WEIGHTS "
                "and choose another MODEL_DIR"
            )
        check_same_run(meta["settings"], fixed, checkpoints.directory, store.checksums)
        if meta["step"] > optimization.train_steps:
            raise UserError(
                f"{checkpoints.directory} is at step {meta['step']}, beyond TRAIN_STEPS = {optimization.train_steps}; "
                "raise TRAIN_STEPS or choose another MODEL_DIR"
            )
        loader.restore(meta["data"])
        return checkpoints.restore(meta["step"], with_shardings(abstract, shardings)), meta["step"]
    if run.init_weights is None:
        return step.init_state(jax.random.key(run.data.seed), model, optimization, computation, run.mesh), 0
    params = read_weights(run.init_weights, model, run.mesh, fixed["tokenizer"])
    return step.state_from_params(params, optimization, computation, run.mesh), 0


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
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as bytes_:
            digest.update(bytes_.read(MEGABYTE))
            bytes_.seek(max(0, size - MEGABYTE))
            digest.update(bytes_.read(MEGABYTE))
    return digest.hexdigest()[:32]


def read_weights(source: str, model: OPTConfig, mesh: Mesh, tokenizer: str) -> dict:
    """Reads the initial parameters of a run.

    Args:
      source: INIT_WEIGHTS.
      tokenizer: fingerprint of the run's tokenizer.

    Raises:
      UserError: the weights have another architecture, or come from a run with another tokenizer.
    """
    origin = f"INIT_WEIGHTS {source}"
    if is_run(source):
        config, params, meta = read_run(source, mesh)
        weights.check_config(config, model, origin)
        if meta["settings"]["tokenizer"] != tokenizer:
            raise UserError(f"{origin}: was trained with another tokenizer; set TOKENIZER to {source}/tokenizer")
        return params
    path = weights.resolve(source)
    weights.check_config(weights.read_config(path), model, origin)
    params = weights.load(path, model, sharding.parameter_shardings(decoder.abstract_params(model), mesh))
    decoder.check_params(params, model, source)
    return params
