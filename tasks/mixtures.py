"""Which tasks are trained on together, and how often each is drawn (paper 2.3 and 4.2).

Within a benchmark a task is drawn in proportion to min(examples, EPS); benchmarks share the draws as
stated. `seqio_tasks.py` registers the same mixtures with the same rates, nested one level deep.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from optiml_jax.data.manifest import EPS
from optiml_jax.errors import check_known
from tasks.registry import Benchmark, benchmark_names, discover
from tasks.task import Options, Task


@dataclass(frozen=True)
class Mixture:
    """Tasks of some benchmarks to learn from.

    Attributes:
      proportions: benchmark -> its share of the draws. None for one benchmark, or to cap over all tasks alike.
      splits: the official lists whose tasks are drawn from; OPT-IML-Max trains on those of the evaluation too.
    """

    name: str
    benchmarks: tuple[str, ...]
    proportions: Mapping[str, float] | None = None
    eps: int = EPS
    splits: tuple[str, ...] = ("train",)

    def discover(self, data_dir: str | os.PathLike | None, options: Options) -> Benchmark:
        """Everything in the folders of its benchmarks; see `registry.discover` for the errors."""
        return discover_all(self.benchmarks, data_dir, options)

    def tasks(self, found: Benchmark) -> list[Task]:
        """The tasks of `found` that are drawn from: what has no train split can only be evaluated."""
        listed = found.listed(*self.splits)
        return [task for task in listed if task.benchmark in self.benchmarks and "train" in task.splits]


def discover_all(names: tuple[str, ...], data_dir: str | os.PathLike | None, options: Options) -> Benchmark:
    """Several benchmarks as one."""
    found = [discover(name, data_dir, options) for name in names]
    tasks = {name: task for benchmark in found for name, task in benchmark.tasks.items()}
    rows = {name: row for benchmark in found for name, row in benchmark.rows.items()}
    return Benchmark(tasks, tuple(skipped for benchmark in found for skipped in benchmark.left_out), rows)


MIXTURES: dict[str, Mixture] = {}  # those of the paper; each benchmark alone is a mixture of its name


def names() -> list[str]:
    """Every mixture there is."""
    return sorted({*benchmark_names(), *MIXTURES})


def mixture(name: str) -> Mixture:
    """The mixture of that name; "a+b" is one of several benchmarks, capped over all tasks alike.

    Raises:
      UserError: there is none; names the nearest.
    """
    if "+" in name:
        parts = tuple(name.split("+"))
        for part in parts:
            check_known("benchmark", part, benchmark_names())
        return Mixture(name, parts)
    check_known("mixture", name, names())
    return MIXTURES.get(name) or Mixture(name, (name,))
