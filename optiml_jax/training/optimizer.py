"""Adam with OPT-IML's schedule (section 3.3): 60 steps of linear warm-up, linear decay to 0, gradients clipped to 1."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from optiml_jax.common.errors import check_known
from optiml_jax.common.settings import FROM_ZERO, check_fields
from optiml_jax.model.trainable import TRAINABLE


@dataclasses.dataclass(frozen=True)
class Optimization:
    """How parameters are updated; the defaults are the paper's.

    Attributes:
      learning_rate: the peak.
      train_steps: total number of batches, which sets the end of the decay.
      warmup_steps: updates until the learning rate reaches its peak; it then decays linearly to zero.
      beta1, beta2, epsilon: of Adam.
      clip_norm: maximum global gradient norm.
      weight_decay: decoupled, times the learning rate, of all parameters (AdamW, Loshchilov and Hutter 2019). The paper
        says "Adam", and that it inherits most settings from OPT, which was trained with 0.1; its own is not known.
      trainable: which parameters are updated: "all", "lora", "biases" or "embeddings" (`trainable.TRAINABLE`).
    """

    learning_rate: float = 5e-5
    train_steps: int = 4_000
    warmup_steps: int = 60
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    trainable: str = "all"

    def __post_init__(self) -> None:
        below_one = (0.0, 1.0 - 1e-9)
        check_fields(self, warmup_steps=FROM_ZERO, beta1=below_one, beta2=below_one, weight_decay=(0, math.inf))
        check_known("Optimization.trainable", self.trainable, TRAINABLE)


def learning_rate(settings: Optimization, updates: jax.Array) -> jax.Array:
    """Learning rate of the update that follows `updates` finished ones.

    The first update (1/warmup of the peak) and the last one both have a positive rate.
    """
    warmup = min(settings.warmup_steps, settings.train_steps)
    rising = (updates + 1) / max(warmup, 1)
    falling = (settings.train_steps - updates) / max(settings.train_steps - warmup, 1)
    return settings.learning_rate * jnp.clip(jnp.minimum(rising, falling), 0.0, 1.0)


def make_optimizer(settings: Optimization) -> optax.GradientTransformation:
    """Clipping, Adam with float32 moments, weight decay, schedule. Its state counts updates, without steps that fp16
    skipped; without decay it is that of a run of a version that had none."""
    decay = [optax.add_decayed_weights(settings.weight_decay)] if settings.weight_decay else []
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon),
        *decay,
        optax.scale_by_learning_rate(lambda updates: learning_rate(settings, updates)),
    )


def update_count(optimizer_state: optax.OptState) -> jax.Array:
    """Number of updates so far, an int32 scalar."""
    return optimizer_state[1].count  # Adam's, the second of the chain above
