"""Writes the report of the small study: finding by finding, what the paper claims and what the runs show.

    python -m tools.small_study.report --runs=runs/small --output=runs/small_study/report

A finding compares the mean over tasks at a level. It agrees with the paper if two tests do: the 95% interval of the
difference over seeds excludes zero on the paper's side, and so does the sign-flip test over tasks, corrected for all
findings. It disagrees if both say the opposite; otherwise it cannot be told at this size. A claim that nothing changes
agrees if the interval over seeds lies within `SMALL` points of zero. Levels are those of the baseline for all members.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from optiml_jax.common.errors import UserError, exit_on_user_error
from optiml_jax.common.files import atomic, write_atomically
from optiml_jax.common.tables import Parser, output_folder
from optiml_jax.evaluation.prompts.ledger import LEVELS
from optiml_jax.evaluation.reports.tables import LEVEL_NAMES, signed
from optiml_jax.evaluation.scores import aggregation, trees
from optiml_jax.evaluation.scores.baselines import floor
from optiml_jax.evaluation.scores.significance import holm, sign_flip
from tasks.paper.runs import RECORD, Scores
from tools.sweep.comparing import read_sweep
from tools.sweep.running import duration

SMALL = 3.0  # points within which a setting counts as without effect
ALPHA = 0.05
BETTER, WORSE, SAME = "better", "worse", "the same"
SHOTS = ("0", "5")


class Claim(NamedTuple):
    """A sentence of the paper as a comparison.

    Attributes:
      second, first: members; the claim is how the second does in comparison.
      expected: `BETTER`, `WORSE` or `SAME`.
      levels, shots: over which the scores are averaged.
    """

    section: str
    text: str
    second: str
    first: str
    expected: str
    levels: tuple[str, ...] = LEVELS
    shots: tuple[str, ...] = ("0",)


HELD_OUT, TASKS, INSTANCES = LEVELS
CLAIMS = (
    Claim("4.2", "A cap on the examples per task is better than none", "baseline", "no_cap", BETTER),
    Claim("4.4", "More training tasks improve fully held-out tasks", "baseline", "tasks_16", BETTER, (HELD_OUT,)),
    Claim("4.4", "More training tasks improve new tasks of known categories", "baseline", "tasks_16", BETTER, (TASKS,)),
    Claim(
        "4.4",
        "Tasks that are always trained on do not change with the number of tasks",
        "baseline",
        "tasks_16",
        SAME,
        (INSTANCES,),
    ),
    Claim("4.8", "Training with demonstrations is worse at 0 shots", "zipf_2", "baseline", WORSE),
    Claim("4.8", "Training with demonstrations is worse at 5 shots", "zipf_2", "baseline", WORSE, shots=("5",)),
    Claim("4.8", "The suffix loss is better than the loss on the last answer", "zipf_2_suffix", "zipf_2", BETTER),
    Claim("4.8", "The suffix loss is better at 5 shots", "zipf_2_suffix", "zipf_2", BETTER, shots=("5",)),
    Claim("3.2", "Attention inside of each example is better than over whole rows", "baseline", "whole_row", BETTER),
)


class Finding(NamedTuple):
    """A claim and what the runs show, in points.

    Attributes:
      difference: over seeds, of runs with the same seed.
      p, p_holm: of the sign-flip test over tasks, and corrected for all claims.
      tasks: their number.
    """

    claim: Claim
    difference: Scores
    p: float
    tasks: int
    p_holm: float = math.nan

    @property
    def verdict(self) -> str:
        mean, width = self.difference.mean, self.difference.half_width
        if width is None:
            return "cannot be told with one seed"
        if self.claim.expected == SAME:
            if abs(mean) + width <= SMALL:
                return "agrees"
            return "disagrees" if self._differs and abs(mean) - width > 0 else "cannot be told at this size"
        sign = 1 if self.claim.expected == BETTER else -1
        if self._differs and sign * mean - width > 0:
            return "agrees"
        return "disagrees" if self._differs and -sign * mean - width > 0 else "cannot be told at this size"

    @property
    def _differs(self) -> bool:
        return self.p_holm < ALPHA


Run = Mapping[str, Any]  # of sweep.json


def levels_of(runs: Mapping[str, Mapping[str, Run]], baseline: str) -> dict[str, str]:
    """Task -> its level for the baseline, with which all members are compared."""
    tasks = next(iter(runs[baseline].values()))["tasks"]
    return {name: task["level"] for name, task in tasks.items()}


def _selected(run: Run, levels: Mapping[str, str], wanted: Sequence[str], shots: Sequence[str]) -> dict[str, dict]:
    """The tasks of these levels, with their scores at these numbers of shots."""
    return {
        name: task | {"level": levels[name], "shots": {k: task["shots"][k] for k in shots if k in task["shots"]}}
        for name, task in run["tasks"].items()
        if levels[name] in wanted
    }


def level_mean(run: Run, levels: Mapping[str, str], wanted: Sequence[str], shots: Sequence[str]) -> float:
    """Mean over the wanted levels of the means over their categories, in per cent."""
    tasks = _selected(run, levels, wanted, shots)
    return 100 * trees.mean(trees.by_level(tasks), aggregation.score_of(tasks))


def floor_mean(run: Run, levels: Mapping[str, str], level: str) -> float:
    """Mean floor of a level: the higher of the best constant answer and a random candidate, in per cent."""
    tasks = _selected(run, levels, (level,), SHOTS)
    return 100 * trees.mean(trees.by_level(tasks), lambda name, _: floor(tasks[name]["baselines"]) or 0.0)


def contributions(claim: Claim, first: Run, second: Run, levels: Mapping[str, str]) -> dict[str, float]:
    """Task -> what it adds to the difference of two runs' `level_mean`."""
    before, after = (_selected(run, levels, claim.levels, claim.shots) for run in (first, second))
    shares = trees.task_shares(trees.by_level(before))
    return {
        name: 100 * sum(share * (after[name]["shots"][k] - before[name]["shots"][k]) for k, share in by_shots.items())
        for name, by_shots in shares.items()
    }


