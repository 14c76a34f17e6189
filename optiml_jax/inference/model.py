"""A loaded OPT model with candidate scores, generation and export, for notebooks and evaluations."""

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from optiml_jax import chat, weights
from optiml_jax.checkpoints.runs import is_run, read_run, read_run_config
from optiml_jax.common import paths
from optiml_jax.common.errors import UserError, check_known
from optiml_jax.inference import decoding, ranking
from optiml_jax.inference.network import Network, has_separate_layers
from optiml_jax.inference.placement import Axes, choose_mesh
from optiml_jax.inference.precision import AUTO, NAMES, dtype_on
from optiml_jax.inference.prefix_sharing import PackedRows
from optiml_jax.inference.sampling import Sampling
from optiml_jax.model import decoder, sharding
from optiml_jax.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # in a decoded text, for bytes that are not yet a whole character


class Ranked(NamedTuple):
    """Scores of a prompt's candidates.

    Attributes:
      scores: sum of log-probabilities of each candidate.
      tokens: the tokens of each candidate as texts, with their log-probabilities.
      prompt_cut: whether the prompt lost its start to fit a candidate.
    """

    scores: list[float]
    tokens: list[list[tuple[str, float]]]
    prompt_cut: bool


class PreparedRanking(NamedTuple):
    """Prompts and candidates, encoded and laid out.

    Attributes:
      pairs: of each prompt, the ids before and the ids of every candidate.
      names: of all pairs, for messages.
      batches: of all pairs.
    """

    pairs: list[list[tuple[list[int], list[int]]]]
    names: list[str]
    batches: list[PackedRows]


class Generated(NamedTuple):
    """A generated text; `truncated` by the token limit; `prompt_cut`: the prompt lost its start."""

    text: str
    truncated: bool
    prompt_cut: bool


