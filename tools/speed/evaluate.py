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

from optiml_jax.common.cards import card_of
from optiml_jax.common.errors import UserError
from optiml_jax.inference import decoding, kv_cache, ranking
from optiml_jax.inference.cache_attention import PAGE, plan_reads
from optiml_jax.inference.capacity import position_bytes
from optiml_jax.inference.model import Model
from optiml_jax.inference.network import has_separate_layers
from optiml_jax.inference.paged_cache import most_pages
from optiml_jax.inference.row_cache import bucket
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import PRECISIONS, OPTConfig
from optiml_jax.model.layers import is_separate, separate
from optiml_jax.tokenizer import Tokenizer, join
from tools.speed.models import MODELS
from tools.speed.rounds import Side, interleave, row
from tools.speed.rows import EOS, FIRST_WORD, TOKENIZER

NATS = {"fp32": 1e-4, "bf16": 0.05}  # per token, by which scores of both sides may differ
STEP = "decoding step"
VLLM_MEMORY = 0.3  # of the GPU; JAX needs the rest (XLA_PYTHON_CLIENT_MEM_FRACTION=0.6)
STRETCHES = 8  # consecutive prompts of a ledger, which share prefixes as they do there
Pairs = list[tuple[list[int], list[int]]]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=MODELS, default="125m")
    parser.add_argument("--kinds", default="", help="substrings of the kinds to measure, with commas (all)")
    parser.add_argument("--ledger", default="", help="prompt ledgers, with commas (random prompts)")
    parser.add_argument("--tokenizer", default=str(TOKENIZER), help="directory or hub name (that of the samples)")
    parser.add_argument("--prompts", type=int, default=24, help="prompts of each kind (24)")
    parser.add_argument("--peer", choices=("hf", "vllm"), default="hf", help="vllm for generation alone (hf)")
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
        make = {"hf": _peer, "vllm": _vllm}[flags.peer]
        rank, generate = (None, None) if flags.no_peer else make(model, Path(directory), flags)

    results = []
    if measures_step:
        results.append(_decoding_step(model, flags))
    for name, pairs in kinds.items():
        result, actual, expected = _measure(
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
        result, actual, expected = _measure(
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
        results.append(_measure(what, functools.partial(_evaluate, model, prompts, flags.new), theirs, flags.rounds)[0])
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


def _decoding_step(model: Model, flags: argparse.Namespace) -> dict:
    """Measures steps over rows that are filled to 200 to 1,000 positions, without prompts in common."""
    config, rows = model.config, flags.rows
    rng = np.random.default_rng(flags.seed)
    longest = min(1_000, config.max_positions - kv_cache.STEPS)
    filled_B = rng.integers(longest // 5, longest, rows).astype(np.int32)
    if is_separate(model.params):
        counts = -(-(filled_B + kv_cache.STEPS) // PAGE)
        ends = np.cumsum(counts)
        reads = plan_reads([range(end - count, end) for count, end in zip(counts, ends)], most_pages(config))
        cache = kv_cache.empty_pages(int(ends[-1]), PAGE, rows, config, model.dtype)
    else:
        reads = None
        cache = kv_cache.empty(rows, bucket(longest + kv_cache.STEPS), config, model.dtype)
    no_eos, steps = -2, np.int32(kv_cache.STEPS)

    def decode() -> None:
        nonlocal cache
        cache = cache._replace(next_B=jnp.asarray(filled_B))
        left_B = np.full(rows, 10 * kv_cache.STEPS, np.int32)
        arguments = left_B, np.int32(rows), steps, None, reads, config, model.dtype, no_eos
        with jax.set_mesh(model.mesh):
            _, _, cache = jax.block_until_ready(kv_cache.decode(model.params, cache, *arguments))

    what = f"{STEP} {flags.model}: {rows} rows", "tokens/s", rows * kv_cache.STEPS
    result = _measure(what, decode, None, max(3, flags.rounds))[0]
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    cache_bytes = int(filled_B.sum()) * position_bytes(config, model.mesh, jnp.dtype(model.dtype).itemsize)
    device = model.mesh.devices.flat[0]
    card, seconds = card_of(device.device_kind), rows / result["ours"]
    floor = (weight_bytes + cache_bytes) / card.memory_bandwidth if card else None
    return result | {
        "step_seconds": seconds,
        "step_bytes": weight_bytes + cache_bytes,
        "floor_seconds": floor,
        "multiple_of_floor": floor and seconds / floor,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
    }


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
) -> tuple[dict[str, Pairs], dict[str, "Written"], dict[str, list[Any]]]:
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


def _measure(
    what: tuple[str, str, int], run: Callable[[], Any], theirs: Callable[[], Any] | None, rounds: int
) -> tuple[dict, Any, Any]:
    """Measures (name, unit, work); returns the row and the outputs of each side."""
    name, unit, work = what
    ours, side = Side("ours", run), Side("peer", theirs) if theirs else None
    interleave(ours, [side] if side else [], rounds)
    return row(name, unit, work, ours, side), ours.first, side and side.first


def _ids(rng: np.random.Generator, count: int, vocab_size: int) -> list[int]:
    return [EOS, *rng.integers(FIRST_WORD, vocab_size, count - 1).tolist()]


def _choices(
    rng: np.random.Generator,
    prompts: int,
    vocab_size: int,
    context: tuple[int, int],
    candidates: int,
    answer: tuple[int, int],
) -> Pairs:
    """Makes contexts and candidates of random lengths in the given ranges, the last excluded."""
    return [
        (ids, rng.integers(FIRST_WORD, vocab_size, rng.integers(*answer)).tolist())
        for length in rng.integers(*context, prompts)
        for ids in [_ids(rng, length, vocab_size)]
        for _ in range(candidates)
    ]


def _shots(rng: np.random.Generator, prompts: int, vocab_size: int) -> Pairs:
    """Makes prompts of five shared demonstrations, a question and four letters, as in MMLU."""
    shared = _ids(rng, 500, vocab_size)
    letters = rng.choice(np.arange(FIRST_WORD, vocab_size), 4, replace=False).tolist()
    questions = [rng.integers(FIRST_WORD, vocab_size, n).tolist() for n in rng.integers(60, 120, prompts)]
    return [(shared + question, [letter]) for question in questions for letter in letters]


KINDS: dict[str, Callable[[np.random.Generator, int, int], Pairs]] = {
    # passages, as in RACE or COSMOS QA; a sentence and two continuations, as in PIQA
    "long contexts, 5 candidates": functools.partial(_choices, context=(250, 450), candidates=5, answer=(4, 12)),
    "short contexts, 2 candidates": functools.partial(_choices, context=(8, 40), candidates=2, answer=(8, 28)),
    "5 shots, 4 letters": _shots,
}


Written = tuple[list[list[int]], list[int]]  # prompts, and the length of each answer


def _lengths(rng: np.random.Generator, prompts: int, new: int) -> list[int]:
    """Returns lengths of answers, of which most are short."""
    return np.clip(rng.geometric(min(1, 4 / new), prompts), 1, new).tolist()


def _alike(rng: np.random.Generator, prompts: int, new: int, vocab_size: int) -> Written:
    return [_ids(rng, n, vocab_size) for n in rng.integers(20, 200, prompts)], [new] * prompts


def _own(rng: np.random.Generator, prompts: int, new: int, vocab_size: int) -> Written:
    return _alike(rng, prompts, new, vocab_size)[0], _lengths(rng, prompts, new)


def _instructed(rng: np.random.Generator, prompts: int, new: int, vocab_size: int) -> Written:
    """Makes prompts of a shared definition, two shared demonstrations and an input, as in Super-NaturalInstructions."""
    shared = _ids(rng, 300, vocab_size)
    inputs = [rng.integers(FIRST_WORD, vocab_size, n).tolist() for n in rng.integers(20, 150, prompts)]
    return [shared + text for text in inputs], _lengths(rng, prompts, new)


WRITTEN: dict[str, Callable[[np.random.Generator, int, int, int], Written]] = {
    "answers of one length": _alike,
    "own answers": _own,
    "2 shots, own answers": _instructed,
}


def _peer(model: Model, directory: Path, flags: argparse.Namespace) -> tuple[Callable, Callable]:
    """Computes the harness's log-likelihoods of pairs, and transformers' greedy ids of prompts."""
    try:
        import torch
        import transformers
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise UserError(f"the peer is not installed ({error}); pip install 'lm_eval[hf]', or use --no_peer") from None
    transformers.utils.logging.disable_progress_bar()
    model.save(directory)
    torch_model = transformers.OPTForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, jnp.dtype(PRECISIONS[flags.precision]).name)
    ).eval()
    torch_model.to("cuda" if torch.cuda.is_available() else "cpu")
    vocabulary = transformers.AutoTokenizer.from_pretrained(directory)
    harness = HFLM(
        pretrained=torch_model, tokenizer=vocabulary, batch_size=flags.batch, max_length=model.config.max_positions
    )
    pad, batch = model.tokenizer.pad_id, flags.batch
    cache = {"cache_implementation": "static"} if flags.static_cache else {}

    def rank(pairs: Pairs) -> list[float]:
        requests = [((str(i), ""), before, continuation) for i, (before, continuation) in enumerate(pairs)]
        return [score for score, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)]

    @torch.no_grad()
    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for first in range(0, len(prompts), batch):
            batch_indices = order[first : first + batch]
            longest = max(len(prompts[i]) for i in batch_indices)
            rows = [[pad] * (longest - len(prompts[i])) + prompts[i] for i in batch_indices]
            mask = [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in batch_indices]
            ends = torch.tensor([longest + lengths[i] for i in batch_indices], device=torch_model.device)
            generated = torch_model.generate(
                torch.tensor(rows, device=ends.device),
                attention_mask=torch.tensor(mask, device=ends.device),
                max_new_tokens=max(lengths[i] for i in batch_indices),
                stopping_criteria=[lambda ids, _, ends=ends: ids.shape[1] >= ends],
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=EOS,
                **cache,
            )
            for i, ids in zip(batch_indices, generated[:, longest:].tolist()):
                ids = ids[: lengths[i]]
                answers[i] = ids[: ids.index(EOS)] if EOS in ids else ids
        return answers

    return rank, generate


def _vllm(model: Model, directory: Path, flags: argparse.Namespace) -> tuple[None, Callable]:
    """Computes vLLM's greedy ids of prompts, with its prefix cache; it ranks nothing here."""
    try:
        import vllm
    except ImportError as error:
        raise UserError(f"--peer=vllm is not installed ({error}); pip install vllm, or use --peer=hf") from None
    model.save(directory)
    engine = vllm.LLM(
        model=str(directory),
        dtype=jnp.dtype(PRECISIONS[flags.precision]).name,
        max_model_len=model.config.max_positions,
        gpu_memory_utilization=VLLM_MEMORY,
        enable_prefix_caching=True,
    )

    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        limits = [vllm.SamplingParams(temperature=0.0, max_tokens=length) for length in lengths]
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], limits, use_tqdm=False)
        answers = [list(output.outputs[0].token_ids) for output in outputs]
        return [ids[: ids.index(EOS)] if EOS in ids else ids for ids in answers]

    return None, generate
