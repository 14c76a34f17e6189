"""A loaded OPT: logits, candidate scores, greedy text, export. What notebooks and the evaluation use."""

import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from optiml_jax.errors import UserError
from optiml_jax.evaluation import decoding, ranking
from optiml_jax.opt import decoder, sharding, weights
from optiml_jax.opt.config import OPTConfig
from optiml_jax.opt.tokenizer import Tokenizer
from optiml_jax.training.checkpoints import Checkpoints, with_shardings
from optiml_jax.training.step import PRECISIONS


class Model:
    """Parameters on a mesh, their configuration and tokenizer.

    Attributes:
      leading_eos: whether `rank` and `generate` put `</s>` before a prompt, as training did.
      source: where it came from; with `step` for a run of ours.
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
        precision: str = "fp32",
    ) -> None:
        self.config, self.params, self.tokenizer, self.mesh = config, params, tokenizer, mesh
        self.source, self.leading_eos = source, leading_eos
        self.dtype = PRECISIONS[precision]

    def logits(self, tokens_BT: np.ndarray, segment_ids_BT: np.ndarray | None = None) -> np.ndarray:
        """Next-token logits, float32 [B, T, V].

        Args:
          tokens_BT: ids as they are; no `</s>` is added.
          segment_ids_BT: 0 for padding, one positive id a document in one contiguous run; None: each row is one.
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
            return np.asarray(_logits(self.params, *batch, self.config, self.dtype))[:rows]

    def place(self, x_BT: np.ndarray) -> jax.Array:
        """An array on the mesh, rows split over (data, fsdp) and filled up with zeros to divide."""
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        x_BT = np.pad(x_BT, ((0, -len(x_BT) % parts), *((0, 0),) * (x_BT.ndim - 1)))
        return jax.device_put(x_BT, NamedSharding(self.mesh, sharding.spec("B" + "T" * (x_BT.ndim - 1))))

    def prompt_ids(self, prompt: str) -> list[int]:
        """What the model reads for a prompt."""
        return [self.tokenizer.eos_id] * self.leading_eos + self.tokenizer.encode(prompt)

    def rank(self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[float]]:
        """Sum of the log-probabilities of each candidate's tokens after its prompt.

        Prompt and candidate are encoded apart and nothing is put between them: a candidate brings its own space.
        """
        if len(prompts) != len(candidates):
            raise ValueError(f"{len(prompts)} prompts and {len(candidates)} lists of candidates")
        pairs = [
            (ids, self.tokenizer.encode(candidate))
            for prompt, texts in zip(prompts, candidates)
            for ids in [self.prompt_ids(prompt)]
            for candidate in texts
        ]
        scores = iter(ranking.continuation_scores(self, pairs))
        return [list(itertools.islice(scores, len(texts))) for texts in candidates]

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 256) -> list[str]:
        """Greedy continuations, each up to `</s>` or `max_new_tokens`."""
        generated = decoding.greedy(self, [self.prompt_ids(prompt) for prompt in prompts], max_new_tokens)
        return [self.tokenizer.decode(answer.ids) for answer in generated]

    def save(self, path: str | os.PathLike, format: str = "hf") -> None:
        """Writes the model so that `OPTForCausalLM.from_pretrained(path)` loads it.

        Raises:
          ValueError: another `format`.
        """
        if format != "hf":
            raise ValueError(f"format {format!r} is unknown; use 'hf'")
        weights.save_hf(self.params, self.config, self.tokenizer, path)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with any bit of any parameter; the same on every mesh."""
        with jax.set_mesh(self.mesh):
            return f"{int(_fold_bits(self.params)):08x}"


@functools.partial(jax.jit, static_argnums=(4, 5))
def _logits(params, tokens_BT, segment_ids_BT, positions_BT, config, dtype):
    embedding_VD = decoder.gathered_embedding(params, dtype)
    hidden_BTD = decoder.forward(
        params, tokens_BT, segment_ids_BT, positions_BT, config, embedding_VD=embedding_VD, dtype=dtype
    )
    return decoder.project_vocabulary(hidden_BTD, embedding_VD)


@jax.jit
def _fold_bits(params: dict) -> jax.Array:
    """Sums in uint32 wrap, so that their order, and with it the sharding, does not matter."""
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(params)):
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            shape = [1] * leaf.ndim
            shape[axis] = size
            bits = bits * (2 * jnp.arange(size, dtype=jnp.uint32) * (axis * 7919 + 104729) + 1).reshape(shape)
        total = total * jnp.uint32(31) + bits.sum(dtype=jnp.uint32) + jnp.uint32(number)
    return total


def restarting_positions(segment_ids_BT: np.ndarray) -> np.ndarray:
    """Positions that count from 0 in each run of equal segment ids: int32 [B, T]."""
    count_BT = np.broadcast_to(np.arange(segment_ids_BT.shape[1], dtype=np.int32), segment_ids_BT.shape)
    starts_BT = np.diff(segment_ids_BT, axis=1, prepend=-1) != 0
    return count_BT - np.maximum.accumulate(np.where(starts_BT, count_BT, 0), axis=1)


def load_model(
    source: str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    step: int | None = None,
    precision: str = "fp32",
    tokenizer: str | os.PathLike | None = None,
) -> Model:
    """Loads a model.

    Args:
      source: a MODEL_DIR of ours, a Hugging Face directory, a hub name such as facebook/opt-iml-1.3b, or a metaseq
        checkpoint.
      mesh: where its parameters go; None: the first device.
      step: which checkpoint of a MODEL_DIR; None: the latest.
      tokenizer: directory or hub name, for weights that come without one (metaseq's).
      precision: of the computation, a name in `training.step.PRECISIONS`; parameters are float32.

    Raises:
      UserError: there is no model in `source`.
    """
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    directory = Path(source)
    if (directory / "checkpoints").is_dir():
        checkpoints = Checkpoints(directory)
        number = checkpoints.latest if step is None else step
        if number is None:
            raise UserError(f"{directory}/checkpoints holds no complete checkpoint; train first")
        meta = checkpoints.meta(number)
        config = OPTConfig(**meta["model"])
        sharding.check_divides(config, mesh)
        abstract = decoder.abstract_params(config)
        like = with_shardings(abstract, sharding.parameter_shardings(abstract, mesh))
        params = checkpoints.restore_params(number, like)
        checkpoints.close()
        found, leading_eos = directory / "tokenizer", meta["settings"]["Data.leading_eos"]
        name = f"{directory} step {number}"
    else:
        path = weights.resolve(source)
        config = weights.read_config(path)
        sharding.check_divides(config, mesh)
        shardings = sharding.parameter_shardings(decoder.abstract_params(config), mesh)
        params = weights.load(path, config, shardings)
        found, leading_eos, name = path, True, str(source)
    decoder.check_params(params, config, name)
    vocabulary = Tokenizer.load(tokenizer or found)
    return Model(config, params, vocabulary, mesh, source=name, leading_eos=leading_eos, precision=precision)
