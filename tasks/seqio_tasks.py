"""Registers the tasks and mixtures in seqio: same texts, tokens and rates as in the token store.

`import tasks.seqio_tasks` registers all of them, as t5x's MIXTURE_OR_TASK_MODULE requires. `OPTIML_DATA_DIR` is the
folder with one folder per benchmark, `OPTIML_TOKENIZER` the tokenizer; or call `use_data_dir(folder, tokenizer=...)`.
The samples need neither. `to_seqio` makes a seqio mixture from a cached one.

seqio is the interface that users know: `get_dataset`, mixtures, metric functions, its Evaluator. Training does not read
through it, because its online path tokenizes each example separately in TensorFlow, and its packer treats id 0 as
padding.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from optiml_jax.common.errors import UserError
from optiml_jax.data.specification import DEFAULTS, REFUSE, CacheOptions
from optiml_jax.evaluation.metrics import Metric
from tasks.benchmarks import samples
from tasks.catalog import mixtures, registry
from tasks.catalog.mixtures import Mixture
from tasks.catalog.registry import Benchmark, MissingError
from tasks.example import Example
from tasks.prompting.subsampling import Pool, examples
from tasks.seqio.store import to_seqio as to_seqio
from tasks.seqio.vocabulary import OptVocabulary
from tasks.task import Task

SIGNATURE = {
    "inputs": tf.TensorSpec((), tf.string),
    "targets": tf.TensorSpec((), tf.string),
    "id": tf.TensorSpec((), tf.string),
    "references": tf.TensorSpec((None,), tf.string),
    "candidates": tf.TensorSpec((None,), tf.string),  # empty where the answer is generated
}
_registered: tuple[list[str], list[str]] = ([], [])  # names of registered tasks and mixtures


def use_data_dir(
    data_dir: str | os.PathLike | None,
    tokenizer: str | os.PathLike | None = None,
    options: CacheOptions = DEFAULTS,
) -> None:
    """Registers every task and mixture again. Tasks of benchmarks missing from `data_dir` come from the catalog, and
    raise an error when they are read.

    Args:
      data_dir: one folder per benchmark.
      tokenizer: of all benchmarks except the samples, which have their own: a directory or a hub name.
      options: with `missing_benchmarks="leave_out"`, mixtures leave out missing benchmarks.

    Raises:
      UserError: `data_dir` is given and is not a folder.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UserError(f"DATA_DIR: {data_dir} is not a folder; it must contain one folder per benchmark")
    vocabularies = {samples.NAME: OptVocabulary(samples.TOKENIZER)}
    shared = OptVocabulary(tokenizer)
    available: dict[str, Benchmark] = {}
    for benchmark in registry.benchmark_names():
        if registry.built_in(benchmark) or (data_dir is not None and (Path(data_dir) / benchmark).is_dir()):
            with contextlib.suppress(MissingError):
                available[benchmark] = registry.discover(benchmark, data_dir, options)
    benchmarks = {
        name: available[name] if name in available else registry.without_data(name)
        for name in registry.benchmark_names()
    }

    for added, registered in zip(_registered, (seqio.TaskRegistry, seqio.MixtureRegistry)):
        while added:
            registered.remove(added.pop())
    for benchmark_ in benchmarks.values():
        for task in benchmark_.tasks.values():
            add_task(task, vocabularies.get(task.benchmark, shared))
    mixed = benchmarks if options.missing_benchmarks == REFUSE else available
    for mixture in map(mixtures.mixture, mixtures.names()):
        add_mixture(mixture, mixed)


def add_task(task: Task, vocabulary: OptVocabulary) -> seqio.Task:
    """Registers one task. Targets end in `</s>`; inputs have no special tokens."""
    _registered[0].append(task.name)
    return seqio.TaskRegistry.add(
        task.name,
        source=TaskSource(task),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={
            "inputs": seqio.Feature(vocabulary, add_eos=False),
            "targets": seqio.Feature(vocabulary, add_eos=True),
        },
        postprocess_fn=postprocess,
        metric_fns=[metric_fn(metric) for metric in dict.fromkeys(template.metric for template in task.templates)],
    )


def add_mixture(mixture: Mixture, benchmarks: Mapping[str, Benchmark]) -> None:
    """Registers a mixture: capped rates within a benchmark, and its proportions over parts named MIXTURE:BENCHMARK."""
    rate = functools.partial(seqio.mixing_rate_num_examples, maximum=mixture.eps)
    parts = {
        name: [(task.name, rate) for task in mixture.tasks(benchmarks[name])]
        for name in mixture.benchmarks
        if name in benchmarks
    }
    if mixture.proportions is None:
        _add(mixture.name, [part for pairs in parts.values() for part in pairs])
        return
    for name, pairs in parts.items():
        _add(f"{mixture.name}:{name}", pairs)
    _add(
        mixture.name, [(f"{mixture.name}:{name}", mixture.proportions[name]) for name, pairs in parts.items() if pairs]
    )


def _add(name: str, parts: list[tuple[str, Any]]) -> None:
    if parts:  # seqio refuses an empty mixture, such as that of a folder with only test tasks
        _registered[1].append(name)
        seqio.MixtureRegistry.add(name, parts)


class TaskSource(seqio.FunctionDataSource):
    """A task's examples as a data source. Examples are counted once, when a rate needs their number."""

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(functools.partial(_dataset, task), splits=task.splits)

    def num_input_examples(self, split: str) -> int | None:
        return _count(self.task, split) if split in self.task.splits else None


@functools.cache
def _count(task: Task, split: str) -> int:
    return Pool(task, split, most=None if split == "train" else 0).choice.pairs


def _dataset(task: Task, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """Source and target as they meet in a row, with the fields that an evaluation needs."""
    next(examples(task, split), None)  # raises errors about missing or unreadable files here, not inside TensorFlow

    def rows() -> Iterator[dict[str, Any]]:
        for example in examples(task, split):
            if isinstance(example, Example):
                source = ""
                *earlier, last = example.turns()
                for context, answer in earlier:
                    texts = {"inputs": source + context, "targets": answer, "id": example.id}
                    yield texts | {"references": (answer.strip(),), "candidates": ()}
                    source += context + answer
                texts = {"inputs": source + last[0], "targets": last[1], "id": example.id}
                yield texts | {"references": example.references, "candidates": example.candidates or ()}

    return tf.data.Dataset.from_generator(rows, output_signature=SIGNATURE)


def postprocess(output: str, *, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Returns a prediction as bare text; for the target, the list of references."""
    if is_target:
        return [reference.decode() for reference in np.asarray(example["references"])]
    return output.strip()


@functools.cache
def metric_fn(metric: Metric) -> Callable[[Sequence[Sequence[str]], Sequence[str]], dict[str, float]]:
    """A metric in seqio's form: the score of all predictions, in [0, 1]."""

    def score(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
        return {str(metric): metric.over(predictions, targets)}

    score.__name__ = metric.name
    return score


use_data_dir(os.environ.get("OPTIML_DATA_DIR"), os.environ.get("OPTIML_TOKENIZER"))
