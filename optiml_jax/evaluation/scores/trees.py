"""Means over tasks as trees: category (or another column) -> shots -> task or group -> benchmark -> sub-task.

The leaves are cells, a task at a number of shots; a value of each cell (its score, a baseline) gives a mean, and their
weights in it the clusters of its interval.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from optiml_jax.evaluation.prompts.ledger import LEVELS
from optiml_jax.evaluation.scores import task_scores

AVERAGES = ("average", "benchmark_average", "level_average")
Cell = tuple[str, str]  # a task at a number of shots
Tree = dict[Any, "Tree"] | Cell


def mean(tree: Tree, value: Callable[[str, str], float]) -> float:
    """Unweighted mean of the branches' means.

    Args:
      value: of a task at a number of shots.
    """
    return task_scores.mean(mean(branch, value) for branch in tree.values()) if isinstance(tree, dict) else value(*tree)


def build(tasks: Mapping[str, dict], column: Callable[[dict], Any]) -> dict[Any, dict[str, Tree]]:
    """Column -> its tree.

    Args:
      column: what a task's entry counts for: its category, or its (level, category).
    """
    trees: dict[Any, dict] = {}
    for name, task in tasks.items():
        for shots in task["shots"]:
            branch = trees
            for part in (column(task), shots, task["group"] or name, task["benchmark"]):
                branch = branch.setdefault(part, {})
            branch[name] = name, shots
    return trees


def level_and_category(task: Mapping[str, Any]) -> tuple[str | None, str]:
    """The column of a task in the paper's tables."""
    return task["level"], task["category"]


def by_level(tasks: Mapping[str, dict]) -> dict[str, dict[str, Tree]]:
    """Level, hardest first -> category -> its tree; levels without tasks are left out."""
    columns = build(tasks, level_and_category)
    trees = {level: {name: tree for (owner, name), tree in columns.items() if owner == level} for level in LEVELS}
    return {level: categories for level, categories in trees.items() if categories}


def averages(tasks: Mapping[str, dict]) -> dict[str, Tree]:
    """The trees of the averages that these tasks have, by the names in `AVERAGES`."""
    if not tasks:
        return {}
    trees = {"average": _over_columns(tasks, "category"), "benchmark_average": _over_columns(tasks, "benchmark")}
    levels = by_level(tasks)
    return trees | ({"level_average": levels} if levels else {})


def _over_columns(tasks: Mapping[str, dict], kind: str) -> dict[str, dict]:
    """The tree of the paper's average: shots -> (level, category) -> as in `build`.

    Tasks without a level count only if no task has one.

    Args:
      kind: "category", as in Table 4, or "benchmark", as in Table 5.
    """
    has_levels = any(task["level"] for task in tasks.values())
    counted = {name: task for name, task in tasks.items() if task["level"] or not has_levels}
    tree: dict[str, dict] = defaultdict(dict)
    for column, by_shots in build(counted, lambda task: (task["level"], task[kind])).items():
        for shots, branch in by_shots.items():
            tree[shots][column] = branch
    return {shots: tree[shots] for shots in sorted(tree, key=int)}


def task_shares(tree: Tree) -> dict[str, dict[str, float]]:
    """Task -> number of shots -> its weight in the mean of a tree."""
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    for (task, shots), share in _leaves(tree, 1.0):
        shares[task][shots] = share
    return dict(shares)


def _leaves(tree: Tree, share: float) -> Iterator[tuple[Cell, float]]:
    if not isinstance(tree, dict):
        yield tree, share
        return
    for branch in tree.values():
        yield from _leaves(branch, share / len(tree))
