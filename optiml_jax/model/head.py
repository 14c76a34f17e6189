"""The label-only head: only label positions are projected to the vocabulary (the loss of OPT-IML equation 1).

A device's rows are flattened and sorted labels first; a loop runs over as many chunks as there are labels. Work and
memory are proportional to the number of labels, which is not bounded.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from optiml_jax.model import sharding

ROWS = sharding.BATCH_AXES
# Label positions projected at once. On an H200 one pass over 4,096 is faster than three over 1,024, each of which adds
# to the gradient of the whole embedding. A loop count that only the device knows costs nothing.
CHUNK = {"cpu": 64, "gpu": 4096}


def label_nats(
    hidden_BTD: jax.Array,
    embedding_VD: jax.Array,
    targets_BT: jax.Array,
    label_mask_BT: jax.Array,
    chunk: int | None = None,
) -> jax.Array:
    """Negative log-likelihood of each label. Needs `jax.set_mesh`.

    Args:
      hidden_BTD: final hidden states in the compute dtype.
      embedding_VD: the tied embedding in the compute dtype (`decoder.gathered_embedding`).
      targets_BT: int32, the token that each position predicts.
      label_mask_BT: bool, True where the prediction counts.
      chunk: label positions per pass of the loop; None takes the platform's default.

    Returns:
      Nats, float32 [B, T]; 0 where there is no label.
    """
    return _label_nats(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, _positions(chunk))


def _positions(chunk: int | None) -> int:
    return chunk or CHUNK.get(sharding.platform(), CHUNK["gpu"])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _label_nats(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk):
    log_probability_BTM, _ = log_probabilities(hidden_BTD, embedding_VD, targets_BT[..., None], label_mask_BT, chunk)
    return -log_probability_BTM[..., 0]


def log_probabilities(
    hidden_BTD: jax.Array,
    embedding_VD: jax.Array,
    targets_BTM: jax.Array,
    label_mask_BT: jax.Array,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of several targets per position, from one row of logits. For ranking; not differentiable.

    Args:
      targets_BTM: int32, M alternative next tokens per position. Other arguments as `label_nats`.

    Returns:
      Log-probabilities, float32 [B, T, M], and those of the most likely tokens [B, T], bit-equal where a target is the
      most likely token; 0 where the mask is False.
    """
    chunk = _positions(chunk)

    def body(hidden_BTD, embedding_VD, targets_BTM, label_mask_BT):
        labels = _Labels(hidden_BTD, embedding_VD, targets_BTM, label_mask_BT, chunk)

        def project(i, results):
            log_probability_nM, best_n = results
            positions_c, _, index_cM, logits_cV = labels.chunk(i)
            top_c = jax.lax.pmax(logits_cV.max(-1), "tensor")
            scale_c = jax.lax.psum(jnp.exp(logits_cV - top_c[:, None]).sum(-1), "tensor")
            local_cM = (index_cM >= 0) & (index_cM < labels.local_vocab)
            logit_cM = jnp.take_along_axis(logits_cV, jnp.clip(index_cM, 0, labels.local_vocab - 1), 1)
            logit_cM = jax.lax.psum(jnp.where(local_cM, logit_cM, 0.0), "tensor")
            total_c = top_c + jnp.log(scale_c)
            log_probability_nM = log_probability_nM.at[positions_c].set(logit_cM - total_c[:, None], mode="drop")
            return log_probability_nM, best_n.at[positions_c].set(top_c - total_c, mode="drop")

        zeros = [jnp.zeros(shape, jnp.float32) for shape in (labels.targets_n.shape, labels.targets_n.shape[:1])]
        log_probability_nM, best_n = jax.lax.fori_loop(0, labels.chunks, project, tuple(zeros))
        return log_probability_nM.reshape(targets_BTM.shape), best_n.reshape(label_mask_BT.shape)

    return _on_each_device(body, (P(ROWS, None, None), P(ROWS, None)))(
        hidden_BTD, embedding_VD, targets_BTM, label_mask_BT
    )


def _forward(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk):
    nats_BT = _label_nats(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk)
    return nats_BT, (hidden_BTD, embedding_VD, targets_BT, label_mask_BT)


