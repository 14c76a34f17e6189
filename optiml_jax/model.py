"""A loaded OPT: logits, candidate scores, greedy text, export. What notebooks and the evaluation use."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from optiml_jax.errors import UserError
from optiml_jax.evaluation import decoding, ranking
from optiml_jax.opt import decoder, sharding, weights
from optiml_jax.opt.network import Network
from optiml_jax.opt.tokenizer import Tokenizer
from optiml_jax.training.checkpoints import is_run, read_run
from optiml_jax.training.step import PRECISIONS


class Model(Network):
    """A network that answers: candidate scores, greedy text, export."""

    def rank(self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[float]]:
        """Sum of the log-probabilities of each candidate's tokens after its prompt.

        Prompt and candidate are encoded apart and nothing is put between them: a candidate brings its own space.
        """
        _refuse_text(prompts, *candidates)
        if len(prompts) != len(candidates):
            raise ValueError(f"{len(prompts)} prompts and {len(candidates)} lists of candidates")
        pairs = [
            (ids, self.tokenizer.encode(candidate))
            for prompt, texts in zip(prompts, candidates)
            for ids in [self.prompt_ids(prompt)]
            for candidate in texts
        ]
        names = [_name(prompt) for prompt, texts in zip(prompts, candidates) for _ in texts]
        scores = iter(ranking.continuation_scores(self, pairs, names=names))
        return [list(itertools.islice(scores, len(texts))) for texts in candidates]

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 256) -> list[str]:
        """Greedy continuations, each up to `</s>` or `max_new_tokens`."""
        _refuse_text(prompts)
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        generated = decoding.greedy(self, ids, max_new_tokens, names=list(map(_name, prompts)))
        return [self.tokenizer.decode(answer.ids) for answer in generated]

    def save(self, path: str | os.PathLike, format: str = "hf") -> None:
        """Writes the model so that `OPTForCausalLM.from_pretrained(path)` loads it.

        Raises:
          ValueError: another `format`.
        """
        if format != "hf":
            raise ValueError(f"format {format!r} is unknown; use 'hf'")
        weights.save_hf(self.params, self.config, self.tokenizer, path)


def _refuse_text(*lists: Sequence[str]) -> None:
    """A text is a sequence of texts, one a character: never what was meant."""
    for one in lists:
        if isinstance(one, str):
            raise TypeError(f"expected a list of texts, got the text {_name(one)}; write [{_name(one)}]")


def _name(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:57]}...")


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
    if is_run(directory):
        config, params, meta = read_run(directory, mesh, step)
        name, found = f"{directory} step {meta['step']}", directory / "tokenizer"
        trained_with, leading_eos = (meta["settings"][key] for key in ("tokenizer", "Data.leading_eos"))
    else:
        path = weights.resolve(source)
        config = weights.read_config(path)
        sharding.check_divides(config, mesh)
        shardings = sharding.parameter_shardings(decoder.abstract_params(config), mesh)
        params = weights.load(path, config, shardings)
        found, leading_eos, name, trained_with = path, True, str(source), None
    decoder.check_params(params, config, name)
    vocabulary = Tokenizer.load(tokenizer or found)
    if trained_with not in (None, vocabulary.fingerprint):
        raise UserError(f"{tokenizer or found}: not the tokenizer that {name} was trained with")
    return Model(config, params, vocabulary, mesh, source=name, leading_eos=leading_eos, dtype=PRECISIONS[precision])
