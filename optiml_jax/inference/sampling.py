"""The choice of the next token: the most likely one, or a draw from the nucleus (Holtzman et al. 2020).

A draw depends on the prompt's seed and on the position of the token alone: batches, meshes and other prompts do not
change it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optiml_jax.common.errors import UserError

HALVINGS = 32  # of the interval that holds the nucleus' smallest log-probability


class Sampling(NamedTuple):
    """How the answer of a prompt is drawn.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token (greedy decoding).
      top_p: only the most likely tokens whose probabilities sum to at least this are drawn.
      seed, index: another pair gives another answer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    index: int = 0


GREEDY = Sampling()


def check(sampling: Sampling) -> None:
    """Raises a UserError that names the setting that is out of range."""
    if not 0 <= sampling.temperature < float("inf"):
        raise UserError(f"temperature {sampling.temperature} must be 0 (greedy) or a positive number")
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"top_p {sampling.top_p} must be above 0 and at most 1")
    if not 0 <= sampling.seed < 2**32:
        raise UserError(f"seed {sampling.seed} must be from 0 to {2**32 - 1}")


class Rows(NamedTuple):
    """The sampling of each row of a batch: float32 [B], float32 [B], uint32 [B, 2]."""

    temperature_B: np.ndarray
    top_p_B: np.ndarray
    seed_B2: np.ndarray

    @classmethod
    def of(cls, samplings: Sequence[Sampling]) -> "Rows | None":
        """None if all rows are greedy, which needs no random numbers."""
        if not any(each.temperature for each in samplings):
            return None
        temperature, top_p, *seeds = zip(*samplings)
        return cls(np.float32(temperature), np.float32(top_p), np.array(seeds, np.uint32).T)


def next_token(
    hidden_BE: jax.Array, embedding_VD: jax.Array, rows: Rows | None = None, position_B: jax.Array | None = None
) -> jax.Array:
    """The next token of each row, int32 [B], or -1 where a logit is not finite.

    Args:
      hidden_BE: of the last token.
      rows: None takes the most likely token, the first among equals.
      position_B: of the next token in its row.
    """
    # Vocabulary first: with few rows a product of this form is bound by reading the embedding alone.
    logits_VB = jnp.einsum("ve,be->vb", embedding_VD, hidden_BE, preferred_element_type=jnp.float32)
    token_B = _first_highest(logits_VB)
    if rows is not None:
        token_B = jnp.where(rows.temperature_B > 0, _draw(logits_VB, rows, position_B), token_B)
    return jnp.where(jnp.isfinite(logits_VB).all(0), token_B, -1)


def _first_highest(score_VB: jax.Array) -> jax.Array:
    ids_V1 = jnp.arange(len(score_VB), dtype=jnp.int32)[:, None]
    return jnp.where(score_VB == score_VB.max(0), ids_V1, len(score_VB) - 1).min(0)


def _draw(logits_VB: jax.Array, rows: Rows, position_B: jax.Array) -> jax.Array:
    """Draws by the Gumbel-max trick among the tokens of the nucleus."""
    temperature_B = jnp.where(rows.temperature_B > 0, rows.temperature_B, 1.0)
    log_probability_VB = jax.nn.log_softmax(logits_VB / temperature_B, axis=0)

    def noise(seed_2: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed_2, impl="threefry2x32"), position)
        return jax.random.gumbel(key, logits_VB.shape[:1])

    score_VB = log_probability_VB + jax.vmap(noise, out_axes=1)(rows.seed_B2, position_B)
    least_B = _nucleus(log_probability_VB, rows.top_p_B)
    return _first_highest(jnp.where(log_probability_VB >= least_B, score_VB, -jnp.inf))


def _nucleus(log_probability_VB: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """The smallest log-probability in each row's nucleus, by bisection: sorting the vocabulary is slower."""
    probability_VB = jnp.exp(log_probability_VB)

    def halve(_, ends):
        low_B, high_B = ends
        middle_B = (low_B + high_B) / 2
        enough_B = jnp.where(log_probability_VB >= middle_B, probability_VB, 0).sum(0) >= top_p_B
        return jnp.where(enough_B, middle_B, low_B), jnp.where(enough_B, high_B, middle_B)

    highest_B = log_probability_VB.max(0)
    # Tokens below the first end have a probability of 0 in float32. The most likely token is always in the nucleus.
    low_B, _ = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.full_like(highest_B, -128.0), highest_B))
    return jnp.where(top_p_B < 1, jnp.minimum(low_B, highest_B), -jnp.inf)
