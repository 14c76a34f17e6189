"""A decoder with its parameters, mesh and tokenizer; computes logits."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optiml_jax.common.distributed import from_first
from optiml_jax.inference.capacity import Capacity, capacity, free_bytes
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.fingerprint import fingerprint
from optiml_jax.model.layers import is_separate
from optiml_jax.model.triton_call import has_kernels
from optiml_jax.tokenizer import Tokenizer


class Network:
    """Parameters on a mesh, their configuration and tokenizer.

    Attributes:
      leading_eos: whether prompts start with `</s>`, as training examples did.
      source: where the weights came from, with the step for a training run.
    """

    def __init__(
        self,
        config: OPTConfig,
        params: dict,
        tokenizer: Tokenizer,
        mesh: Mesh,
        *,
        source: str,
        leading_eos: bool = True,
        dtype: jnp.dtype = jnp.float32,
    ) -> None:
        self.config, self.params, self.tokenizer, self.mesh = config, params, tokenizer, mesh
        self.source, self.leading_eos = source, leading_eos
        self.dtype = dtype

    def logits(self, tokens_BT: np.ndarray, segment_ids_BT: np.ndarray | None = None) -> np.ndarray:
        """Next-token logits, float32 [B, T, V].

        Args:
          tokens_BT: ids as they are; no `</s>` is added.
          segment_ids_BT: 0 for padding, one positive id per document in one contiguous run; None: one document per row.
        """
        tokens_BT = np.asarray(tokens_BT, np.int32)
        segment_ids_BT = np.ones_like(tokens_BT) if segment_ids_BT is None else np.asarray(segment_ids_BT, np.int32)
        if tokens_BT.ndim != 2 or tokens_BT.shape != segment_ids_BT.shape:
            raise ValueError(f"tokens {tokens_BT.shape} and segment ids {segment_ids_BT.shape} must both be [B, T]")
        positions_BT = restarting_positions(segment_ids_BT)
        if positions_BT.max(initial=0) >= self.config.max_positions:
            raise ValueError(
                f"a document of {positions_BT.max() + 1} tokens, but {self.config.max_positions} positions"
            )
        rows = len(tokens_BT)
        with jax.set_mesh(self.mesh):
            batch = [self.place(x_BT) for x_BT in (tokens_BT, segment_ids_BT, positions_BT)]
            return self.fetch(_logits(self.params, *batch, self.config, self.dtype))[:rows]

    @functools.cached_property
    def capacity(self) -> Capacity:
        """How much is computed at once, by the memory that is free now."""
        free = free_bytes(self.mesh.devices.flat)
        # In MiB, to fit into int32; all processes must compute the same batches.
        (free_mib,) = from_first(np.array([-1 if free is None else free >> 20], np.int32))
        common_free_bytes = None if free_mib < 0 else int(free_mib) << 20
        return capacity(
            self.config, self.mesh, jnp.dtype(self.dtype).itemsize, common_free_bytes, is_separate(self.params)
        )

    def place(self, x_BT: np.ndarray) -> jax.Array:
        """Puts an array on the mesh, its rows split over (data, fsdp) and zero-padded to divide."""
        x_BT = np.pad(x_BT, ((0, -len(x_BT) % sharding.batch_parts(self.mesh.shape)), *((0, 0),) * (x_BT.ndim - 1)))
        where = NamedSharding(self.mesh, sharding.spec("B" + "T" * (x_BT.ndim - 1)))
        return jax.make_array_from_callback(x_BT.shape, where, lambda part: x_BT[part])

    def fetch(self, x: jax.Array) -> np.ndarray:
        """Gathers an array to every process."""
        return np.asarray(x if x.is_fully_addressable else _replicate(self.mesh)(x))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt, with its leading `</s>`; an empty prompt always gets one, to have a position."""
        return [self.tokenizer.eos_id] * (self.leading_eos or not prompt) + self.tokenizer.encode(prompt)

    def cut(self, ids: Sequence[int], room: int) -> list[int]:
        """Cuts `ids` on the left to `room` tokens, keeping a leading `</s>`, as training does (`data.batches`)."""
        if len(ids) <= room:
            return list(ids)
        leading = [self.tokenizer.eos_id] * (ids[0] == self.tokenizer.eos_id)
        return leading + list(ids[len(ids) - room + len(leading) :])

    def is_cut(self, ids: Sequence[int], answer_length: int) -> bool:
        """Whether a prompt loses its start to an answer of that length, whose last token is not read."""
        return len(ids) + answer_length > self.config.max_positions + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash that changes with any bit of any parameter; the same on every mesh."""
        with jax.set_mesh(self.mesh):
            return fingerprint(self.params)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _logits(params, tokens_BT, segment_ids_BT, positions_BT, config, dtype):
    embedding_VD = decoder.gathered_embedding(params, dtype)
    hidden_BTD = decoder.forward(
        params, tokens_BT, segment_ids_BT, positions_BT, config, embedding_VD=embedding_VD, dtype=dtype
    )
    return decoder.project_vocabulary(hidden_BTD, embedding_VD)


@functools.cache
def _replicate(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def has_separate_layers(mesh: Mesh) -> bool:
    """Whether models on this mesh have one array per layer, which decodes faster: on GPUs that run the kernels and hold
    whole layers, or the parts that `TENSOR_AXIS` gives them."""
    return mesh.devices.flat[0].platform == "gpu" and mesh.shape["fsdp"] == 1 and has_kernels()


def restarting_positions(segment_ids_BT: np.ndarray) -> np.ndarray:
    """Positions that restart at 0 in each run of equal segment ids: int32 [B, T]."""
    count_BT = np.broadcast_to(np.arange(segment_ids_BT.shape[1], dtype=np.int32), segment_ids_BT.shape)
    starts_BT = np.diff(segment_ids_BT, axis=1, prepend=-1) != 0
    return count_BT - np.maximum.accumulate(np.where(starts_BT, count_BT, 0), axis=1)
