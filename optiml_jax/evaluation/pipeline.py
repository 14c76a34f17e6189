"""Evaluates a model on prompts: answers them, scores the answers, writes results and reports. Resumes if
interrupted."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import optiml_jax
from optiml_jax.common.distributed import from_first, together
from optiml_jax.common.files import exclusive
from optiml_jax.evaluation.answers import normalization
from optiml_jax.evaluation.answers.answering import answer_all
from optiml_jax.evaluation.answers.cache import AnswerStore, key
from optiml_jax.evaluation.prompts.ledger import Prompt
from optiml_jax.evaluation.reports import output
from optiml_jax.evaluation.reports.plain_text import Context
from optiml_jax.evaluation.scores.samples import score_sample
from optiml_jax.inference.model import Model

# The code that decides answers; an edit elsewhere, such as in a report, leaves them valid.
ANSWERING = (
    "model",
    "inference",
    "tokenizer.py",
    "evaluation/answers/answering.py",
    "evaluation/answers/normalization.py",
)


def run_evaluation(
    model: Model,
    prompts: Sequence[Prompt],
    output_dir: Path,
    *,
    batch_rows: int | None = None,
    max_new_tokens: int = 256,
    ranked_by: str = "sum",
    context: Context = Context(),
) -> dict[str, Any]:
    """Evaluates and returns the content of `results.json` (on the first process; {} on others).

    Every process of a distributed run must call this and answers its rows; the first one writes.

    Args:
      batch_rows: rows computed at once, None: as many as memory allows; changes no score.
      ranked_by: score that candidates are ranked by, a name in `normalization.RANKED_BY`.
      context: what the report shows in addition to the scores.

    Raises:
      UserError: another evaluation writes to `output_dir`, or the model returns NaN (the message names the prompt).
    """
    normalization.check(ranked_by, prompts)
    decisive = {  # what decides answers besides the prompts
        "weights_fingerprint": model.fingerprint,
        "tokenizer": model.tokenizer.fingerprint,
        "bos": "</s>" if model.leading_eos else None,
        "precision": str(model.dtype.__name__),
        "code": optiml_jax.code_version(*ANSWERING),
    }
    first = jax.process_index() == 0
    keys = {prompt.id: key(prompt, max_new_tokens, ranked_by) for prompt in prompts}
    with contextlib.ExitStack() as stack:
        with together():
            if first:
                stack.enter_context(exclusive(output_dir, "wait for it or choose another OUTPUT_DIR"))
                store = stack.enter_context(AnswerStore(output_dir, list(keys.values()), decisive))
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
                about = {name: value for name, value in decisive.items() if name != "code"}
                about |= {"weights": model.source, "ranked_by": ranked_by, "max_new_tokens": max_new_tokens}
                content = output.write(samples, output_dir, about | context.selection, context)
    return content
