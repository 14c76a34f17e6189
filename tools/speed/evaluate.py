"""`evaluate`: ranking, compared with lm-evaluation-harness's Hugging Face backend, and greedy generation, compared with
`generate`.

All sides have the same weights. Contexts and candidates are random ids with the lengths of real suites. Each answer
ends at its own length, as `</s>` would end it; a batch of the peer ends with its longest answer. The optimizations of
the harness are on: it sorts requests by length and scores the one-token candidates of a context in one call. This
project computes as many rows at once as an evaluation would. `--ledger` uses real prompts instead, and measures a whole
evaluation too, from texts to the report. A decoding step is compared with the time that its bytes take at least.
"""

import argparse
import contextlib
import functools
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.inference import decoding, ranking
from optiml_jax.inference.model import Model
from optiml_jax.inference.network import has_separate_layers
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import PRECISIONS, OPTConfig
from optiml_jax.model.layers import separate
from optiml_jax.tokenizer import Tokenizer, join
from tools.speed.answering_peers import hugging_face, vllm_engine
from tools.speed.decoding_step import STEP, measure_step
from tools.speed.models import MODELS
from tools.speed.prompts import KINDS, WRITTEN, Pairs, Written
from tools.speed.rounds import measure
from tools.speed.rows import EOS, TOKENIZER

NATS = {"fp32": 1e-4, "bf16": 0.05}  # per token, by which scores of both sides may differ
STRETCHES = 8  # consecutive prompts of a ledger, which share prefixes as they do there
PEERS = {"hf": hugging_face, "vllm": vllm_engine}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=MODELS, default="125m")
    parser.add_argument("--kinds", default="", help="substrings of the kinds to measure, with commas (all)")
    parser.add_argument("--ledger", default="", help="prompt ledgers, with commas (random prompts)")
    parser.add_argument("--tokenizer", default=str(TOKENIZER), help="directory or hub name (that of the samples)")
    parser.add_argument("--prompts", type=int, default=24, help="prompts of each kind (24)")
    parser.add_argument("--peer", choices=PEERS, default="hf", help="vllm for generation alone (hf)")
    parser.add_argument(
        "--static_cache", action="store_true", help="a static cache for hf, with which it compiles on a GPU"
    )
    parser.add_argument("--batch", type=int, default=16, help="rows per batch of the peer (16)")
    parser.add_argument("--rows", type=int, default=64, help="rows of the decoding step that is measured (64)")
    parser.add_argument("--new", type=int, default=64, help="maximum tokens of a generated answer (64)")


