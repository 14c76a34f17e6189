"""Answers every prompt of a ledger and writes results, samples and reports; goes on where an earlier run stopped."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import optiml_jax
from optiml_jax.evaluation import decoding, ranking
from optiml_jax.evaluation.aggregation import results, write_results
from optiml_jax.evaluation.ledger import Prompt
from optiml_jax.evaluation.report import print_report, write_reports
from optiml_jax.evaluation.samples import SampleWriter, score_sample
from optiml_jax.opt.tokenizer import join

if TYPE_CHECKING:
    from optiml_jax.model import Model


def run_evaluation(
    model: "Model",
    prompts: Sequence[Prompt],
    output_dir: Path,
    *,
    batch_rows: int = 16,
    max_new_tokens: int = 256,
    training: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Evaluates and returns `results.json`'s content.

    Args:
      batch_rows: rows computed at once; changes no score.
      training: first and last loss of the run, for the report.
    """
    settings = {
        "weights": model.source,
        "weights_fingerprint": model.fingerprint,
        "tokenizer": model.tokenizer.fingerprint,
        "bos": "</s>" if model.leading_eos else None,
        "max_new_tokens": max_new_tokens,
        "precision": str(model.dtype.__name__),
        "code_version": optiml_jax.__version__,
    }
    with SampleWriter(output_dir, prompts, settings) as writer:
        if writer.message:
            print(writer.message)
        ranked = [prompt for prompt in writer.remaining if prompt.candidates is not None]
        generated = [prompt for prompt in writer.remaining if prompt.candidates is None]
        quiet = not sys.stderr.isatty()
        with tqdm(
            total=len(prompts),
            initial=len(writer.done),
            unit="prompt",
            desc="evaluate",
            mininterval=30 if quiet else 0.5,
        ) as bar:
            for sample in _rank(model, ranked, batch_rows):
                writer.write(sample)
                bar.update()
            for sample in _generate(model, generated, batch_rows, max_new_tokens):
                writer.write(sample)
                bar.update()
        samples = writer.samples()
        found = results(
            samples,
            weights=model.source,
            tokenizer=settings["tokenizer"],
            bos=settings["bos"],
            code_version=settings["code_version"],
        )
        write_results(output_dir / "results.json", found)
        write_reports(output_dir, found, samples, training=training)
        print_report(found, samples=samples, training=training)
        writer.finish()
    return found


def _rank(model: "Model", prompts: Sequence[Prompt], batch_rows: int) -> Iterator[dict[str, Any]]:
    """Samples of the prompts with candidates, a few batches of rows at a time."""
    group = 32 * batch_rows
    for first in range(0, len(prompts), group):
        here = prompts[first : first + group]
        pairs, cut = [], []
        for prompt in here:
            before = model.prompt_ids(join(prompt.prompt, "")[0])
            answers = [model.tokenizer.encode(join(prompt.prompt, text)[1]) for text in prompt.candidates]
            pairs += [(before, answer) for answer in answers]
            cut.append(len(before) + max(map(len, answers)) > model.config.max_positions + 1)
        scores = iter(ranking.continuation_scores(model, pairs, batch_rows))
        for prompt, was_cut in zip(here, cut):
            own = [next(scores) for _ in prompt.candidates]
            best = max(range(len(own)), key=own.__getitem__)  # the first of equals
            yield score_sample(prompt, prompt.candidates[best], scores=own, prompt_cut=was_cut)


def _generate(
    model: "Model", prompts: Sequence[Prompt], batch_rows: int, max_new_tokens: int
) -> Iterator[dict[str, Any]]:
    """Samples of the prompts without candidates, a few batches at a time so that like lengths meet."""
    group = 16 * batch_rows
    for first in range(0, len(prompts), group):
        here = prompts[first : first + group]
        ids = [model.prompt_ids(join(prompt.prompt, "")[0]) for prompt in here]
        answers = decoding.greedy(model, ids, max_new_tokens, batch_rows)
        for prompt, answer in zip(here, answers):
            text = model.tokenizer.decode(answer.ids).strip()
            yield score_sample(prompt, text, truncated=answer.truncated, prompt_cut=answer.prompt_cut)
