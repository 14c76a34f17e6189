"""The state from which a run starts: its latest checkpoint, given weights, or random ones."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from optiml_jax import weights
from optiml_jax.checkpoints.orbax import Checkpoints, with_shardings
from optiml_jax.checkpoints.runs import initial_params, is_run, read_run_config
from optiml_jax.common.errors import UserError
from optiml_jax.data.loader import Loader
from optiml_jax.data.store import TokenStore
from optiml_jax.model import decoder, sharding, trainable
from optiml_jax.model.config import OPTConfig
from optiml_jax.training import step
from optiml_jax.training.optimizer import Optimization, learning_rate
from optiml_jax.training.settings import RunSettings, check_same_run


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
        _print_change_of_learning_rate(meta["settings"]["Optimization.train_steps"], optimization, meta["step"])
        loader.restore(meta["data"])
        state = checkpoints.restore(meta["step"], with_shardings(abstract, shardings))
        if optimization.trainable != "all":  # the frozen parameters are in no checkpoint
            state = state._replace(frozen=first_state(run, fixed["tokenizer"]).frozen)
        return state, meta["step"]
    return first_state(run, fixed["tokenizer"]), 0


def _print_change_of_learning_rate(before: int, optimization: Optimization, number: int) -> None:
    """Prints what another number of steps does to the learning rate, which decays to zero at their end."""
    now = optimization.train_steps
    if before == now or jax.process_index() != 0:
        return
    former = dataclasses.replace(optimization, train_steps=before)
    rates = [float(learning_rate(each, number)) for each in (former, optimization)]
    print(
        f"TRAIN_STEPS was {before:,} and is {now:,}: the learning rate decays to the new end, and goes on at step "
        f"{number:,} with {rates[1]:.2g} instead of {rates[0]:.2g}"
    )


def first_state(run: RunSettings, tokenizer: str) -> step.TrainState:
    """The state before the first step.

    Args:
      tokenizer: its fingerprint.

    Raises:
      UserError: the initial weights do not fit the model.
    """
    key = jax.random.key(run.data.seed)
    if run.init_weights is None:
        return step.init_state(key, run.model, run.optimization, run.computation, run.mesh)
    # Frozen parameters are loaded directly in the compute dtype, which takes half the memory of float32.
    dtypes = step.abstract_state(run.model.base, run.optimization, run.computation).params
    params = read_weights(run.init_weights, run.model, run.mesh, tokenizer, dtypes)
    if run.model.adapter is not None:
        params = trainable.join(params, new_adapters(key, run.model, run.mesh))
    return step.state_from_params(params, run.model, run.optimization, run.computation, run.mesh)


def new_adapters(key: jax.Array, model: OPTConfig, mesh: Mesh) -> dict:
    """The leaves of new adapters, in a tree like the parameters'."""

    def init(key: jax.Array) -> dict:
        return trainable.split(decoder.init_params(key, model), "lora")[0]

    return jax.jit(init, out_shardings=sharding.parameter_shardings(jax.eval_shape(init, key), mesh))(key)


def read_weights(source: str, model: OPTConfig, mesh: Mesh, tokenizer: str, dtype: dict) -> dict:
    """Reads the initial parameters of a run.

    Args:
      source: INIT_WEIGHTS.
      model: of the run; its adapters are not read.
      tokenizer: fingerprint of the run's tokenizer.
      dtype: as in `abstract_params`.

    Raises:
      UserError: the weights have another architecture, or come from a run with another tokenizer.
    """
    origin = f"INIT_WEIGHTS {source}"
    if is_run(source):
        config, meta = read_run_config(source)
        if meta["settings"]["tokenizer"] != tokenizer:
            raise UserError(f"{origin}: was trained with another tokenizer; set TOKENIZER to {source}/tokenizer")
    else:
        config = weights.read_config(weights.resolve(source))
    weights.check_config(config, model, origin)
    params = initial_params(source, model, mesh, dtype)
    decoder.check_params(params, dataclasses.replace(model, adapter=None), source)
    return params
