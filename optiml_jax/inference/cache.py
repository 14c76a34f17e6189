"""The cache of keys and values: a prompt is computed once (`prefill`), then one token a row at a time (`extend`).

Prompts are padded on the left, so that all rows go on at the same place. P prompt, C cache positions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from optiml_jax.model import decoder, sharding
from optiml_jax.model.attention import attention, next_attention
from optiml_jax.model.config import OPTConfig


class Cache(NamedTuple):
    """What `extend` needs of the tokens before.

    Attributes:
      layers_NBHCK: keys, and values, of every layer; heads before positions, as the products with them want it.
      real_BC: False for the padding before a prompt.
      next_B: the position of each row's next token, which is how many real tokens it has.
      place: where in C the next tokens go.
    """

    layers_NBHCK: tuple[jax.Array, jax.Array]
    real_BC: jax.Array
    next_B: jax.Array
    place: jax.Array | int


def prefill(
    params: dict,
    tokens_BP: jax.Array,
    segment_ids_BP: jax.Array,
    new: int,
    embedding_VD: jax.Array,
    config: OPTConfig,
) -> tuple[jax.Array, Cache]:
    """Reads prompts.

    Args:
      tokens_BP: padded on the left; segment_ids_BP: 1, and 0 for that padding.
      new: how many tokens will be added: C = P + new.

    Returns:
      Logits of what follows each prompt, float32 [B, V], and the cache.
    """
    positions_BP = jnp.maximum(jnp.cumsum(segment_ids_BP, 1) - 1, 0)

    def attend_prompt(_):
        return lambda q, k, v: (attention(q, k, v, segment_ids_BP), (k, v))

    x_BPD = decoder.embed(params, tokens_BP, positions_BP, embedding_VD, config)
    x_BPD, kept = decoder.scan_blocks(params, x_BPD, None, attend_prompt, config)
    room = ((0, 0), (0, 0), (0, 0), (0, new), (0, 0))
    layers = jax.tree.map(lambda x: sharding.constrain(jnp.pad(x.swapaxes(2, 3), room), "NBHCK"), kept)
    real_BC = jnp.pad(segment_ids_BP == 1, ((0, 0), (0, new)), constant_values=True)
    cache = Cache(layers, real_BC, segment_ids_BP.sum(1), tokens_BP.shape[1])
    return _logits(params, x_BPD[:, -1:], embedding_VD, config), cache


def extend(
    params: dict, token_B: jax.Array, cache: Cache, embedding_VD: jax.Array, config: OPTConfig
) -> tuple[jax.Array, Cache]:
    """Reads one more token a row.

    Returns:
      Logits of what follows it, float32 [B, V], and the cache with it.
    """
    mask_B1C = (cache.real_BC & (jnp.arange(cache.real_BC.shape[1]) < cache.place))[:, None]

    def attend_cache(layer_cache):
        def attend(*qkv_B1HK):
            _, k_B1HK, v_B1HK = qkv_B1HK
            out_B1HK = next_attention(*qkv_B1HK, *layer_cache, mask_B1C)
            return out_B1HK, (k_B1HK.swapaxes(1, 2), v_B1HK.swapaxes(1, 2))

        return attend

    x_B1D = decoder.embed(params, token_B[:, None], cache.next_B[:, None], embedding_VD, config)
    x_B1D, fresh = decoder.scan_blocks(params, x_B1D, cache.layers_NBHCK, attend_cache, config)
    # Blocks return the new position only; the whole cache is written here, in place, not copied through the scan.
    layers = jax.tree.map(
        lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, cache.place, 3), cache.layers_NBHCK, fresh
    )
    longer = Cache(layers, cache.real_BC, cache.next_B + 1, cache.place + 1)
    return _logits(params, x_B1D, embedding_VD, config), longer


def _logits(params, x_B1D, embedding_VD, config):
    return decoder.project_vocabulary(decoder.finish(params, x_B1D, config)[:, 0], embedding_VD)
