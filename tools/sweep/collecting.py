"""The results of a sweep in one file, `sweep.json`, and as a table."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optiml_jax.common import typed_json
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import table
from optiml_jax.evaluation.reports.tables import LEVEL_NAMES, signed
from tasks.paper.runs import RECORD, Scores
from tools.sweep.members import Member, Sweep
from tools.sweep.state import results_file

TASK_FIELDS = ("shots", "score", "metric", "level", "category", "benchmark", "group", "baselines")
RESULT_FIELDS = ("average", "weights_fingerprint", "commit", "date")


def collect(
    sweep: Sweep,
    members: Iterable[Member],
    unfinished: Mapping[Member, str],
    output: Path,
    seconds: Mapping[Member, float] = {},
) -> dict[str, Any]:
    """Writes the results of all finished runs of a sweep to OUTPUT/SWEEP/sweep.json.

    Args:
      unfinished: runs without results, and why.
      seconds: that runs took; others keep what was recorded before.

    Returns:
      The content: {"name", "title", "table", "rows", "baseline", "members", "runs": {member: {seed: {"tasks",
      "average", "levels", ...}}}, "unfinished": {member: {seed: reason}}}.
    """
    path = output / sweep.name / RECORD
    before = typed_json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else {}
    content: dict[str, Any] = {
        "name": sweep.name,
        "title": sweep.title,
        "table": sweep.table,
        "rows": dict(sweep.rows),
        "baseline": sweep.baseline,
        "members": list(sweep.members),
        "runs": {},
        "unfinished": {},
    }
    for member in members:
        if member in unfinished:
            content["unfinished"].setdefault(member.name, {})[str(member.seed)] = unfinished[member]
        else:
            result = _result(member, output / sweep.name)
            earlier = before.get(member.name, {}).get(str(member.seed), {})
            result["seconds"] = seconds.get(member, earlier.get("seconds"))
            content["runs"].setdefault(member.name, {})[str(member.seed)] = result
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return content


def _result(member: Member, folder: Path) -> dict[str, Any]:
    """What is collected of a run: the place of its evaluation relative to the sweep's, and its scores, without
    templates and intervals of tasks."""
    path = results_file(member)
    results = typed_json.loads(path.read_text(encoding="utf-8"))
    collected = {name: results[name] for name in RESULT_FIELDS if name in results}
    collected["folder"] = os.path.relpath(path.parent, folder)
    collected["levels"] = {name: level["score"] for name, level in results["levels"].items()}
    collected["averages"] = {
        name: {"score": entry["score"], "shots": entry.get("shots")} for name, entry in results["averages"].items()
    }
    collected["tasks"] = {
        name: {field: task[field] for field in TASK_FIELDS} for name, task in results["tasks"].items()
    }
    return collected


def summary(content: Mapping[str, Any]) -> str:
    """A table of the members: seeds, average and levels, and the difference from the baseline."""
    levels = [level for level in LEVEL_NAMES if any(level in run["levels"] for run in _all_runs(content))]
    baseline = _over_seeds(content["runs"].get(content["baseline"], {}), lambda run: run["average"])
    rows = []
    for member in content["members"]:
        seeds = content["runs"].get(member, {})
        average = _over_seeds(seeds, lambda run: run["average"])
        scores = [_over_seeds(seeds, lambda run, level=level: run["levels"].get(level)) for level in levels]
        cells = [
            member + " (baseline)" * (member == content["baseline"]),
            len(seeds),
            *("–" if each is None else str(each) for each in (average, *scores)),
        ]
        if baseline:
            gain = average.mean - baseline.mean if average and member != content["baseline"] else None
            cells.insert(3, "–" if gain is None else signed(gain, "+.1f"))
        rows.append(cells)
    header = ["member", "seeds", "average", *(LEVEL_NAMES[level][0] for level in levels)]
    if baseline:
        header.insert(3, "gain")
    return table(header, rows)


def _all_runs(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [run for seeds in content["runs"].values() for run in seeds.values()]


def _over_seeds(seeds: Mapping[str, Any], score) -> Scores | None:
    values = [score(run) for run in seeds.values()]
    values = [100 * value for value in values if value is not None]
    return Scores(tuple(values)) if values else None
