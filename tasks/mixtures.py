"""Which tasks are trained on together, and how often each is drawn (paper 2.3 and 4.2).

Within a benchmark a task is drawn in proportion to min(examples, EPS); benchmarks share the draws as
stated. `seqio_tasks.py` registers the same mixtures with the same rates, nested one level deep.

`opt_iml`, the paper's own (section 5), takes three choices of section 4 together, and the paper does not say how they
add up. Here: the instruction benchmarks are 100 parts in the proportions of 4.3 (CrossFit 4, ExMix 2, FLAN 20,
Super-NaturalInstructions 25, PromptSource 45, T5 2, UnifiedSKG 2); one of Super-NaturalInstructions' parts goes to the
reasoning sets, from which 4.6 took its share too; and pre-training text is 5% of everything (4.5), so that a part is
0.95% of the draws. `opt_iml_max` also trains on what the others hold out (section 6: all 1,991 tasks).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from optiml_jax.data.manifest import EPS
from optiml_jax.data.settings import LEAVE_OUT, REFUSE
from optiml_jax.errors import check_known
from tasks.example import Skipped
from tasks.registry import Benchmark, MissingError, benchmark_names, catalog, discover
from tasks.task import Options, Task

WAY_OUT = (
    f"; docs/benchmark.md says where to get them, or leave them out: --missing_benchmarks={LEAVE_OUT} "
    f"(in gin MISSING_BENCHMARKS = '{LEAVE_OUT}')"
)


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
        """Everything in the folders of its benchmarks; see `discover_all` for the errors."""
        found = discover_all(self.benchmarks, data_dir, options)
        if self.proportions and options.missing_benchmarks == REFUSE:
            there = {task.benchmark for task in self.tasks(found)}
            if idle := [name for name in self.benchmarks if name not in there]:
                raise MissingError(f"DATA_DIR: {data_dir} has no task of {', '.join(idle)} to train on{WAY_OUT}")
        return found

    def tasks(self, found: Benchmark) -> list[Task]:
        """The tasks of `found` that are drawn from: what has no train split can only be evaluated."""
        listed = found.listed(*self.splits)
        return [task for task in listed if task.benchmark in self.benchmarks and "train" in task.splits]

    def without_train_split(self, found: Benchmark) -> list[Skipped]:
        """The tasks that would be drawn from if their files held a train split: most sets are released with one."""
        listed = found.listed(*self.splits)
        return [Skipped(task.name, f"only {', '.join(task.splits)}") for task in listed if "train" not in task.splits]


def discover_all(names: tuple[str, ...], data_dir: str | os.PathLike | None, options: Options) -> Benchmark:
    """Several benchmarks as one; a missing one may be left out, with its reason in `left_out`.

    Raises:
      MissingError: some are missing and are not to be left out, or all are.
      UserError, DataError: see `registry.discover`.
    """
    found, missing = [], {}
    for name in names:
        try:
            found.append(discover(name, data_dir, options))
        except MissingError as error:
            missing[name] = str(error)
            found.append(Benchmark({}, (Skipped(name, str(error)),), catalog(name)))
    if missing and (options.missing_benchmarks == REFUSE or len(missing) == len(names)):
        if len(names) == 1:
            raise MissingError(missing[names[0]])
        first, *others = missing
        more = f"; nor those of {', '.join(others)}" if others else ""
        raise MissingError(f"the data of {first} are not there ({missing[first]}){more}{WAY_OUT}")
    tasks = {name: task for benchmark in found for name, task in benchmark.tasks.items()}
    rows = {name: row for benchmark in found for name, row in benchmark.rows.items()}
    return Benchmark(tasks, tuple(skipped for benchmark in found for skipped in benchmark.left_out), rows)


PARTS = {  # of 100 of the instructions: paper 4.3 (Table 5), one for reasoning as in 4.6
    "crossfit": 4,
    "exmix": 2,
    "flan": 20,
    "super_natural_instructions": 25 - 1,
    "promptsource": 45,
    "t5": 2,
    "unifiedskg": 2,
    "reasoning": 1,
}
PRETRAIN = 5  # % of all draws (paper 4.5)
PROPORTIONS = {name: parts * (100 - PRETRAIN) / 100 for name, parts in PARTS.items()} | {"pretrain_text": PRETRAIN}
EVERYTHING = ("train", "test", "test_xlingual", "excluded")

# those of the paper; each benchmark alone is a mixture of its name
MIXTURES = {
    mixture.name: mixture
    for mixture in (
        Mixture("opt_iml", tuple(PROPORTIONS), PROPORTIONS),
        Mixture("opt_iml_max", tuple(PROPORTIONS), PROPORTIONS, splits=EVERYTHING),
    )
}


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
