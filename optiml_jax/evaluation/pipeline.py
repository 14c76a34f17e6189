"""Evaluates a model on prompts: answers them, scores the answers, writes results and reports. Resumes if
interrupted."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import optiml_jax
from optiml_jax.common.distributed import from_first, together
from optiml_jax.common.files import exclusive
from optiml_jax.evaluation.answers.answering import answer_all
from optiml_jax.evaluation.answers.cache import AnswerStore, key
from optiml_jax.evaluation.prompts.ledger import Prompt
from optiml_jax.evaluation.reports.files import write_reports
from optiml_jax.evaluation.reports.plain_text import Context, print_report
from optiml_jax.evaluation.scores.aggregation import results, write_results
from optiml_jax.evaluation.scores.samples import score_sample, scored, write_samples
from optiml_jax.inference.model import Model


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
    """Evaluates and returns the content of `results.json` (on the first process; {} on others).

    Every process of a distributed run must call this and answers its rows; the first one writes.

    Args:
      batch_rows: rows computed at once; changes no score.
      ranked_by: score that candidates are ranked by, a name in `normalization.RANKED_BY`.
      context: what the report shows in addition to the scores.

    Raises:
      UserError: another evaluation writes to `output_dir`, or the model returns NaN (the message names the prompt).
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
        answered = from_first(np.array([first and keys[prompt.id] in store.answers for prompt in prompts], np.int32))
        missing = {keys[prompt.id]: prompt for prompt, done in zip(prompts, answered) if not done}
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
                        pairs = zip(group, answers, strict=True)
                        store.write({keys[prompt.id]: answer for prompt, answer in pairs})
                        bar.update(len(group))
        with together():
            content = {}
            if first:
                samples = [score_sample(prompt, **store.answers[keys[prompt.id]]) for prompt in prompts]
                content = _write(samples, output_dir, settings, context)
    return content


def _write(
    samples: Sequence[dict[str, Any]], output_dir: Path, settings: Mapping[str, Any], context: Context
) -> dict[str, Any]:
    """Writes results, reports and samples; prints the report."""
    identity = {name: settings[name] for name in ("weights", "tokenizer", "bos", "ranked_by", "code_version")}
    content = results(scored(samples), **identity)
    write_results(output_dir / "results.json", content)
    write_reports(output_dir, content, samples, context)
    print_report(content, samples, context)
    write_samples(output_dir / "samples.jsonl", samples)
    return content
