"""The training step: a pure function of (state, batch, key), jitted with explicit shardings."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optiml_jax.common.errors import UserError
from optiml_jax.common.settings import check_fields
from optiml_jax.model import decoder, head, sharding, trainable
from optiml_jax.model.attention import IMPLEMENTATIONS
from optiml_jax.model.config import PRECISIONS, OPTConfig
from optiml_jax.training import loss_scale
from optiml_jax.training.loss_scale import LossScale
from optiml_jax.training.optimizer import Optimization, learning_rate, make_optimizer, update_count

BATCH_DTYPES = {
    "tokens_BT": jnp.int32,
    "targets_BT": jnp.int32,
    "segment_ids_BT": jnp.int32,
    "positions_BT": jnp.int32,
    "label_mask_BT": jnp.bool_,
}


@dataclasses.dataclass(frozen=True)
class Computation:
    """How a step is computed.

    Attributes:
      precision: "fp32"; "bf16" (compute; parameters and Adam stay float32); "fp16" (with dynamic loss scaling).
      remat: what is saved for the backward pass (`decoder.REMAT`), from fast to small: "none" (everything), "dots"
        (results of matrix products and attention), "attention-saved", "full" (the input of each block).
      layers: "scan" or "unrolled"; "auto" unrolls on GPUs that hold whole layers (`decoder.LAYERS`), if all parameters
        are trained.
      accumulation: microbatches per step; the loss is the mean over the labels of all of them.
      attention: "auto" (the fastest on the device), "triton" (GPUs), "blocked" or "dense".
    """

    precision: str = "bf16"
    remat: str = "full"
    layers: str = "auto"
    accumulation: int = 1
    attention: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value, choices in (
            ("precision", self.precision, PRECISIONS),
            ("remat", self.remat, decoder.REMAT),
            ("layers", self.layers, decoder.LAYERS),
            ("attention", self.attention, IMPLEMENTATIONS),
        ):
            if value not in choices:
                raise UserError(f"Computation.{name}: {value!r} is unknown; use one of {', '.join(choices)}")


class TrainState(NamedTuple):
    """Everything that a step needs beside a batch. The loop counts batches, `optimizer` counts updates.

    Attributes:
      trainable, frozen: the parameters that change, float32, and the others, in the compute dtype (`trainable.py`).
    """

    trainable: dict
    frozen: dict
    optimizer: optax.OptState
    scale: LossScale

    @property
    def params(self) -> dict:
        """All parameters."""
        return trainable.join(self.trainable, self.frozen)


def abstract_state(config: OPTConfig, settings: Optimization, computation: Computation) -> TrainState:
    """The state as `ShapeDtypeStruct`s."""
    trained, _ = trainable.split(decoder.abstract_params(config), settings.trainable)
    _, frozen = trainable.split(decoder.abstract_params(config, PRECISIONS[computation.precision]), settings.trainable)
    optimizer = jax.eval_shape(make_optimizer(settings).init, trained)
    return TrainState(trained, frozen, optimizer, jax.eval_shape(lambda: loss_scale.initial(computation.precision)))


def state_shardings(state: TrainState, settings: Optimization, mesh: Mesh) -> TrainState:
    """`NamedSharding`s of a state. Adam's moments are sharded like their parameters; by default they would be
    replicated, because the zeros they start from depend on no sharded array."""
    replicated = NamedSharding(mesh, PartitionSpec())
    trained, frozen = (sharding.parameter_shardings(part, mesh) for part in (state.trainable, state.frozen))
    optimizer = optax.tree_map_params(
        make_optimizer(settings),
        lambda _, param_sharding: param_sharding,
        state.optimizer,
        trained,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(trained, frozen, optimizer, jax.tree.map(lambda _: replicated, state.scale))


def init_state(
    key: jax.Array, config: OPTConfig, settings: Optimization, computation: Computation, mesh: Mesh
) -> TrainState:
    """Random parameters, created sharded, with a new optimizer state."""
    abstract = abstract_state(config, settings, computation)
    shardings = state_shardings(abstract, settings, mesh)

    def init(key: jax.Array) -> TrainState:
        return _new_state(decoder.init_params(key, config), abstract, settings, computation)

    return jax.jit(init, out_shardings=shardings)(key)


def _new_state(params: dict, abstract: TrainState, settings: Optimization, computation: Computation) -> TrainState:
    parts = zip(trainable.split(params, settings.trainable), (abstract.trainable, abstract.frozen))
    trained, frozen = (jax.tree.map(lambda x, like: x.astype(like.dtype), part, like) for part, like in parts)
    scale = loss_scale.initial(computation.precision)
    return TrainState(trained, frozen, make_optimizer(settings).init(trained), scale)


def state_from_params(
    params: dict, config: OPTConfig, settings: Optimization, computation: Computation, mesh: Mesh
) -> TrainState:
    """A new state with existing, already sharded parameters, which are donated."""
    abstract = abstract_state(config, settings, computation)
    shardings = state_shardings(abstract, settings, mesh)

    def init(params: dict) -> TrainState:
        return _new_state(params, abstract, settings, computation)

    return jax.jit(init, out_shardings=shardings, donate_argnums=(0,))(params)


def batch_nats(
    params: dict, batch: dict, config: OPTConfig, computation: Computation, dropout_key: jax.Array | None
) -> jax.Array:
    """Negative log-likelihood in nats, summed over the label tokens of `batch`."""
    dtype = PRECISIONS[computation.precision]
    embedding_VD = decoder.gathered_embedding(params, dtype)
    hidden_BTD = decoder.forward(
        params,
        batch["tokens_BT"],
        batch["segment_ids_BT"],
        batch["positions_BT"],
        config,
        embedding_VD=embedding_VD,
        dtype=dtype,
        dropout_key=dropout_key,
        remat=computation.remat,
        layers=computation.layers,
        implementation=computation.attention,
    )
    return head.label_nats(hidden_BTD, embedding_VD, batch["targets_BT"], batch["label_mask_BT"]).sum()


def gradients(
    params: dict,
    batch: dict,
    config: OPTConfig,
    computation: Computation,
    dropout_key: jax.Array | None,
    scale: jax.Array | float = 1.0,
    frozen: dict | None = None,
) -> tuple[jax.Array, dict]:
    """Mean nats per label token of the global batch, and its gradients in float32.

    The *sum* of the nats times `scale` is differentiated, and the float32 gradients are divided afterwards, as in
    metaseq (`optim/fp16_optimizer.py`). Dividing first would pass cotangents of scale / labels through float16: with
    the 78,600 labels of a 30B batch at the initial scale, below its smallest normal number.

    Args:
      params: those that are trained.
      scale: of the loss; gradients are infinite or NaN where the scaled ones overflow float16.
      frozen: the other parameters.
    """

    if frozen and computation.layers == "auto":
        # An unrolled program copies every layer out of the stacked arrays before it runs the first: the model twice.
        computation = dataclasses.replace(computation, layers="scan")

    def loss(params: dict, batch: dict, key: jax.Array | None) -> jax.Array:
        return batch_nats(trainable.join(params, frozen or {}), batch, config, computation, key) * scale

    def mean(scaled: jax.Array, grads: dict) -> tuple[jax.Array, dict]:
        total = scale * jnp.maximum(batch["label_mask_BT"].sum(), 1)
        return scaled / total, jax.tree.map(lambda g: g / total, grads)

    n = computation.accumulation
    if n == 1:
        return mean(*jax.value_and_grad(loss)(params, batch, dropout_key))

    # Microbatch i takes every n-th row, so that each device keeps its own rows.
    micro = jax.tree.map(lambda x_BT: x_BT.reshape(x_BT.shape[0] // n, n, x_BT.shape[1]).swapaxes(0, 1), batch)

    def add(sums: tuple, inputs: tuple) -> tuple[tuple, None]:
        index, part = inputs
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        part = jax.tree.map(lambda x_BT: sharding.constrain(x_BT, "BT"), part)
        return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(params, part, key)), None

    zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    (scaled, grads), _ = jax.lax.scan(add, zeros, (jnp.arange(n), micro))
    return mean(scaled, grads)


def train_step(
    state: TrainState, batch: dict, key: jax.Array, config: OPTConfig, settings: Optimization, computation: Computation
) -> tuple[TrainState, dict]:
    """Performs one update. If fp16 overflows, parameters and moments stay bit-identical.

    Args:
      batch: `[B, T]` arrays of `BATCH_DTYPES`.
      key: one per batch.

    Returns:
      The next state, and scalars: loss (nats per label token), grad_norm, learning_rate, loss_scale, label_tokens,
      updates.
    """
    loss, grads = gradients(state.trainable, batch, config, computation, key, state.scale.scale, state.frozen)
    norm = optax.tree.norm(grads)  # not finite if any gradient is not
    rate = learning_rate(settings, update_count(state.optimizer))
    changes, optimizer = make_optimizer(settings).update(grads, state.optimizer, state.trainable)
    updated = (optax.apply_updates(state.trainable, changes), optimizer)
    scale = state.scale
    if computation.precision == "fp16":
        finite = jnp.isfinite(norm)
        before = (state.trainable, state.optimizer)
        updated = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, before)
        scale = loss_scale.adjust(scale, finite)
    metrics = {
        "loss": loss,
        "grad_norm": norm,
        "learning_rate": rate,
        "loss_scale": state.scale.scale,
        "label_tokens": batch["label_mask_BT"].sum(),
        "updates": update_count(updated[1]),
    }
    return TrainState(updated[0], state.frozen, updated[1], scale), metrics


@functools.lru_cache(maxsize=4)
def compiled_step(
    config: OPTConfig, settings: Optimization, computation: Computation, mesh: Mesh
) -> Callable[[TrainState, dict, jax.Array], tuple[TrainState, dict]]:
    """`train_step` under jit; the state is donated. Call it under `jax.set_mesh(mesh)`.

    Cached, so that another run with the same settings in this process does not compile again. Output shardings equal
    input shardings; otherwise the second call would compile again for another layout.
    """
    state = state_shardings(abstract_state(config, settings, computation), settings, mesh)
    batch = dict.fromkeys(BATCH_DTYPES, NamedSharding(mesh, sharding.spec("BT")))
    replicated = NamedSharding(mesh, PartitionSpec())

    def step(state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, dict]:
        return train_step(state, batch, key, config, settings, computation)

    return jax.jit(
        step, in_shardings=(state, batch, replicated), out_shardings=(state, replicated), donate_argnums=(0,)
    )