def _backward(chunk, residuals, d_nats_BT):
    """Recomputes the logits instead of saving them: fp16's loss scale arrives only with the cotangent."""

    def body(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, d_nats_BT):
        labels = _Labels(hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk)
        d_nats_n = d_nats_BT.reshape(-1)
        dtype = hidden_BTD.dtype

        def add(i, sums):
            d_hidden_nD, d_embedding_VD = sums
            positions_c, x_cD, index_c, logits_cV = labels.chunk(i)
            top_c = jax.lax.pmax(logits_cV.max(-1), "tensor")
            exp_cV = jnp.exp(logits_cV - top_c[:, None])
            scale_c = jax.lax.psum(exp_cV.sum(-1), "tensor")
            one_hot_cV = index_c[:, None] == jnp.arange(labels.local_vocab)
            weight_c = d_nats_n.at[positions_c].get(mode="fill", fill_value=0)
            d_logits_cV = ((exp_cV / scale_c[:, None] - one_hot_cV) * weight_c[:, None]).astype(dtype)
            dx_cD = jnp.einsum("cv,vd->cd", d_logits_cV, embedding_VD, preferred_element_type=jnp.float32)
            d_hidden_nD = d_hidden_nD.at[positions_c].set(dx_cD, mode="drop")
            d_embedding_VD += jnp.einsum("cv,cd->vd", d_logits_cV, x_cD, preferred_element_type=jnp.float32)
            return d_hidden_nD, d_embedding_VD

        zeros = (jnp.zeros(labels.hidden_nD.shape, jnp.float32), jnp.zeros(embedding_VD.shape, jnp.float32))
        d_hidden_nD, d_embedding_VD = jax.lax.fori_loop(0, labels.chunks, add, zeros)
        d_hidden_BTD = jax.lax.psum(d_hidden_nD, "tensor").reshape(hidden_BTD.shape)
        # Scattered to the optimizer's shards: a reduce-scatter moves half as much as a sum.
        d_embedding_VD = jax.lax.psum_scatter(d_embedding_VD, "fsdp", scatter_dimension=1, tiled=True)
        return d_hidden_BTD.astype(dtype), jax.lax.psum(d_embedding_VD, "data").astype(dtype)

    d_hidden_BTD, d_embedding_VD = _on_each_device(body, (P(ROWS, None, None), P("tensor", "fsdp")))(
        *residuals, d_nats_BT
    )
    return d_hidden_BTD, d_embedding_VD, None, None


_label_nats.defvjp(_forward, _backward)


def _on_each_device(body, out_specs):
    """Splits rows over (data, fsdp) and the vocabulary over tensor; `body` contains its own sums over devices.

    The number of chunks may differ between devices: the loops sum only over `tensor`, whose members share their rows.
    """

    def call(hidden_BTD, embedding_VD, *rows_BT):
        in_specs = (P(ROWS, None, None), P("tensor", None), *(P(ROWS) for _ in rows_BT))
        mapped = jax.shard_map(body, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        return mapped(hidden_BTD, embedding_VD, *rows_BT)

    return call


class _Labels:
    """The label positions of one device's rows, in chunks. n: flattened positions, c: positions per chunk, V: local."""

    def __init__(self, hidden_BTD, embedding_VD, targets_BT, label_mask_BT, chunk):
        self.hidden_nD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        self.targets_n = targets_BT.reshape(-1, *targets_BT.shape[2:])  # [n], or [n, M] with alternatives
        self.local_vocab = embedding_VD.shape[0]
        self._embedding_VD = embedding_VD
        n = self.targets_n.shape[0]
        self._size = chunk = min(chunk, n)
        self._count = label_mask_BT.sum()
        self.chunks = (self._count + chunk - 1) // chunk
        order_n = jnp.argsort(~label_mask_BT.reshape(-1), stable=True)  # labels first
        self._order = jnp.pad(order_n, (0, -n % chunk))

    def chunk(self, i):
        """Chunk `i`: positions of its labels, their hidden states, their targets' local rows, and float32 logits [c,
        V].

        Beyond the last label, positions are out of range: mode "fill" reads 0 there and mode "drop" writes nothing.
        """
        first = i * self._size
        order_c = jax.lax.dynamic_slice(self._order, (first,), (self._size,))
        positions_c = jnp.where(first + jnp.arange(self._size) < self._count, order_c, self.targets_n.shape[0])
        x_cD = self.hidden_nD.at[positions_c].get(mode="fill", fill_value=0)
        targets_c = self.targets_n.at[positions_c].get(mode="fill", fill_value=0)
        logits_cV = jnp.einsum("cd,vd->cv", x_cD, self._embedding_VD, preferred_element_type=jnp.float32)
        return positions_c, x_cD, targets_c - jax.lax.axis_index("tensor") * self.local_vocab, logits_cV
