"""Answers every prompt of a ledger and writes results, samples and reports; goes on where an earlier run stopped."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import optiml_jax
from optiml_jax.distributed import from_first, together
from optiml_jax.evaluation.aggregation import results, write_results
from optiml_jax.evaluation.ledger import Prompt
from optiml_jax.evaluation.report import print_report
from optiml_jax.evaluation.report_files import write_reports
from optiml_jax.evaluation.samples import SampleWriter, score_sample
from optiml_jax.files import exclusive
from optiml_jax.inference.model import Model
from optiml_jax.tokenizer import join


def run_evaluation(
    model: Model,
    prompts: Sequence[Prompt],
    output_dir: Path,
    *,
    batch_rows: int = 16,
    max_new_tokens: int = 256,
    training: dict[str, float] | None = None,
    coverage: Mapping[str, Any] | None = None,
    dropped: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluates and returns `results.json`'s content (on the first process, which has it; else nothing).

    Every process of a distributed run calls this and answers its rows; the first one writes.

    Args:
      batch_rows: rows computed at once; changes no score.
      training: first and last loss of the run, for the report.
      coverage: how much of each benchmark the prompts are from (`ledger.about`), for the report.
      dropped: tasks that a review took out of them, with the reason, for the report.

    Raises:
      UserError: another evaluation writes to `output_dir`, or the model gives NaN (names the prompt).
    """
    settings = {
        "weights": model.source,
        "weights_fingerprint": model.fingerprint,
        "tokenizer": model.tokenizer.fingerprint,
        "bos": "</s>" if model.leading_eos else None,
        "max_new_tokens": max_new_tokens,
        "precision": str(model.dtype.__name__),
        "code_version": optiml_jax.code_version(),
    }
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        with together():
            if first:
                stack.enter_context(exclusive(output_dir, "wait for it or choose another OUTPUT_DIR"))
                writer = stack.enter_context(SampleWriter(output_dir, prompts, settings))
                if writer.message:
                    print(writer.message)
        done = from_first(np.array([first and prompt.id in writer.done for prompt in prompts], np.int32))
        missing = {prompt.id for prompt, there in zip(prompts, done) if not there}
        quiet = not sys.stderr.isatty()
        with tqdm(
            total=len(prompts),
            initial=len(prompts) - len(missing),
            unit="prompt",
            desc="evaluate",
            mininterval=30 if quiet else 0.5,
            disable=not first,
        ) as bar:
            for group, answer in _groups(prompts, batch_rows, max_new_tokens):
                # A group is answered whole, also where a part of it is there already: the same rows, the same bits.
                if missing.isdisjoint(prompt.id for prompt in group):
                    continue
                samples = answer(model, group)
                with together():
                    for sample in samples:
                        if first and sample["id"] not in writer.done:
                            writer.write(sample)
                            bar.update()
        with together():
            context = {"training": training, "coverage": coverage, "dropped": dropped}
            found = _finish(writer, output_dir, settings, context) if first else {}
    return found


def _finish(
    writer: SampleWriter, output_dir: Path, settings: Mapping[str, Any], context: Mapping[str, Any]
) -> dict[str, Any]:
    """Results, reports and samples from the answers that are all there."""
    samples = writer.samples()
    found = results(
        samples,
        weights=settings["weights"],
        tokenizer=settings["tokenizer"],
        bos=settings["bos"],
        code_version=settings["code_version"],
    )
    write_results(output_dir / "results.json", found)
    write_reports(output_dir, found, samples, **context)
    print_report(found, samples=samples, **context)
    writer.finish()
    return found


def _groups(
    prompts: Sequence[Prompt], batch_rows: int, max_new_tokens: int
) -> Iterator[tuple[list[Prompt], Callable[[Model, list[Prompt]], list[dict[str, Any]]]]]:
    """Prompts that are answered together, and how: a few batches of rows, so that like lengths meet."""
    ranked = [prompt for prompt in prompts if prompt.candidates is not None]
    yield from _parts(ranked, 8 * batch_rows, functools.partial(_rank, batch_rows=batch_rows))
    generated = [prompt for prompt in prompts if prompt.candidates is None]
    answer = functools.partial(_generate, batch_rows=batch_rows, max_new_tokens=max_new_tokens)
    yield from _parts(generated, 8 * batch_rows, answer)


def _parts(prompts: list[Prompt], size: int, answer: Callable) -> Iterator[tuple[list[Prompt], Callable]]:
    for first in range(0, len(prompts), size):
        yield prompts[first : first + size], answer


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


def _rank(model: Model, prompts: list[Prompt], batch_rows: int) -> list[dict[str, Any]]:
    joined, gone = zip(*(_fitted(model, prompt, prompt.candidates) for prompt in prompts))
    found = model.rank_prompts(
        [pairs[0][0] for pairs in joined],
        [[answer for _, answer in pairs] for pairs in joined],
        batch_rows,
        [prompt.id for prompt in prompts],
        [_told(prompt, pairs) for prompt, pairs in zip(prompts, joined)],
    )
    samples = []
    for prompt, dropped, (scores, cut) in zip(prompts, gone, found):
        best = max(range(len(scores)), key=scores.__getitem__)  # the first of equals
        samples.append(score_sample(prompt, prompt.candidates[best], scores=scores, prompt_cut=cut, dropped=dropped))
    return samples


def _told(prompt: Prompt, pairs: Sequence[tuple[str, str]]) -> list[int]:
    """Of each candidate, with what joins it to the prompt, the characters that are not scored."""
    if not prompt.given:
        return [0] * len(pairs)
    told = zip(pairs, prompt.candidates, prompt.given)
    return [len(answer) - len(candidate) + count for (_, answer), candidate, count in told]


def _generate(model: Model, prompts: list[Prompt], batch_rows: int, max_new_tokens: int) -> list[dict[str, Any]]:
    limits = [min(prompt.max_new_tokens or max_new_tokens, max_new_tokens) for prompt in prompts]
    fitted, gone = zip(*(_fitted(model, prompt, ("",), limit + 1) for prompt, limit in zip(prompts, limits)))
    sources, stop = [pairs[0][0] for pairs in fitted], [prompt.stop for prompt in prompts]
    found = model.generate_prompts(sources, limits, stop, batch_rows, [prompt.id for prompt in prompts])
    return [
        score_sample(
            prompt, answer.text.strip(), truncated=answer.truncated, prompt_cut=answer.prompt_cut, dropped=dropped
        )
        for prompt, dropped, answer in zip(prompts, gone, found)
    ]
