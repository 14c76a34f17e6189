"""Which tasks are trained on together, and how often each is drawn (paper 2.3 and 4.2).

Within a benchmark a task is drawn in proportion to min(examples, EPS); benchmarks share the draws as
stated. `seqio_tasks.py` registers the same mixtures with the same rates, nested one level deep.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from optiml_jax.data.sampling import EPS
from optiml_jax.errors import UserError, nearest
from tasks.registry import Benchmark, Options, Task, discover


@dataclass(frozen=True)
class Mixture:
    """Train tasks of some benchmarks to learn from, and their test and validation splits to be evaluated on.

    Attributes:
      proportions: benchmark -> its share of the draws. None for one benchmark, or to cap over all tasks alike.
    """

    name: str
    benchmarks: tuple[str, ...]
    proportions: Mapping[str, float] | None = None
    eps: int = EPS

    def discover(self, data_dir: str | os.PathLike | None, options: Options) -> Benchmark:
        """The tasks of all its benchmarks; see `registry.discover` for the errors."""
        found = [discover(benchmark, data_dir, options) for benchmark in self.benchmarks]
        tasks = {name: task for benchmark in found for name, task in benchmark.tasks.items()}
        listed = {name: roles for benchmark in found for name, roles in benchmark.listed.items()}
        return Benchmark(tasks, tuple(skipped for benchmark in found for skipped in benchmark.left_out), listed)


MIXTURES = {
    mixture.name: mixture
    for mixture in (
        Mixture("samples", ("samples",)),
        Mixture("super_natural_instructions", ("super_natural_instructions",)),
    )
}


def mixture(name: str) -> Mixture:
    """The mixture of that name.

    Raises:
      UserError: there is none; names the nearest.
    """
    if name not in MIXTURES:
        known = nearest(name, MIXTURES) or f"; there are {', '.join(MIXTURES)}"
        raise UserError(f"no mixture {name}{known}")
    return MIXTURES[name]


def trained(tasks: Mapping[str, Task]) -> list[Task]:
    """The tasks that are drawn from."""
    return [task for task in tasks.values() if task.role == "train"]


def evaluated(tasks: Mapping[str, Task]) -> list[tuple[Task, str]]:
    """Tasks and splits that are evaluated on."""
    roles = (task for task in tasks.values() if task.role != "excluded")
    return [(task, split) for task in roles for split in task.splits if split != "train"]