def compare(flags: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """Returns one row per kind of prompt."""
    config = MODELS[flags.model]
    rng = np.random.default_rng(flags.seed)
    vocabulary = Tokenizer.load(flags.tokenizer)
    if flags.ledger:
        if vocabulary.vocab_size > config.vocab_size:
            raise UserError(f"--tokenizer={flags.tokenizer} has more words than the model's {config.vocab_size}")
        kinds, written, ledgers = _of_ledgers(flags.ledger.split(","), flags, vocabulary, config.max_positions)
    else:
        ledgers = {}
        kinds = {name: kind(rng, flags.prompts, config.vocab_size) for name, kind in _chosen(KINDS, flags.kinds)}
        written = {
            name: kind(rng, flags.prompts, flags.new, config.vocab_size) for name, kind in _chosen(WRITTEN, flags.kinds)
        }
    measures_step = any(part in STEP for part in flags.kinds.split(","))
    if not kinds and not written and not measures_step:
        raise UserError(f"--kinds={flags.kinds} matches none of: {'; '.join([STEP, *KINDS, *WRITTEN])}")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    dtype = PRECISIONS[flags.precision]
    params = _random_params(config, dtype, flags.seed)
    if has_separate_layers(mesh):
        params = separate(params)
    model = Model(config, params, vocabulary, mesh, source="random", dtype=dtype)
    with tempfile.TemporaryDirectory() as directory:
        rank, generate = (None, None) if flags.no_peer else PEERS[flags.peer](model, Path(directory), flags)

    results = []
    if measures_step:
        results.append(measure_step(model, flags))
    for name, pairs in kinds.items():
        result, actual, expected = measure(
            (f"rank {flags.model}: {name}", "candidates/s", len(pairs)),
            lambda pairs=pairs: [c.score for c in ranking.continuations(model, pairs)],
            rank and functools.partial(rank, pairs),
            flags.rounds,
        )
        if rank:
            error = np.max(np.abs(np.subtract(actual, expected)) / [len(continuation) for _, continuation in pairs])
            result |= {"difference": float(error), "exact": bool(error < NATS[flags.precision])}
        results.append(result)
    for name, (sources, lengths) in written.items():
        result, actual, expected = measure(
            (f"generate {flags.model}: {name}", "prompts/s", len(sources)),
            lambda sources=sources, lengths=lengths: [
                answer.ids for answer in decoding.decode(model, sources, lengths)
            ],
            generate and functools.partial(generate, sources, lengths),
            flags.rounds,
        )
        if generate:  # in bfloat16, rounding decides between tokens that are almost equally likely
            same = sum(map(list.__eq__, actual, expected)) / len(actual)
            result |= {"same_answers": same, "exact": same == 1 if flags.precision == "fp32" else None}
        results.append(result)
    for name, prompts in ledgers.items():
        what = f"evaluate {flags.model}: {name}", "prompts/s", len(prompts)
        can_answer = generate and (rank or all(prompt.candidates is None for prompt in prompts))
        theirs = functools.partial(_answer_with_peer, prompts, vocabulary, flags.new, rank, generate)
        theirs = theirs if can_answer else None
        results.append(measure(what, functools.partial(_evaluate, model, prompts, flags.new), theirs, flags.rounds)[0])
    floors = [row for row in results if row.get("multiple_of_floor")]
    return results, [
        *(
            f"a decoding step takes {1e3 * row['step_seconds']:.2f} ms, {row['multiple_of_floor']:.1f} times as long "
            f"as reading its {row['step_bytes'] / 1e9:.2f} GB at the card's bandwidth"
            for row in floors
        ),
        f"{flags.prompts} prompts of each kind at most, {flags.precision}, batches of {flags.batch} for the peer; "
        f"exact: within {NATS[flags.precision]} nats per token, or in fp32 the same text",
    ]


def _evaluate(model: Model, prompts: Sequence[Any], new: int) -> None:
    """Evaluates the prompts in a folder of its own, where no answer is stored yet."""
    from optiml_jax.evaluation.pipeline import run_evaluation

    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        run_evaluation(model, prompts, Path(directory), max_new_tokens=new)


def _answer_with_peer(
    prompts: Sequence[Any], vocabulary: Tokenizer, new: int, rank: Callable, generate: Callable
) -> None:
    """Lets the peer encode, rank and generate the answers to the prompts, without scoring them."""
    joined = [[join(prompt.prompt, text, prompt.separator) for text in prompt.candidates or [""]] for prompt in prompts]
    encoded = [[([EOS, *vocabulary.encode(a)], vocabulary.encode(b)) for a, b in pairs] for pairs in joined]
    pairs = [pair for prompt, pairs in zip(prompts, encoded) if prompt.candidates for pair in pairs]
    sources = [pairs[0][0] for prompt, pairs in zip(prompts, encoded) if not prompt.candidates]
    if pairs:
        rank(pairs)
    if sources:
        for ids in generate(sources, [new] * len(sources)):
            vocabulary.decode(ids)


def _random_params(config: OPTConfig, dtype: jnp.dtype, seed: int) -> dict:
    """Random weights as `load_model` would place them."""
    like = decoder.abstract_params(config, dtype)

    @jax.jit
    def create(key: jax.Array) -> dict:
        return jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), decoder.init_params(key, config), like)

    return create(jax.random.key(seed))


def _chosen(kinds: dict[str, Callable], parts: str) -> list[tuple[str, Callable]]:
    return [(name, kind) for name, kind in kinds.items() if any(part in name for part in parts.split(","))]


def _of_ledgers(
    paths: list[str], flags: argparse.Namespace, vocabulary: Tokenizer, positions: int
) -> tuple[dict[str, Pairs], dict[str, Written], dict[str, list[Any]]]:
    """Selects prompts of each ledger in evenly spaced runs; prompts too long for the model are left out.

    Returns:
      Ids to rank and ids to continue, and the prompts of both, by the names of the ledgers.
    """
    from optiml_jax.evaluation.prompts.ledger import (
        read_ledger,  # imports scoring libraries, which the rest of this file does not need
    )

    kinds, written, ledgers = {}, {}, {}
    for path in paths:
        name, prompts = Path(path).stem, read_ledger(path)
        pairs, sources, fitting = [], [], []
        length = -(-flags.prompts // STRETCHES)
        starts = np.linspace(0, max(0, len(prompts) - length), STRETCHES).astype(int).tolist()
        chosen = sorted({i for start in starts for i in range(start, min(start + length, len(prompts)))})
        for prompt in (prompts[i] for i in chosen[: flags.prompts]):
            joined = [join(prompt.prompt, answer, prompt.separator) for answer in prompt.candidates or [""]]
            ids = [([EOS, *vocabulary.encode(before)], vocabulary.encode(answer)) for before, answer in joined]
            if max(len(before) + len(answer) for before, answer in ids) > positions - flags.new:
                continue
            fitting.append(prompt)
            if prompt.candidates is None:
                sources.append(ids[0][0])
            else:
                pairs += ids
        if pairs:
            kinds[f"{name}, candidates"] = pairs
        if sources:
            written[f"{name}, answers"] = sources, [flags.new] * len(sources)
        ledgers[f"{name}, end to end"] = fitting
    return kinds, written, ledgers
