"""Answers every prompt of a ledger and writes results, samples and reports; goes on where an earlier run stopped."""

import collections
import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import optiml_jax
from optiml_jax.common.distributed import from_first, together
from optiml_jax.common.files import exclusive
from optiml_jax.evaluation.answers.cache import Answer, AnswerStore, key
from optiml_jax.evaluation.answers.normalization import put_right
from optiml_jax.evaluation.prompts.ledger import Prompt
from optiml_jax.evaluation.reports.files import write_reports
from optiml_jax.evaluation.reports.plain_text import Context, print_report
from optiml_jax.evaluation.scores.aggregation import results, write_results
from optiml_jax.evaluation.scores.samples import score_sample, scored, write_samples
from optiml_jax.inference.model import Model, Ranked
from optiml_jax.tokenizer import join

GROUP = 16  # batches of rows that are answered together, so that like lengths and like starts meet, and kept together


def run_evaluation(
    model: Model,
    prompts: Sequence[Prompt],
    output_dir: Path,
    *,
    batch_rows: int = 16,
    max_new_tokens: int = 256,
    ranked_by: str = "sum",
    context: Context = Context(),
) -> dict[str, Any]:
    """Evaluates and returns `results.json`'s content (on the first process, which has it; else nothing).

    Every process of a distributed run calls this and answers its rows; the first one writes.

    Args:
      batch_rows: rows computed at once; changes no score.
      ranked_by: what candidates are ranked by, a name in `normalization.RANKED_BY`.
      context: what the report says beside the scores.

    Raises:
      UserError: another evaluation writes to `output_dir`, or the model gives NaN (names the prompt).
    """
    settings = {
        "weights": model.source,
        "weights_fingerprint": model.fingerprint,
        "tokenizer": model.tokenizer.fingerprint,
        "bos": "</s>" if model.leading_eos else None,
        "max_new_tokens": max_new_tokens,
        "ranked_by": ranked_by,
        "precision": str(model.dtype.__name__),
        "code_version": optiml_jax.code_version(),
    }
    first = jax.process_index() == 0
    keys = {prompt.id: key(prompt) for prompt in prompts}
    with contextlib.ExitStack() as stack:
        with together():
            if first:
                stack.enter_context(exclusive(output_dir, "wait for it or choose another OUTPUT_DIR"))
                store = stack.enter_context(AnswerStore(output_dir, list(keys.values()), settings))
                if store.message:
                    print(store.message)
        done = from_first(np.array([first and keys[prompt.id] in store.answers for prompt in prompts], np.int32))
        missing = {keys[prompt.id]: prompt for prompt, there in zip(prompts, done) if not there}
        quiet = not sys.stderr.isatty()
        with tqdm(
            total=len(prompts),
            initial=len(prompts) - len(missing),
            unit="prompt",
            desc="evaluate",
            mininterval=30 if quiet else 0.5,
            disable=not first,
        ) as bar:
            options = {"batch_rows": batch_rows, "max_new_tokens": max_new_tokens, "ranked_by": ranked_by}
            for group, answers in answer_all(model, list(missing.values()), **options):
                with together():
                    if first:
                        store.write({keys[prompt.id]: one for prompt, one in zip(group, answers, strict=True)})
                        bar.update(len(group))
        with together():
            found = {}
            if first:
                samples = [score_sample(prompt, **store.answers[keys[prompt.id]]) for prompt in prompts]
                found = _finish(samples, output_dir, settings, context)
    return found


def _finish(
    samples: Sequence[dict[str, Any]], output_dir: Path, settings: Mapping[str, Any], context: Context
) -> dict[str, Any]:
    """Writes results, reports and samples."""
    about = {name: settings[name] for name in ("weights", "tokenizer", "bos", "ranked_by", "code_version")}
    found = results(scored(samples), **about)
    write_results(output_dir / "results.json", found)
    write_reports(output_dir, found, samples, context)
    print_report(found, samples, context)
    write_samples(output_dir / "samples.jsonl", samples)
    return found


def answer_all(
    model: Model, prompts: Sequence[Prompt], *, batch_rows: int, max_new_tokens: int, ranked_by: str = "sum"
) -> Iterator[tuple[list[Prompt], list[Answer]]]:
    """Prompts that are answered together, and their answers; arguments as `run_evaluation`."""
    rank = functools.partial(_rank, batch_rows=batch_rows, ranked_by=ranked_by)
    generate = functools.partial(_generate, batch_rows=batch_rows, max_new_tokens=max_new_tokens)
    for answer, alike in (
        (rank, [prompt for prompt in prompts if prompt.candidates is not None]),
        (generate, [prompt for prompt in prompts if prompt.candidates is None]),
    ):
        for first in range(0, len(alike), GROUP * batch_rows):
            group = alike[first : first + GROUP * batch_rows]
            yield group, answer(model, group)