class Model(Network):
    """A network that ranks candidates, generates text and exports itself."""

    def rank(self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[float]]:
        """Returns the sum of the log-probabilities of each candidate's tokens after its prompt.

        Prompt and candidate are encoded separately and joined as they are: a candidate brings its own leading space.
        """
        return [ranked.scores for ranked in self.rank_prompts(prompts, candidates)]

    def rank_prompts(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        batch_rows: int | None = None,
        names: Sequence[str] | None = None,
        given: Sequence[Sequence[int]] | None = None,
    ) -> list[Ranked]:
        """Like `rank`, with the log-probability of every token.

        Args:
          batch_rows: rows computed at once; None: as many as memory allows.
          names: of the prompts, for messages.
          given: for each candidate, the length in characters of a prefix that is read but not scored.
        """
        return self.rank_prepared(self.prepare_ranking(prompts, candidates, batch_rows, names, given))

    def prepare_ranking(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        batch_rows: int | None = None,
        names: Sequence[str] | None = None,
        given: Sequence[Sequence[int]] | None = None,
    ) -> "PreparedRanking":
        """The part of `rank_prompts` that uses no device; a thread may prepare prompts while others are ranked."""
        _refuse_text(prompts, *candidates)
        if len(prompts) != len(candidates):
            raise ValueError(f"{len(prompts)} prompts and {len(candidates)} lists of candidates")
        names = list(map(_name, prompts)) if names is None else names
        given = given or [[0] * len(texts) for texts in candidates]
        pairs = []  # of each prompt: ids before and ids of each continuation
        for prompt, texts, counts in zip(prompts, candidates, given, strict=True):
            before = self.prompt_ids(prompt)
            split = ((text[:count], text[count:]) for text, count in zip(texts, counts, strict=True))
            pairs.append(
                [(before + self.tokenizer.encode(first), self.tokenizer.encode(rest)) for first, rest in split]
            )
        pair_names = [name for name, texts in zip(names, candidates) for _ in texts]
        return PreparedRanking(pairs, pair_names, ranking.batches(self, list(itertools.chain(*pairs)), batch_rows))

    def rank_prepared(self, prepared: "PreparedRanking") -> list[Ranked]:
        """The part of `rank_prompts` that uses the device."""
        scored = iter(ranking.score(self, prepared.batches, prepared.names))
        token_text = functools.cache(lambda token: self.tokenizer.decode([token]))
        ranked = []
        for prompt_pairs in prepared.pairs:
            continuations = [next(scored) for _ in prompt_pairs]
            tokens = [
                list(zip(map(token_text, ids), continuation.log_probabilities.tolist(), strict=True))
                for (_, ids), continuation in zip(prompt_pairs, continuations)
            ]
            cut = any(self.is_cut(before, len(ids)) for before, ids in prompt_pairs)
            ranked.append(Ranked([continuation.score for continuation in continuations], tokens, cut))
        return ranked

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Continuations, each up to `</s>`, a text in `stop` or `max_new_tokens`.

        Args:
          temperature: 0 takes the most likely tokens (greedy decoding); otherwise tokens are drawn from the logits
            divided by it.
          top_p: only the most likely tokens whose probabilities sum to it are drawn (nucleus sampling).
          seed: another seed draws other texts. Equal prompts of a list are drawn independently of each other.
          stop: texts that end a continuation and are excluded from it.
        """
        sampling = [Sampling(temperature, top_p, seed, index) for index in range(len(prompts))]
        stops = [stop] * len(prompts)
        return [
            generated.text for generated in self.generate_prompts(prompts, max_new_tokens, stops, sampling=sampling)
        ]

    def chat(self, messages: Sequence[dict[str, str]], **options: Any) -> str:
        """The next message of the assistant, of at most 256 tokens unless `options` say otherwise.

        Args:
          messages: with "role" ("system", "user", "assistant" or "tool") and "content".
          options: max_new_tokens, temperature, top_p and seed, as in `generate`.

        Raises:
          UserError: a role is unknown.
        """
        return chat.trim(self.generate([chat.prompt_of(messages)], stop=chat.STOPS, **options)[0])

    def instruct(self, instruction: str, text: str = "", **options: Any) -> str:
        """The answer to an instruction.

        Args:
          text: what the instruction is about.
          options: as in `chat`.
        """
        return chat.trim(self.generate([chat.instruction_prompt(instruction, text)], **options)[0])

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        steps: int = 4,
    ) -> Iterator[str]:
        """Yields the continuation of a prompt piece by piece, as it is generated; arguments as in `generate`.

        The pieces, joined, are the text that `generate` returns for this prompt alone.

        Args:
          steps: tokens per piece at most. A character that several tokens encode is yielded whole.
        """
        _refuse_list(prompt)
        sampling = Sampling(temperature, top_p, seed)
        yield from chat.until_stop(self._pieces(self.prompt_ids(prompt), max_new_tokens, sampling, steps), stop)

    def _pieces(self, ids: Sequence[int], max_new_tokens: int, sampling: Sampling, steps: int) -> Iterator[str]:
        """Yields the text of an answer as its tokens are generated, whole characters at a time."""
        text, yielded = "", 0
        for answer in decoding.stream(self, ids, max_new_tokens, steps, sampling):
            text = self.tokenizer.decode(answer.ids)
            whole = len(text.rstrip(REPLACEMENT))
            if whole > yielded:
                yield text[yielded:whole]
                yielded = whole
        if len(text) > yielded:
            yield text[yielded:]

    def generate_prompts(
        self,
        prompts: Sequence[str],
        max_new_tokens: int | Sequence[int],
        stop: Sequence[Sequence[str]] | None = None,
        batch_rows: int | None = None,
        names: Sequence[str] | None = None,
        sampling: Sequence[Sampling] | None = None,
    ) -> list[Generated]:
        """Like `generate`, with how each text ended.

        Args:
          max_new_tokens: one for all prompts, or one per prompt.
          stop: for each prompt, texts that end the answer and are excluded from it.
          batch_rows: prompts answered at once; None: as many as memory allows.
          names: of the prompts, for messages.
          sampling: of each prompt; None takes the most likely tokens.
        """
        _refuse_text(prompts)
        names = list(map(_name, prompts)) if names is None else names
        ids = list(map(self.prompt_ids, prompts))
        return self.generate_from_ids(ids, max_new_tokens, stop, batch_rows, names, sampling)

    def generate_from_ids(
        self,
        ids: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        stop: Sequence[Sequence[str]] | None = None,
        batch_rows: int | None = None,
        names: Sequence[str] | None = None,
        sampling: Sequence[Sampling] | None = None,
    ) -> list[Generated]:
        """Like `generate_prompts`, from token ids as they are; no `</s>` is added."""
        stop = [()] * len(ids) if stop is None else stop
        if any("" in ends for ends in stop):
            raise UserError("an empty text in `stop` would end every answer at once; leave it out")
        answers = decoding.decode(self, ids, max_new_tokens, batch_rows, names, stop, sampling)
        return [self.generated(answer, ends) for answer, ends in zip(answers, stop)]

    def generated(self, answer: decoding.Answer, stop: Sequence[str]) -> Generated:
        """The text of an answer, up to the first of the texts in `stop`."""
        text = self.tokenizer.decode(answer.ids)
        end = min((index for index in map(text.find, stop) if index >= 0), default=None)
        return Generated(text[:end], answer.truncated and end is None, answer.prompt_cut)

    def save(self, path: str | os.PathLike, format: str = "hf") -> None:
        """Writes the model, in its precision, so that `OPTForCausalLM.from_pretrained(path)` loads it.

        Raises:
          ValueError: `format` is not "hf".
        """
        if format != "hf":
            raise ValueError(f"format {format!r} is unknown; use 'hf'")
        weights.save_hf(self.params, self.config, self.tokenizer, path)


def _refuse_text(*lists: Sequence[str]) -> None:
    """Refuses a string in place of a list of strings: iterating over it would yield its characters."""
    for texts in lists:
        if isinstance(texts, str):
            raise TypeError(f"expected a list of texts, got the text {_name(texts)}; write [{_name(texts)}]")


def _refuse_list(prompt: str) -> None:
    if not isinstance(prompt, str):
        raise TypeError(f"expected one text, got {type(prompt).__name__}; stream prompts one after another")


def _name(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:57]}...")


def load_model(
    source: str | os.PathLike,
    *,
    mesh: Mesh | Axes | None = None,
    step: int | None = None,
    precision: str = AUTO,
    tokenizer: str | os.PathLike | None = None,
) -> Model:
    """Loads a model.

    Args:
      source: a MODEL_DIR of a training run, a Hugging Face directory, a hub name such as facebook/opt-iml-1.3b, or a
        metaseq checkpoint.
      mesh: devices for the parameters; `Axes`: over all devices; None: the first device.
      step: which checkpoint of a MODEL_DIR; None: the latest.
      tokenizer: directory or hub name, for weights without a tokenizer (metaseq's).
      precision: in which the model computes, and in which its weights are in memory: "fp32", "bf16", "fp16", or "auto"
        (bf16 on GPUs, fp32 on CPUs). Layer norms, logits and log-probabilities are always float32.

    Raises:
      UserError: `source` holds no model, or `precision` is unknown.
    """
    check_known("precision", precision, NAMES)
    source, tokenizer = paths.local("weights", source), paths.local("tokenizer", tokenizer)
    directory = Path(source)
    path = directory if is_run(directory) else weights.resolve(source)
    config = read_run_config(path, step)[0] if is_run(directory) else weights.read_config(path)
    dtype = dtype_on(jax.devices()[0] if mesh is None or isinstance(mesh, Axes) else mesh.devices.flat[0], precision)
    if mesh is None:
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
    elif isinstance(mesh, Axes):
        mesh = choose_mesh(config, dtype, mesh)
    separate = has_separate_layers(mesh)
    if is_run(directory):
        config, params, meta = read_run(directory, mesh, step, dtype, separate)
        name, tokenizer_source = f"{directory} step {meta['step']}", directory / "tokenizer"
        trained_with, leading_eos = (meta["settings"][key] for key in ("tokenizer", "Data.leading_eos"))
    else:
        sharding.check_divides(config, mesh)
        shardings = sharding.parameter_shardings(decoder.abstract_params(config), mesh)
        params = weights.load(path, config, shardings, dtype, separate)
        tokenizer_source, leading_eos = weights.tokenizer_source(path), True
        name, trained_with = str(source), None
    decoder.check_params(params, config, name)
    vocabulary = Tokenizer.load(tokenizer or tokenizer_source)
    if trained_with not in (None, vocabulary.fingerprint):
        raise UserError(f"{tokenizer or tokenizer_source}: not the tokenizer that {name} was trained with")
    return Model(config, params, vocabulary, mesh, source=name, leading_eos=leading_eos, dtype=dtype)
