"""A loaded OPT: logits, candidate scores, greedy text, export. What notebooks and evaluations use."""

import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from optiml_jax import weights
from optiml_jax.checkpoints.checkpoints import is_run, read_run
from optiml_jax.common.errors import UserError
from optiml_jax.inference import decoding, ranking
from optiml_jax.inference.network import Network
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import PRECISIONS
from optiml_jax.tokenizer import Tokenizer


class Ranked(NamedTuple):
    """Sums of log-probabilities of a prompt's candidates; their tokens as texts, with the log-probability of each;
    `prompt_cut`: the prompt lost its start to one of them."""

    scores: list[float]
    tokens: list[list[tuple[str, float]]]
    prompt_cut: bool


class Written(NamedTuple):
    """A generated text; `truncated` by the limit of tokens; `prompt_cut`: the prompt lost its start."""

    text: str
    truncated: bool
    prompt_cut: bool


class Model(Network):
    """A network that answers: candidate scores, greedy text, export."""

    def rank(self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[float]]:
        """Sum of the log-probabilities of each candidate's tokens after its prompt.

        Prompt and candidate are encoded apart and nothing is put between them: a candidate brings its own space.
        """
        return [ranked.scores for ranked in self.rank_prompts(prompts, candidates)]

    def rank_prompts(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        batch_rows: int = 8,
        names: Sequence[str] | None = None,
        given: Sequence[Sequence[int]] | None = None,
    ) -> list[Ranked]:
        """`rank`, and what else there is to know.

        Args:
          batch_rows: rows computed at once.
          names: of the prompts, for messages.
          given: of each candidate, how many characters at its start stand there without being scored.
        """
        _refuse_text(prompts, *candidates)
        if len(prompts) != len(candidates):
            raise ValueError(f"{len(prompts)} prompts and {len(candidates)} lists of candidates")
        names = list(map(_name, prompts)) if names is None else names
        given = given or [[0] * len(texts) for texts in candidates]
        asked = []
        for prompt, texts, counts in zip(prompts, candidates, given, strict=True):
            before = self.prompt_ids(prompt)
            told = ((text[:count], text[count:]) for text, count in zip(texts, counts, strict=True))
            asked.append([(before + self.tokenizer.encode(first), self.tokenizer.encode(rest)) for first, rest in told])
        of_pairs = [name for name, texts in zip(names, candidates) for _ in texts]
        found = iter(ranking.continuations(self, list(itertools.chain(*asked)), batch_rows, of_pairs))
        piece = functools.cache(lambda token: self.tokenizer.decode([token]))
        ranked = []
        for pairs in asked:
            of_prompt = [next(found) for _ in pairs]
            tokens = [
                list(zip(map(piece, answer), one.tokens.tolist(), strict=True))
                for (_, answer), one in zip(pairs, of_prompt)
            ]
            cut = any(self.is_cut(before, len(answer)) for before, answer in pairs)
            ranked.append(Ranked([one.score for one in of_prompt], tokens, cut))
        return ranked

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 256) -> list[str]:
        """Greedy continuations, each up to `</s>` or `max_new_tokens`."""
        return [written.text for written in self.generate_prompts(prompts, max_new_tokens)]

    def generate_prompts(
        self,
        prompts: Sequence[str],
        max_new_tokens: int | Sequence[int],
        stop: Sequence[Sequence[str]] | None = None,
        batch_rows: int = 16,
        names: Sequence[str] | None = None,
    ) -> list[Written]:
        """`generate`, and what else there is to know.

        Args:
          max_new_tokens: of all prompts, or of each.
          stop: of each prompt, texts of which the first to appear ends the answer, without being a part of it.
          batch_rows: prompts answered at once.
          names: of the prompts, for messages.
        """
        _refuse_text(prompts)
        names = list(map(_name, prompts)) if names is None else names
        return self.go_on(list(map(self.prompt_ids, prompts)), max_new_tokens, stop, batch_rows, names)

    def go_on(
        self,
        ids: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        stop: Sequence[Sequence[str]] | None = None,
        batch_rows: int = 16,
        names: Sequence[str] | None = None,
    ) -> list[Written]:
        """`generate_prompts` after token ids as they are; no `</s>` is added."""
        stop = [()] * len(ids) if stop is None else stop
        written = []
        for answer, ends in zip(decoding.greedy(self, ids, max_new_tokens, batch_rows, names, stop), stop):
            text = self.tokenizer.decode(answer.ids)
            end = min((place for place in map(text.find, ends) if place >= 0), default=None)
            written.append(Written(text[:end], answer.truncated and end is None, answer.prompt_cut))
        return written

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
      precision: of the computation, a name in `model.config.PRECISIONS`; parameters are float32.

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
