"""The label-only loss (OPT-IML equation 1): only label positions are projected to the vocabulary.

The rows of a device are flattened and ordered labels first; a loop runs over as many chunks as there are labels, so
that work and memory follow the labels, any number of them, and none is dropped.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

ROWS = ("data", "fsdp")
CHUNK = {"cpu": 128, "gpu": 1024}  # label positions projected at once


def label_nats(
    hidden_BTD: jax.Array,
    embedding_VD: jax.Array,
    targets_BT: jax.Array,
    label_mask_BT: jax.Array,
    chunk: int | None = None,
) -> jax.Array:
    """Negative log-likelihood of all labels, summed. Needs `jax.set_mesh`.

    Args:
      hidden_BTD: final hidden states in the compute dtype.
      embedding_VD: the tied embedding in the compute dtype (`decoder.gathered_embedding`).
      targets_BT: int32, the token that each position predicts.
      label_mask_BT: bool, True where the prediction counts.
      chunk: label positions a pass of the loop; None takes the device's.

    Returns:
      Sum of nats, float32 scalar. Divide by the label count of the whole batch.
    """
    chunk = chunk or CHUNK.get(jax.default_backend(), 1024)
    return _label_nats(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _label_nats(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk):
    return _sum_over_labels(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk)


def _forward(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk):
    nats = _sum_over_labels(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk)
    return nats, (hidden_BTD, embedding_VD, targets_BT, label_mask_BT)


def _backward(chunk, kept, cotangent):
    hidden_BTD, embedding_VD, targets_BT, label_mask_BT = kept
    d_hidden_BTD, d_embedding_VD = _gradients(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, cotangent, chunk)
    return d_hidden_BTD, d_embedding_VD, None, None


_label_nats.defvjp(_forward, _backward)


def _on_each_device(body, out_specs):
    """Rows split over (data, fsdp), the vocabulary over tensor. Sums over devices are written by hand in `body`."""
    specs = (P(ROWS, None, None), P("tensor", None), P(ROWS, None), P(ROWS, None), P())
    return jax.shard_map(body, in_specs=specs, out_specs=out_specs, check_vma=False)


def _sum_over_labels(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk):
    def body(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, _):
        labels = _Labels(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk)

        def add(i, nats):
            logits_cV, _, is_label_c, place_c = labels.logits(i)
            top_c = jax.lax.pmax(logits_cV.max(-1), "tensor")
            scale_c = jax.lax.psum(jnp.exp(logits_cV - top_c[:, None]).sum(-1), "tensor")
            own_c = (place_c >= 0) & (place_c < labels.local_vocab)
            logit_c = jnp.take_along_axis(logits_cV, jnp.clip(place_c, 0, labels.local_vocab - 1)[:, None], 1)[:, 0]
            logit_c = jax.lax.psum(jnp.where(own_c, logit_c, 0.0), "tensor")
            return nats + jnp.where(is_label_c, top_c + jnp.log(scale_c) - logit_c, 0.0).sum()

        return jax.lax.psum(jax.lax.fori_loop(0, labels.chunks, add, jnp.float32(0)), ROWS)

    return _on_each_device(body, P())(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, jnp.float32(0))


def _gradients(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, cotangent, chunk):
    """Logits are computed again rather than kept: the loss scale of fp16 arrives only with the cotangent."""

    def body(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, cotangent):
        labels = _Labels(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk)
        dtype = hidden_BTD.dtype

        def add(i, sums):
            d_hidden_nD, d_embedding_VD = sums
            logits_cV, x_cD, is_label_c, place_c = labels.logits(i)
            top_c = jax.lax.pmax(logits_cV.max(-1), "tensor")
            exp_cV = jnp.exp(logits_cV - top_c[:, None])
            scale_c = jax.lax.psum(exp_cV.sum(-1), "tensor")
            one_hot_cV = place_c[:, None] == jnp.arange(labels.local_vocab)
            weight_c = jnp.where(is_label_c, cotangent, 0.0)
            d_logits_cV = ((exp_cV / scale_c[:, None] - one_hot_cV) * weight_c[:, None]).astype(dtype)
            dx_cD = jnp.einsum("cv,vd->cd", d_logits_cV, embedding_VD, preferred_element_type=jnp.float32)
            d_hidden_nD = d_hidden_nD.at[labels.positions(i)].set(dx_cD, mode="drop")
            d_embedding_VD += jnp.einsum("cv,cd->vd", d_logits_cV, x_cD, preferred_element_type=jnp.float32)
            return d_hidden_nD, d_embedding_VD

        zeros = (jnp.zeros(labels.hidden_nD.shape, jnp.float32), jnp.zeros(embedding_VD.shape, jnp.float32))
        d_hidden_nD, d_embedding_VD = jax.lax.fori_loop(0, labels.chunks, add, zeros)
        d_hidden_BTD = jax.lax.psum(d_hidden_nD, "tensor").reshape(hidden_BTD.shape)
        # Straight to the shards that the optimizer holds: a reduce-scatter, where a plain sum would move twice as much.
        d_embedding_VD = jax.lax.psum_scatter(d_embedding_VD, "fsdp", scatter_dimension=1, tiled=True)
        return d_hidden_BTD.astype(dtype), jax.lax.psum(d_embedding_VD, "data").astype(dtype)

    out_specs = (P(ROWS, None, None), P("tensor", "fsdp"))
    return _on_each_device(body, out_specs)(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, cotangent)


class _Labels:
    """The label positions of one device's rows, in chunks; n flattened positions, c of them a chunk, V local."""

    def __init__(self, hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk):
        self.hidden_nD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        self.embedding_VD = embedding_VD
        self.local_vocab = embedding_VD.shape[0]
        self.chunk = chunk
        self._targets_n = targets_BT.reshape(-1)
        n = self._targets_n.shape[0]
        self._count = label_mask_BT.sum()
        self.chunks = (self._count + chunk - 1) // chunk
        order_n = jnp.argsort(~label_mask_BT.reshape(-1), stable=True)  # labels first
        self._order = jnp.pad(order_n, (0, -n % chunk), constant_values=n)  # n is out of range: read as 0, not written

    def positions(self, i):
        """Where chunk `i`'s labels are; past the last label, out of range."""
        place_c = jax.lax.dynamic_slice(self._order, (i * self.chunk,), (self.chunk,))
        return jnp.where(self._is_label(i), place_c, self.hidden_nD.shape[0])

    def _is_label(self, i):
        return i * self.chunk + jnp.arange(self.chunk) < self._count

    def logits(self, i):
        """Float32 logits [c, V] of chunk `i`, its hidden states, which are labels, and each target's local row."""
        positions_c = self.positions(i)
        x_cD = self.hidden_nD.at[positions_c].get(mode="fill", fill_value=0)
        logits_cV = jnp.einsum("cd,vd->cv", x_cD, self.embedding_VD, preferred_element_type=jnp.float32)
        targets_c = self._targets_n.at[positions_c].get(mode="fill", fill_value=0)
        place_c = targets_c - jax.lax.axis_index("tensor") * self.local_vocab
        return logits_cV, x_cD, self._is_label(i), place_c