def test(claim: Claim, runs: Mapping[str, Mapping[str, Run]], levels: Mapping[str, str]) -> Finding:
    """Compares the two members of a claim."""
    seeds = sorted(runs[claim.first].keys() & runs[claim.second].keys(), key=int)
    by_seed = [contributions(claim, runs[claim.first][k], runs[claim.second][k], levels) for k in seeds]
    by_task = np.array([list(by_name.values()) for by_name in by_seed])
    differences = Scores(tuple(by_task.sum(axis=1).tolist()))
    return Finding(claim, differences, sign_flip(by_task.mean(axis=0)), by_task.shape[1])


def findings(runs: Mapping[str, Mapping[str, Run]], levels: Mapping[str, str]) -> list[Finding]:
    """All claims whose members have runs, with p-values corrected for their number."""
    tested = [test(claim, runs, levels) for claim in CLAIMS if claim.first in runs and claim.second in runs]
    corrected = holm([finding.p for finding in tested])
    return [finding._replace(p_holm=p) for finding, p in zip(tested, corrected)]


def markdown(record: Mapping[str, Any], about: Sequence[str]) -> str:
    """The text of the report.

    Args:
      about: lines on how the study was run.
    """
    runs, baseline = record["runs"], record["baseline"]
    levels = levels_of(runs, baseline)
    tested = findings(runs, levels)
    verdicts = [finding.verdict.split(" at ")[0].split(" with ")[0] for finding in tested]
    counts = ", ".join(f"{kind} {verdicts.count(kind)}" for kind in dict.fromkeys(("agrees", "disagrees", *verdicts)))
    lines = ["# The small study", "", *about, "", f"Verdicts on {len(tested)} claims of the paper: {counts}.", ""]
    lines += ["## Findings", "", *_findings_table(tested), "", *_notes(), ""]
    lines += ["## Is there anything to tell apart?", "", *_floors(runs[baseline], levels), ""]
    lines += ["## Scores", "", *_scores(record, levels), ""]
    return "\n".join(lines)


def _findings_table(tested: Sequence[Finding]) -> list[str]:
    header = ("section", "the paper's claim", "compared", "difference", "95% over seeds", "p over tasks, Holm")
    header += ("tasks", "detectable", "verdict")
    rows = [f"| {' | '.join(header)} |", f"|---|---|---|{'---:|' * 5}---|"]
    for finding in tested:
        claim, width = finding.claim, finding.difference.half_width
        where = "" if claim.levels == LEVELS else f", {LEVEL_NAMES[claim.levels[0]][0].lower()}"
        where += f", {'/'.join(claim.shots)} shots"
        mean = finding.difference.mean
        span = "–" if width is None else f"{signed(mean - width, '+.1f')} to {signed(mean + width, '+.1f')}"
        p = "<0.001" if finding.p_holm < 0.001 else f"{finding.p_holm:.3f}"
        compared = f"{claim.second} - {claim.first}{where}"
        cells = (claim.section, claim.text, compared, signed(mean, "+.1f"), span, p, str(finding.tasks))
        rows.append(f"| {' | '.join(cells)} | {'–' if width is None else f'{width:.1f}'} | **{finding.verdict}** |")
    return rows


