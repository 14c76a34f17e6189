"""Which examples block k of the data holds: capped example-proportional rates, stratified counts, keyed order.

Block k is a pure function of (seed, k), found in the same time for every k: the draws of a task before block k are
`floor(p * M * k + u)` (M draws a block, u one uniform number a task), and draw j of a task with n examples is place
j % n of its pass j // n, through a permutation keyed by (seed, task, pass). Every example comes once a pass, and after
any number of draws a task's count is within one example of its rate: far more even than independent draws.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from optiml_jax.data.permutation import hashed, key, permuted
from optiml_jax.errors import DataError, UserError, nearest

FORMAT = 1
EPS = 4_096  # the paper's cap on the examples of a task (4.2)
_BITS = 96  # fixed point: p exact above 2**-43, and no rounding however large k


def load_manifest(path: str | os.PathLike) -> dict:
    """The mixture written beside a store: `name, eps, tasks: [{name, benchmark, category, examples}], benchmarks`.

    Raises:
      UserError: there is no such file (names the nearest mixtures), or it has another format.
      DataError: it is not a manifest.
    """
    path = Path(path)
    if not path.exists():
        close = nearest(path.stem, (other.stem for other in path.parent.glob("*.json")))
        raise UserError(f"{path}: no such mixture in this cache{close}; write it with python -m tools.cache_tasks")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        names = [task["name"] for task in manifest["tasks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a mixture manifest ({error!r}); cache the mixture again") from error
    if manifest.pop("checksum", None) not in (None, manifest_checksum(manifest)):
        raise DataError(f"{path}: not as it was written (its checksum differs); cache the mixture again")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {manifest.get('format')}, this version reads {FORMAT}; cache the mixture again"
        )
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a task is listed twice; cache the mixture again")
    return manifest


def cap(manifest: Mapping, eps: int | None) -> int:
    """The cap on a task's examples: `eps`, else the manifest's own, else the paper's."""
    return manifest.get("eps", EPS) if eps is None else eps


def manifest_checksum(manifest: Mapping) -> str:
    """Of everything in a manifest but this; one written by hand may go without."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:32]


def coverage_text(coverage: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    """How much of each benchmark is there, as in "bench: 188 of 757 train and 25 of 119 test tasks have files".

    Args:
      coverage: {benchmark: {role: [tasks with files, tasks there are]}}, as a manifest and a ledger's writer state it.
    """
    texts = []
    for name, roles in coverage.items():
        parts = [f"{have:,} of {count:,} {role}" for role, (have, count) in sorted(roles.items(), reverse=True)]
        texts.append(f"{name}: {' and '.join(parts)} tasks have files")
    return "; ".join(texts)


def probabilities(
    manifest: dict, eps: int | None = None, proportions: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Rate of each task (paper 4.2, 4.3): within a benchmark in proportion to min(examples, eps).

    Args:
      manifest: as `load_manifest` returns it.
      eps: cap on the examples of a task; None: the manifest's own.
      proportions: share of each benchmark, in any unit. None: the manifest's own `benchmarks`; where that is null too,
        one capped proportion over all tasks.

    Raises:
      UserError: a task without examples, `eps` below 1, or proportions that do not name exactly the benchmarks.
    """
    eps = cap(manifest, eps)
    if eps < 1:
        raise UserError(f"eps is {eps}: the cap on the examples of a task must be at least 1")
    tasks = manifest["tasks"]
    if not tasks:
        raise UserError(f"mixture {manifest['name']} has no tasks; cache one that has")
    empty = [task["name"] for task in tasks if task["examples"] < 1]
    if empty:
        raise UserError(
            f"mixture {manifest['name']}: {', '.join(empty[:5])} has no examples; leave it out, cache again"
        )
    capped = {task["name"]: min(task["examples"], eps) for task in tasks}
    proportions = manifest.get("benchmarks") if proportions is None else proportions
    if proportions is None:
        total = sum(capped.values())
        return {name: count / total for name, count in capped.items()}

    totals: dict[str, int] = {}
    for task in tasks:
        totals[task["benchmark"]] = totals.get(task["benchmark"], 0) + capped[task["name"]]
    for name in proportions.keys() - totals.keys():
        raise UserError(f"proportions: no task of mixture {manifest['name']} is in {name}{nearest(name, totals)}")
    for name in totals.keys() - proportions.keys():
        raise UserError(f"proportions: {name} is missing; give every benchmark of the mixture one (0 leaves it out)")
    whole = math.fsum(proportions.values())
    if min(proportions.values()) < 0 or not 0 < whole < math.inf:
        raise UserError(f"proportions: {dict(proportions)} must not be negative and must have a positive sum")
    return {
        task["name"]: proportions[task["benchmark"]] / whole * (capped[task["name"]] / totals[task["benchmark"]])
        for task in tasks
    }


class Sampler:
    """Draws of block k. Attribute `names`: the tasks that can be drawn, sorted, so that no order in a file matters."""

    def __init__(self, sizes: Mapping[str, int], rates: Mapping[str, float], seed: int, block_draws: int) -> None:
        """`sizes`: examples of each task; `rates`: their probabilities; `block_draws`: M, within one a task."""
        self.names = sorted(name for name, rate in rates.items() if rate > 0)
        self.seed, self.block_draws = seed, block_draws
        self._sizes = np.array([sizes[name] for name in self.names], np.int64)
        self._rates = [int(rates[name] * 2.0**_BITS) for name in self.names]
        self._offsets = [int(key(seed, "offset", name)) << (_BITS - 64) for name in self.names]
        self._keys = np.array([key(seed, "pass", name) for name in self.names], np.uint64)

    def drawn_before(self, block: int) -> np.ndarray:
        """Draws of each task before the block: int64 [tasks]."""
        draws = self.block_draws * block
        return np.array([(rate * draws + u) >> _BITS for rate, u in zip(self._rates, self._offsets)], np.int64)

    def draw(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Task (number in `names`) and example of each draw of the block, task after task: two int64 [draws]."""
        before = self.drawn_before(block)
        counts = self.drawn_before(block + 1) - before
        tasks = np.repeat(np.arange(len(counts)), counts)
        numbers = np.arange(len(tasks)) + np.repeat(before - np.cumsum(counts) + counts, counts)
        sizes = self._sizes[tasks]
        passes, places = np.divmod(numbers, sizes)
        return tasks, permuted(places, sizes, hashed(self._keys[tasks], passes))
