"""The tasks in `tasks/samples/`: written for this project, in the layout of Super-NaturalInstructions."""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import GENERATE, RANK
from tasks.benchmarks import super_natural_instructions
from tasks.catalog.registry import Benchmark
from tasks.example import Record
from tasks.task import Task

NAME = "samples"
BUILT_IN = True
DIRECTORY = Path(__file__).parents[1] / "samples"
TOKENIZER = DIRECTORY / "tokenizer"
HELD_OUT_INSTANCES = 32  # held-out instances per train task


def discover(directory: Path | None, options: CacheOptions) -> Benchmark:
    """Discovers the sample tasks, or those of another `directory` in that layout."""
    return discover_folder(NAME, directory or DIRECTORY, options)


def discover_folder(benchmark_name: str, directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers a folder of small tasks as a benchmark of any name. Reads every file to tell the form of its
    answers."""
    benchmark = super_natural_instructions.discover_folder(benchmark_name, directory, options, HELD_OUT_INSTANCES)
    tasks = {name: _with_answer_format(task) for name, task in benchmark.tasks.items()}
    return dataclasses.replace(benchmark, tasks=tasks)


def _with_answer_format(task: Task) -> Task:
    records = super_natural_instructions.read(task.files[0], task.options.allow_empty_tasks)
    metric, candidates = answer_format([r.fields["outputs"] for r in records if isinstance(r, Record)])
    output_type = RANK if candidates else GENERATE
    template = dataclasses.replace(super_natural_instructions.TEMPLATE, metric=Metric(metric), output_type=output_type)
    render = functools.partial(super_natural_instructions.render, task.name, candidates=candidates)
    return dataclasses.replace(task, templates=(template,), render=render)


def answer_format(outputs: Iterable[tuple[str, ...]]) -> tuple[str, tuple[str, ...] | None]:
    """Returns metric and candidates of a task, from the references of all its instances.

    - One reference each, at most 15 different ones, on average three times or more: classification. The distinct
      outputs are ranked, "accuracy". (Upstream's own test calls fewer than 15 distinct outputs a classification task.)
    - One reference each, of at most three words in nine of ten instances: "exact_match" of generated text.
    - Everything else is free text: "rouge_l".
    """
    outputs = list(outputs)
    distinct = sorted({reference for references in outputs for reference in references})
    if not outputs or any(len(references) > 1 for references in outputs):
        return "rouge_l", None
    if len(distinct) <= 15 and len(outputs) >= 3 * len(distinct):
        return "accuracy", tuple(distinct)
    short = sum(len(reference.split()) <= 3 for (reference,) in outputs)
    return "exact_match" if short >= 0.9 * len(outputs) else "rouge_l", None