def _fitted(model: Model, prompt: Prompt, answers: Sequence[str], tokens: int = 0) -> tuple[list[tuple[str, str]], int]:
    """The prompt as it meets each answer, without the demonstrations that the model has no room for, and how many went.

    Args:
      tokens: room to keep beside the longest answer.
    """
    for gone in range(len(prompt.demonstration_spans) + 1):
        text = prompt.without(gone)
        pairs = [join(text, answer, prompt.separator) for answer in answers]
        if gone == len(prompt.demonstration_spans):  # the last try: what is still too long is cut
            break
        longest = max(len(model.tokenizer.encode(answer)) for _, answer in pairs)
        if not model.is_cut(model.prompt_ids(pairs[0][0]), longest + tokens):
            break
    return pairs, gone


def _rank(model: Model, prompts: list[Prompt], batch_rows: int, ranked_by: str = "sum") -> list[Answer]:
    fitted = [_fitted(model, prompt, prompt.candidates) for prompt in prompts]
    told = [_told(prompt, pairs) for prompt, (pairs, _) in zip(prompts, fitted)]
    wrong = [_unrankable(model, prompt, pairs, of) for prompt, (pairs, _), of in zip(prompts, fitted, told)]
    asked = [i for i, reason in enumerate(wrong) if reason is None]

    def rank(sources: list[str]) -> list[Ranked]:
        return model.rank_prompts(
            sources,
            [[answer for _, answer in fitted[i][0]] for i in asked],
            batch_rows,
            [prompts[i].id for i in asked],
            [told[i] for i in asked],
        )

    ranked = rank([fitted[i][0][0][0] for i in asked])
    alone = rank([""] * len(asked)) if ranked_by == "unconditional" else []
    texts = [[text[count:] for text, count in zip(prompts[i].candidates, _given(prompts[i]))] for i in asked]
    scores = put_right(ranked_by, ranked, texts, alone)
    found = {}
    for i, of_prompt, (_, tokens, cut) in zip(asked, scores, ranked):
        best = max(range(len(of_prompt)), key=of_prompt.__getitem__)  # the first of equals
        found[i] = {
            "prediction": prompts[i].candidates[best],
            "scores": of_prompt,
            "token_scores": [[[piece, round(score, 4)] for piece, score in of_one] for of_one in tokens],
            "prompt_cut": cut,
            "dropped": fitted[i][1],
            "remark": _doubled(prompts[i].candidates),
        }
    return [found.get(i, {"prediction": None, "remark": reason}) for i, reason in enumerate(wrong)]


def _given(prompt: Prompt) -> Sequence[int]:
    """Of each candidate, the characters that are told."""
    return prompt.given or (0,) * len(prompt.candidates)


def _told(prompt: Prompt, pairs: Sequence[tuple[str, str]]) -> list[int]:
    """Of each candidate, with what joins it to the prompt, the characters that are not scored."""
    if not prompt.given:
        return [0] * len(pairs)
    return [
        len(answer) - len(candidate) + count
        for (_, answer), candidate, count in zip(pairs, prompt.candidates, prompt.given, strict=True)
    ]


def _unrankable(model: Model, prompt: Prompt, pairs: Sequence[tuple[str, str]], told: Sequence[int]) -> str | None:
    """Why a prompt's candidates have no scores."""
    for (_, answer), candidate, count in zip(pairs, prompt.candidates, told):
        if not candidate.strip():
            return "a candidate is empty"
        if (tokens := len(model.tokenizer.encode(answer[count:]))) > model.config.max_positions:
            return f"a candidate of {tokens} tokens, longer than the model's {model.config.max_positions} positions"
    return None


def _doubled(candidates: Sequence[str]) -> str | None:
    twice = [text for text, count in collections.Counter(candidates).items() if count > 1]
    return f"candidate {twice[0]!r} stands there twice" if twice else None


def _generate(model: Model, prompts: list[Prompt], batch_rows: int, max_new_tokens: int) -> list[Answer]:
    limits = [min(prompt.max_new_tokens or max_new_tokens, max_new_tokens) for prompt in prompts]
    fitted, gone = zip(*(_fitted(model, prompt, ("",), limit + 1) for prompt, limit in zip(prompts, limits)))
    sources, stop = [pairs[0][0] for pairs in fitted], [prompt.stop for prompt in prompts]
    found = model.generate_prompts(sources, limits, stop, batch_rows, [prompt.id for prompt in prompts])
    return [
        {
            "prediction": written.text.strip(),
            "truncated": written.truncated,
            "prompt_cut": written.prompt_cut,
            "dropped": dropped,
        }
        for dropped, written in zip(gone, found)
    ]
