"""chain.txt: how every score of a report is composed, down to the questions of a template."""

from collections.abc import Iterator, Mapping
from typing import Any

from optiml_jax.evaluation.prompts.ledger import LEVELS
from optiml_jax.evaluation.scores.aggregation import Tree, averaged, build_trees, mean

# Names of the branches, from a level down (paper 4.1, in reverse).
STEPS = ("categories", "numbers of shots", "tasks", "benchmarks", "sub-tasks", "templates")
NO_LEVEL = "at no level"


def breakdown(results: Mapping[str, Any]) -> str:
    """Returns one line per score (%), each the mean of the lines indented below it; single-child levels are collapsed.

    The average comes first, down to the columns; then the mean of the levels, down to the templates.

    Args:
      results: of `aggregation.results`.
    """
    tasks = results["tasks"]
    lines = []
    if results["average"] is not None:
        columns = averaged(tasks, lambda name, shots: tasks[name]["shots"][shots])
        tree = {
            f"{shots}-shot": {
                f"{level or NO_LEVEL} / {category}": mean(column) for (level, category), column in by.items()
            }
            for shots, by in columns.items()
        }
        lines += _lines("average", tree, 0, ("numbers of shots", "columns"))
    trees = build_trees(tasks, lambda task: (task["level"], task["category"]), _templates(tasks))
    levels: dict[str, dict[str, Tree]] = {}
    for level in (*LEVELS, None):
        categories = {
            category: {f"{shots}-shot": tree[shots] for shots in sorted(tree, key=int)}
            for (owner, category), tree in sorted(trees.items(), key=str)
            if owner == level
        }
        if categories:
            levels[level or NO_LEVEL] = categories
    if "level_average" in results["averages"]:
        counted = {level: tree for level, tree in levels.items() if level != NO_LEVEL}
        lines.append(f"{100 * mean(counted):6.2f}  mean of the levels, of {len(counted)} levels")
    for level, tree in levels.items():
        lines += _lines(level, tree, 1, STEPS)
    return "\n".join(lines) + "\n"


def _templates(tasks: Mapping[str, Any]):
    """A leaf of `build_trees`: the scores of a task's templates."""

    def leaf(name: str, shots: str) -> Tree:
        templates = tasks[name]["templates"][shots]
        return {f"{template}, {count:,} questions": score for template, (score, count) in templates.items()}

    return leaf


def _lines(name: str, tree: Tree, depth: int, steps: tuple[str, ...]) -> Iterator[str]:
    path = [name]
    while isinstance(tree, dict) and len(tree) == 1 and depth > 1:
        ((below, tree),) = tree.items()
        path += [below] * (below not in path)
        steps = steps[1:]
    count = f", of {len(tree)} {steps[0]}" if isinstance(tree, dict) else ""
    yield f"{'  ' * depth}{100 * mean(tree):6.2f}  {' / '.join(path)}{count}"
    if isinstance(tree, dict):
        for below, branch in tree.items():
            yield from _lines(below, branch, depth + 1, steps[1:])
