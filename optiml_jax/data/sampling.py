"""Sampling of the examples of block k: capped example-proportional rates, stratified counts, keyed order.

Block k is a pure function of (seed, k), computed in the same time for every k: the draws of a task before block k are
`floor(p * M * k + u)` (M draws per block, u one uniform number per task), and draw j of a task with n examples is
position j % n of its pass j // n, through a permutation keyed by (seed, task, pass). Every example occurs once per
pass, and after any number of draws a task's count is within one example of its rate: far more even than independent
draws.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from optiml_jax.common.errors import UserError, nearest
from optiml_jax.data.manifest import Manifest, TaskSize
from optiml_jax.data.permutation import hashed, key, permuted
from optiml_jax.data.settings import NATURAL

_BITS = 96  # fixed point: p exact above 2**-43, and no rounding however large k


def probabilities(
    manifest: Manifest, eps: int | None = None, proportions: Mapping[str, float] | str | None = None
) -> dict[str, float]:
    """Sampling rate of each task (paper 4.2, 4.3): within a benchmark proportional to min(examples, eps).

    Args:
      eps: cap on the examples per task; None: the manifest's own.
      proportions: share of each benchmark, in any unit; one of `Manifest.left_out` has no effect. "natural": one
        proportion to the capped sizes of all tasks. None: the manifest's own; "natural" if it has none.

    Raises:
      UserError: a task has no examples, `eps` is below 1, or proportions do not name exactly the benchmarks.
    """
    eps = manifest.cap(eps)
    if eps < 1:
        raise UserError(f"eps is {eps}: the cap on the examples per task must be at least 1")
    tasks = manifest.tasks
    if not tasks:
        raise UserError(f"mixture {manifest.name} has no tasks; cache one that has")
    empty = [task.name for task in tasks if task.examples < 1]
    if empty:
        raise UserError(f"mixture {manifest.name}: {', '.join(empty[:5])} has no examples; leave it out, cache again")
    capped = {task.name: min(task.examples, eps) for task in tasks}
    proportions = manifest.benchmarks if proportions is None else proportions
    if proportions is None or proportions == NATURAL:
        total = sum(capped.values())
        return {name: count / total for name, count in capped.items()}

    totals: dict[str, int] = {}
    for task in tasks:
        totals[task.benchmark] = totals.get(task.benchmark, 0) + capped[task.name]
    proportions = {name: share for name, share in proportions.items() if name not in manifest.left_out}
    for name in proportions.keys() - totals.keys():
        raise UserError(f"proportions: no task of mixture {manifest.name} is in {name}{nearest(name, totals)}")
    for name in totals.keys() - proportions.keys():
        raise UserError(f"proportions: {name} is missing; give every benchmark of the mixture one (0 leaves it out)")
    total = math.fsum(proportions.values())
    if min(proportions.values(), default=0) < 0 or not 0 < total < math.inf:
        raise UserError(f"proportions: {dict(proportions)} must not be negative and must have a positive sum")
    return {
        task.name: proportions[task.benchmark] / total * (capped[task.name] / totals[task.benchmark]) for task in tasks
    }


def with_token_shares(
    rates: Mapping[str, float],
    tasks: Sequence[TaskSize],
    positions: Mapping[str, float],
    token_shares: Mapping[str, float],
) -> dict[str, float]:
    """The rates at which some benchmarks have stated shares of the positions; the others keep their proportions.

    Args:
      rates: see `probabilities`; their share of a benchmark in `token_shares` has no effect.
      positions: mean positions of an example of each task with a positive rate.
      token_shares: benchmark -> share of the positions, a fraction.

    Raises:
      UserError: a benchmark is not in the mixture or has the proportion 0, shares are negative, or leave nothing to the
        other benchmarks.
    """
    groups: dict[str | None, dict[str, float]] = {}
    for task in tasks:
        group = task.benchmark if task.benchmark in token_shares else None
        groups.setdefault(group, {})[task.name] = rates[task.name]
    for name in token_shares.keys() - groups.keys():
        raise UserError(f"token_shares: no task is in {name}{nearest(name, {task.benchmark for task in tasks})}")
    rest = 1 - math.fsum(token_shares.values())
    if min(token_shares.values()) < 0 or not 0 < rest <= 1 or not any(groups.get(None, {}).values()):
        raise UserError(
            f"token_shares: {dict(token_shares)} must be fractions, and leave a share to benchmarks not named here"
        )
    draws = {}
    for group, members in groups.items():
        total = math.fsum(members.values())
        if not total:
            raise UserError(f"token_shares: {group} has the proportion 0; give it another, or no share of the tokens")
        mean = math.fsum(rate * positions[name] for name, rate in members.items() if rate > 0) / total
        share = rest if group is None else token_shares[group]
        draws |= {name: rate / total * share / mean for name, rate in members.items()}
    total = math.fsum(draws.values())
    return {task.name: draws[task.name] / total for task in tasks}


def shares(rates: Mapping[str, float], tasks: Sequence[TaskSize], field: str = "benchmark") -> dict[str, float]:
    """Share of the draws per benchmark, or per category, largest first. `rates`: see `probabilities`."""
    totals: dict[str, float] = {}
    for task in tasks:
        name = getattr(task, field)
        totals[name] = totals.get(name, 0.0) + rates[task.name]
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def shares_text(manifest: Manifest, rates: Mapping[str, float] | None = None) -> str:
    """Describes the shares, as in "shares of the draws: flan 60.00%, t5 40.00%"; empty with a single benchmark.

    Args:
      rates: of the tasks; None: those of the manifest.
    """
    if len({task.benchmark for task in manifest.tasks}) < 2:
        return ""
    by_benchmark = shares(rates or probabilities(manifest), manifest.tasks)
    return "shares of the draws: " + ", ".join(f"{name} {share:.2%}" for name, share in by_benchmark.items())


class Sampler:
    """Draws the examples of any block. `names` are the tasks with a positive rate, sorted to be independent of
    order."""

    def __init__(self, sizes: Mapping[str, int], rates: Mapping[str, float], seed: int, block_draws: int) -> None:
        """`sizes`: examples per task; `rates`: their probabilities; `block_draws`: M, met within one per task."""
        self.names = sorted(name for name, rate in rates.items() if rate > 0)
        self.seed, self.block_draws = seed, block_draws
        self._sizes = np.array([sizes[name] for name in self.names], np.int64)
        self._rates = [int(rates[name] * 2.0**_BITS) for name in self.names]
        self._offsets = [int(key(seed, "offset", name)) << (_BITS - 64) for name in self.names]
        self._keys = np.array([key(seed, "pass", name) for name in self.names], np.uint64)

    def drawn_before(self, block: int) -> np.ndarray:
        """Number of draws of each task before the block: int64 [tasks]."""
        draws = self.block_draws * block
        return np.array([(rate * draws + u) >> _BITS for rate, u in zip(self._rates, self._offsets)], np.int64)

    def draw(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Task (index in `names`), example and pass of each draw of the block, task by task: three int64 [draws]."""
        before = self.drawn_before(block)
        counts = self.drawn_before(block + 1) - before
        tasks = np.repeat(np.arange(len(counts)), counts)
        numbers = np.arange(len(tasks)) + np.repeat(before - np.cumsum(counts) + counts, counts)
        sizes = self._sizes[tasks]
        passes, positions = np.divmod(numbers, sizes)
        return tasks, permuted(positions, sizes, hashed(self._keys[tasks], passes)), passes