def _notes() -> list[str]:
    return [
        "Differences are points of the mean over levels and categories. "
        "*Detectable*: half of the interval over seeds, the smallest difference that it can tell from zero. A verdict "
        "needs both tests: the interval over seeds, because another seed gives another model, and the test over tasks, "
        "because a claim is about other tasks too. "
        f'"Do not change" agrees if the interval lies within {SMALL:.0f} points of zero.'
    ]


def _floors(seeds: Mapping[str, Run], levels: Mapping[str, str]) -> list[str]:
    rows = [
        "| level | shots | tasks | baseline, mean of the seeds | 95% over seeds | floor | gain |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for level, shots in itertools.product(LEVELS, SHOTS):
        scores = Scores(tuple(level_mean(run, levels, (level,), (shots,)) for run in seeds.values()))
        floor = floor_mean(next(iter(seeds.values())), levels, level)
        width = "–" if scores.half_width is None else f"± {scores.half_width:.1f}"
        count = sum(own == level for own in levels.values())
        cells = (shots, str(count), f"{scores.mean:.1f}", width, f"{floor:.1f}", signed(scores.mean - floor, "+.1f"))
        rows.append(f"| {LEVEL_NAMES[level][0]} | {' | '.join(cells)} |")
    return rows


def _scores(record: Mapping[str, Any], levels: Mapping[str, str]) -> list[str]:
    columns = [(level, k) for level in LEVELS for k in SHOTS]
    header = " | ".join(f"{LEVEL_NAMES[level][0]}, {k}-shot" for level, k in columns)
    rows = [f"| member | seeds | {header} | mean |", f"|---|---:|{'---:|' * (len(columns) + 1)}"]
    for member in record["members"]:
        seeds = record["runs"].get(member)
        if not seeds:
            continue
        cells = [_cell(level_mean(run, levels, (level,), (k,)) for run in seeds.values()) for level, k in columns]
        cells.append(_cell(level_mean(run, levels, LEVELS, SHOTS) for run in seeds.values()))
        rows.append(f"| {member} | {len(seeds)} | {' | '.join(cells)} |")
    return rows


def _cell(values: Iterable[float]) -> str:
    return str(Scores(tuple(values)))


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draws the scores of all members by level, with their intervals over seeds."""
    from matplotlib.figure import Figure

    levels = levels_of(record["runs"], record["baseline"])
    members = [member for member in record["members"] if member in record["runs"]]
    canvas = Figure(figsize=(12, 3.6), layout="constrained")
    axes = canvas.subplots(1, len(LEVELS), sharey=True)
    for axis, level in zip(axes, LEVELS):
        for offset, k in zip((-0.15, 0.15), SHOTS):
            scores = [
                Scores(tuple(level_mean(run, levels, (level,), (k,)) for run in record["runs"][member].values()))
                for member in members
            ]
            widths = [each.half_width or 0.0 for each in scores]
            places = [index + offset for index in range(len(members))]
            axis.errorbar([each.mean for each in scores], places, xerr=widths, fmt="o", markersize=4, label=f"{k}-shot")
        floor = floor_mean(next(iter(record["runs"][record["baseline"]].values())), levels, level)
        axis.axvline(floor, color="grey", linestyle=":", label="floor of the baseline")
        axis.set_title(LEVEL_NAMES[level][0], fontsize=10)
        axis.set_xlabel("score (%), 95% over seeds")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(members)), members)
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=8)
    with atomic(path) as file:
        canvas.savefig(file, format=path.suffix[1:], dpi=130)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.small_study.report", __doc__)
    add = parser.add_argument
    add("--runs", required=True, help="folder of the sweep, with its sweep.json")
    add("--output", type=output_folder, required=True, help="folder for report.md, scores.png and sweep.json")
    add("--about", help="file of Markdown text with the commands, the machine and the time, put on top")
    return parser.parse_args(arguments)


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    record, output = read_sweep(flags.runs), Path(flags.output)
    if record["baseline"] not in record["runs"]:
        raise UserError(f"--runs={flags.runs}: the baseline {record['baseline']} is not finished")
    about = Path(flags.about).read_text(encoding="utf-8").splitlines() if flags.about else []
    seconds = [run["seconds"] for seeds in record["runs"].values() for run in seeds.values() if run.get("seconds")]
    about.append(f"{len(seconds)} runs of tuning and evaluation took {duration(sum(seconds))} in all.")
    write_atomically(output / "report.md", markdown(record, about).rstrip("\n") + "\n\n![Scores](scores.png)\n")
    draw(record, output / "scores.png")
    if Path(flags.runs).resolve() != output.resolve():
        write_atomically(output / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(f"report    {output / 'report.md'}")


if __name__ == "__main__":
    main()
