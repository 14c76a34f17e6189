"""Compares every member of a sweep with its baseline: paired tests over tasks, corrected within each table.

With several seeds, a prompt's score is its mean over the seeds that both have. That tests these models: the interval
over seeds beside it, of the difference of models with the same seed, is about the settings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import UserError, check_known
from optiml_jax.common.tables import table
from optiml_jax.evaluation.reports.comparison_page import difference_text, p_text, significant
from optiml_jax.evaluation.reports.tables import level_name, signed
from optiml_jax.evaluation.scores import comparison
from optiml_jax.evaluation.scores.samples import find_samples, read_samples
from optiml_jax.evaluation.scores.significance import holm
from tasks.paper.runs import RECORD, Scores, sweep_record

KINDS = {"averages": "average", "levels": "level", "categories": "category"}
NOTES = (
    "difference: member - baseline, in points; 95%: its interval over tasks; in parentheses, with fewer than five "
    "tasks: over the questions of these tasks alone.",
    "seeds: 95% interval of the difference over seeds; – with a single seed.",
    "p: exact sign flip over tasks; Holm: corrected for all tests of the table; * below 0.05.",
)


def read_sweep(folder: str | Path) -> dict[str, Any]:
    """Reads the sweep.json of a sweep.

    Raises:
      UserError: there is none.
    """
    record = sweep_record(folder)
    if record is None:
        raise UserError(f"--sweep={folder}: has no {RECORD}; run the sweep, or collect it: tools.run_sweep --collect")
    return record


def compare(folder: str | Path, baseline: str | None = None) -> dict[str, Any]:
    """Compares the finished members of a sweep with the baseline.

    Args:
      baseline: a member; None: that of the sweep.

    Returns:
      {"baseline", "members": {member: seeds compared}, "averages", "levels", "categories": [{"member", "name",
      "difference", "interval", "questions_interval", "seeds_half_width", "p", "p_holm", "clusters"}]}.

    Raises:
      UserError: there is no baseline, or no other member is finished.
    """
    record = read_sweep(folder)
    baseline = baseline or record["baseline"]
    if baseline is None:
        raise UserError(f"--sweep={folder}: the sweep has no baseline; name a member with --baseline")
    check_known("finished member", baseline, record["runs"])
    others = [member for member in record["members"] if member in record["runs"] and member != baseline]
    if not others:
        raise UserError(f"--sweep={folder}: no member but {baseline} is finished")
    result: dict[str, Any] = {"baseline": baseline, "members": {}} | {kind: [] for kind in KINDS}
    first = _samples(folder, record["runs"][baseline])
    for member in others:
        second = _samples(folder, record["runs"][member])
        seeds = sorted(first.keys() & second.keys(), key=int)
        if not seeds:
            raise UserError(f"--sweep={folder}: {member} and {baseline} have no seed in common")
        result["members"][member] = len(seeds)
        by_seed = [comparison.compare(comparison.pair(first[seed], second[seed])) for seed in seeds]
        pooled = by_seed[0]
        if len(seeds) > 1:
            sides = (_mean_samples([side[seed] for seed in seeds]) for side in (first, second))
            pooled = comparison.compare(comparison.pair(*sides))
        for kind in KINDS:
            for name, entry in pooled[kind].items():
                differences = Scores(tuple(100 * each[kind][name]["difference"] for each in by_seed))
                result[kind].append(
                    {"member": member, "name": name, "seeds_half_width": differences.half_width}
                    | {key: entry[key] for key in ("difference", "interval", "questions_interval", "p", "clusters")}
                )
    for kind in KINDS:
        tested = [entry for entry in result[kind] if entry["p"] is not None]
        for entry in result[kind]:
            entry["p_holm"] = None
        for entry, p in zip(tested, holm([entry["p"] for entry in tested])):
            entry["p_holm"] = p
    return result


def _samples(folder: str | Path, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[dict]]:
    return {seed: read_samples(find_samples(Path(folder, run["folder"]))) for seed, run in runs.items()}


def _mean_samples(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Samples with the mean score of the seeds; those that a seed could not answer have none."""
    scores: dict[str, list[float | None]] = {}
    for samples in seeds:
        for sample in samples:
            scores.setdefault(sample["id"], []).append(sample["score"])
    means = {name: None if None in values else sum(values) / len(values) for name, values in scores.items()}
    return [
        dict(sample) | {"score": means[sample["id"]]} for sample in seeds[0] if len(scores[sample["id"]]) == len(seeds)
    ]


def text(result: Mapping[str, Any]) -> str:
    """The tables for the terminal."""
    tables = [_table(result, kind) for kind in KINDS if result[kind]]
    return "\n\n".join([f"members of the sweep against {result['baseline']}", *tables, "\n".join(NOTES)])


def _table(result: Mapping[str, Any], kind: str) -> str:
    rows = []
    for entry in result[kind]:
        name = level_name(entry["name"]) if kind == "levels" else entry["name"]
        width = entry["seeds_half_width"]
        rows.append(
            (
                entry["member"],
                name,
                signed(100 * entry["difference"], "+.1f"),
                difference_text(entry, 100),
                "–" if width is None else f"± {width:.1f}",
                p_text(entry["p"]),
                p_text(entry["p_holm"]) + " *" * significant(entry),
                entry["clusters"],
            )
        )
    return table(("member", KINDS[kind], "difference", "95%", "seeds", "p", "Holm", "tasks"), rows)
