"""The tasks and mixtures in seqio's registries: same texts, tokens and rates as in the token store.

seqio is the language that users know: `get_dataset`, mixtures, metric functions, its Evaluator. Training does not read
through it: its online path tokenises example by example in TensorFlow, and its packer takes id 0 for padding.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from optiml_jax.errors import UserError
from optiml_jax.evaluation.metrics import METRICS
from optiml_jax.opt.tokenizer import join
from tasks import mixtures, registry
from tasks.benchmarks import samples
from tasks.example import Example, Record
from tasks.mixtures import Mixture
from tasks.registry import Options, Task
from tasks.vocabulary import OptVocabulary

SIGNATURE = {
    "inputs": tf.TensorSpec((), tf.string),
    "targets": tf.TensorSpec((), tf.string),
    "id": tf.TensorSpec((), tf.string),
    "references": tf.TensorSpec((None,), tf.string),
    "candidates": tf.TensorSpec((None,), tf.string),  # empty where the answer is generated
}
_registered: tuple[list[str], list[str]] = ([], [])  # our tasks and mixtures


def use_data_dir(
    data_dir: str | os.PathLike | None,
    tokenizer: str | os.PathLike | None = None,
    options: Options | None = None,
) -> None:
    """Registers every task and mixture anew; benchmarks that are not in `data_dir` by the catalog, to raise when read.

    Args:
      data_dir: one folder a benchmark.
      tokenizer: of all benchmarks but the samples, which have their own: a directory or a hub name.

    Raises:
      UserError: `data_dir` is given and is not a folder.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UserError(f"DATA_DIR: {data_dir} is not a folder; it must hold one folder a benchmark")
    vocabularies = {samples.NAME: OptVocabulary(samples.TOKENIZER)}
    shared = OptVocabulary(tokenizer)
    tasks: dict[str, Task] = {}
    for benchmark in registry.benchmark_names():
        there = benchmark in registry.BUILT_IN or (data_dir is not None and (Path(data_dir) / benchmark).is_dir())
        found = (
            registry.discover(benchmark, data_dir, options or Options()) if there else registry.without_data(benchmark)
        )
        tasks |= found.tasks

    for added, registered in zip(_registered, (seqio.TaskRegistry, seqio.MixtureRegistry)):
        while added:
            registered.remove(added.pop())
    for task in tasks.values():
        add_task(task, vocabularies.get(task.benchmark, shared))
    for mixture in mixtures.MIXTURES.values():
        add_mixture(mixture, tasks)


def add_task(task: Task, vocabulary: OptVocabulary) -> seqio.Task:
    """Registers one task; targets end in `</s>`, inputs carry no special token."""
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
        metric_fns=[metric_fn(task.metric)],
    )


def add_mixture(mixture: Mixture, tasks: Mapping[str, Task]) -> None:
    """Registers a mixture: capped rates within a benchmark, its proportions over the mixtures of its benchmarks."""
    rate = functools.partial(seqio.mixing_rate_num_examples, maximum=mixture.eps)
    trained = [task.name for task in mixtures.trained(tasks) if task.benchmark in mixture.benchmarks]
    parts = list(mixture.proportions.items()) if mixture.proportions else [(name, rate) for name in trained]
    if trained:  # seqio admits no empty mixture: a folder may hold test tasks alone
        _registered[1].append(mixture.name)
        seqio.MixtureRegistry.add(mixture.name, parts)


class TaskSource(seqio.FunctionDataSource):
    """A task's examples as a data set. Examples are counted when a rate asks for them, once."""

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(functools.partial(_dataset, task), splits=task.splits)

    def num_input_examples(self, split: str) -> int | None:
        return _count(self.task, split) if split in self.task.splits else None


@functools.cache
def _count(task: Task, split: str) -> int:
    return sum(isinstance(record, Record) for record in task.select(split).records)


def _dataset(task: Task, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """Source and target as they meet in a row, with what an evaluation needs."""
    first = task.examples(split)
    next(first, None)  # a missing folder or an unreadable file is raised here, not from inside TensorFlow

    def examples() -> Iterator[dict[str, Any]]:
        for example in task.examples(split):
            if isinstance(example, Example):
                source, target = join(example.source, example.target)
                texts = {"inputs": source, "targets": target, "id": example.id}
                yield texts | {"references": example.references, "candidates": example.candidates or ()}

    return tf.data.Dataset.from_generator(examples, output_signature=SIGNATURE)


def postprocess(output: str, *, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """A prediction as bare text; for the target every reference."""
    if is_target:
        return [reference.decode() for reference in np.asarray(example["references"])]
    return output.strip()


@functools.cache
def metric_fn(name: str) -> Callable[[Sequence[Sequence[str]], Sequence[str]], dict[str, float]]:
    """seqio's form of one of our metrics: the mean over examples, in [0, 1]."""

    def metric(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
        scores = [METRICS[name](prediction, references) for references, prediction in zip(targets, predictions)]
        return {name: float(np.mean(scores))}

    metric.__name__ = name
    return metric
