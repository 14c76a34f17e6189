"""The cells of the paper's tables from evaluations of our own: folders of `results.json`."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from optiml_jax.common import typed_json
from optiml_jax.common.errors import DataError, UserError
from optiml_jax.evaluation.scores import trees
from tasks.paper.definitions import Column, Definition
from tasks.paper.numbers import Place

RESULTS = "results.json"
RECORD = "sweep.json"  # in which tools.run_sweep collects the results of a sweep
SEED = re.compile(r"seed(\d+)")
COVERAGE = 0.95  # of the interval over seeds
Tasks = dict[str, dict[str, Any]]  # `tasks` of results.json
Runs = dict[str, dict[int, Tasks]]  # row -> seed -> tasks


class Scores(NamedTuple):
    """The scores of a cell, in per cent.

    Attributes:
      by_seed: one score per seed.
      missing: how many tasks of the column were not evaluated.
    """

    by_seed: tuple[float, ...]
    missing: int = 0

    @property
    def mean(self) -> float:
        return float(np.mean(self.by_seed))

    @property
    def half_width(self) -> float | None:
        """Of Student's 95% interval over seeds; None with a single seed."""
        count = len(self.by_seed)
        if count < 2:
            return None
        quantile = stats.t.ppf((1 + COVERAGE) / 2, count - 1)
        return float(quantile * np.std(self.by_seed, ddof=1) / np.sqrt(count))

    def __str__(self) -> str:
        width = "" if self.half_width is None else f" ± {self.half_width:.1f}"
        return f"{self.mean:.1f}{width}"


def read(folder: str | Path) -> Runs:
    """Reads the results of a sweep, or every results.json below FOLDER/ROW or FOLDER/ROW/seedN.

    Several suites of one row and seed are one result.

    Raises:
      UserError: there is no result.
      DataError: a file is not that of an evaluation, or of a sweep.
    """
    folder = Path(folder)
    if record := sweep_record(folder):
        runs = {
            row: {int(seed): _checked(folder / RECORD, run) for seed, run in seeds.items()}
            for row, seeds in record["runs"].items()
        }
        if not runs:
            raise UserError(f"--runs={folder}: no run of the sweep is finished")
        return runs
    by_row: dict[str, dict[int, Tasks]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob(f"*/**/{RESULTS}")):
        row, *parts = path.relative_to(folder).parts
        seed = next((int(match[1]) for part in parts if (match := SEED.fullmatch(part))), 1)
        by_row[row][seed] |= _checked(path, _json(path))
    if not by_row:
        raise UserError(f"--runs={folder}: no {RESULTS} in its folders; give the folder above those of the runs")
    return {row: dict(seeds) for row, seeds in by_row.items()}


def rows_of_sweep(folder: str | Path, table: int) -> dict[str, str]:
    """Member -> row of the paper's table, as the sweep recorded it; empty for other folders and tables."""
    record = sweep_record(folder)
    return record["rows"] if record and record["table"] == table else {}


def sweep_record(folder: str | Path) -> dict[str, Any] | None:
    """Reads the sweep.json of a sweep; None if the folder has none.

    Raises:
      DataError: it cannot be read, or lacks a field.
    """
    path = Path(folder, RECORD)
    if not path.exists():
        return None
    record = _json(path)
    if missing := {"runs", "rows", "table", "baseline", "members"} - record.keys():
        raise DataError(f"{path}: lacks {', '.join(sorted(missing))}; collect it again: tools.run_sweep --collect")
    return record


def _json(path: Path) -> dict[str, Any]:
    try:
        content = typed_json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: is not an object")
    return content


def _checked(path: Path, results: Mapping[str, Any]) -> Tasks:
    tasks = results.get("tasks")
    if not isinstance(tasks, dict) or not all(
        isinstance(task, dict) and {"shots", "group", "benchmark"} <= task.keys() for task in tasks.values()
    ):
        raise DataError(f"{path}: has no scores of tasks; it is not that of an evaluation")
    return tasks


def score(column: Column, shots: str, tasks: Tasks) -> tuple[float, int] | None:
    """The score of a column in per cent, and how many of its tasks are missing; None if all are.

    Sub-tasks of a task are averaged first, then the benchmarks that have it, then tasks (paper 4.1).

    Args:
      shots: as in the paper's table.
    """
    shots = column.evaluated_at.get(shots, shots)
    names = column.tasks()
    evaluated = {
        name: task | {"shots": {shots: task["shots"][shots]}}
        for name, task in tasks.items()
        if name in names and shots in task["shots"]
    }
    if not evaluated:
        return None
    tree = trees.build(evaluated, lambda task: None)[None][shots]
    return 100 * trees.mean(tree, lambda name, shots: evaluated[name]["shots"][shots]), len(names) - len(evaluated)


def scores(definition: Definition, places: Iterable[Place], seeds: Mapping[int, Tasks]) -> dict[Place, Scores]:
    """The scores at each place that all seeds have."""
    columns = {column.key: column for column in definition.columns}
    by_place = {}
    for place in places:
        values = [score(columns[place[0]], place[1], tasks) for tasks in seeds.values()]
        if all(values):
            by_place[place] = Scores(tuple(value for value, _ in values), max(count for _, count in values))
    return by_place


def average(by_place: Mapping[Place, Scores], shots: str) -> Scores | None:
    """The mean over the columns that have a score at this number of shots, for each seed; None without one."""
    columns = [scores.by_seed for (_, k), scores in by_place.items() if k == shots]
    return Scores(tuple(np.mean(columns, axis=0).tolist())) if columns else None
