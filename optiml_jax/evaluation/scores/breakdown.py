"""chain.txt: how every score of a report is composed, down to the questions of a template."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from optiml_jax.evaluation.prompts.ledger import LEVELS
from optiml_jax.evaluation.scores import task_scores, trees
from optiml_jax.evaluation.scores.aggregation import score_of

# Names of the branches, from a level down (paper 4.1, in reverse).
STEPS = ("categories", "numbers of shots", "tasks", "benchmarks", "sub-tasks", "templates")
NO_LEVEL = "at no level"

Scores = dict[str, "Scores"] | float  # a tree of names, with scores as leaves


def breakdown(results: Mapping[str, Any]) -> str:
    """Returns one line per score (%), each the mean of the lines indented below it; single-child levels are collapsed.

    The average comes first, down to the columns; then the mean of the levels, down to the templates.

    Args:
      results: of `aggregation.results`.
    """
    tasks = results["tasks"]
    lines = []
    if results["average"] is not None:
        columns = {
            f"{shots}-shot": {
                f"{level or NO_LEVEL} / {category}": trees.mean(column, score_of(tasks))
                for (level, category), column in by_column.items()
            }
            for shots, by_column in trees.averages(tasks)["average"].items()
        }
        lines += _lines("average", columns, 0, ("numbers of shots", "columns"))
    by_column = {
        column: _with_leaves(tree, lambda name, shots: _task(tasks[name], shots))
        for column, tree in trees.build(tasks, trees.level_and_category).items()
    }
    levels: dict[str, dict[str, Scores]] = {}
    for level in (*LEVELS, None):
        categories = {
            category: {f"{shots}-shot": tree[shots] for shots in sorted(tree, key=int)}
            for (owner, category), tree in sorted(by_column.items(), key=str)
            if owner == level
        }
        if categories:
            levels[level or NO_LEVEL] = categories
    if "level_average" in results["averages"]:
        counted = {level: tree for level, tree in levels.items() if level != NO_LEVEL}
        lines.append(f"{100 * _mean(counted):6.2f}  mean of the levels, of {len(counted)} levels")
    for level, tree in levels.items():
        lines += _lines(level, tree, 1, STEPS)
    return "\n".join(lines) + "\n"


def _task(task: Mapping[str, Any], shots: str) -> Scores:
    templates = task["templates"][shots]
    if task["pooled"] and len(templates) > 1:
        count = sum(count for _, count in templates.values())
        return {f"{count:,} prompts of {len(templates):,} templates": task["shots"][shots]}
    return {f"{name}, {count:,} questions": score for name, (score, count) in templates.items()}


def _with_leaves(tree: trees.Tree, scores: Callable[[str, str], Scores]) -> Scores:
    """The tree with the scores of a task at a number of shots in place of its cells."""
    if not isinstance(tree, dict):
        return scores(*tree)
    return {name: _with_leaves(branch, scores) for name, branch in tree.items()}


def _mean(scores: Scores) -> float:
    """Unweighted mean of the branches' means."""
    return task_scores.mean(map(_mean, scores.values())) if isinstance(scores, dict) else scores


def _lines(name: str, tree: Scores, depth: int, steps: tuple[str, ...]) -> Iterator[str]:
    path = [name]
    while isinstance(tree, dict) and len(tree) == 1 and depth > 1:
        ((below, tree),) = tree.items()
        path += [below] * (below not in path)
        steps = steps[1:]
    count = f", of {len(tree)} {steps[0]}" if isinstance(tree, dict) else ""
    yield f"{'  ' * depth}{100 * _mean(tree):6.2f}  {' / '.join(path)}{count}"
    if isinstance(tree, dict):
        for below, branch in tree.items():
            yield from _lines(below, branch, depth + 1, steps[1:])
