"""Runs an experiment: every member of a sweep, in turn on this machine or as jobs of a cluster.

    python -m tools.run_sweep experiments/eps --gin.INIT_WEIGHTS=weights/opt-30b --gin.CACHE_DIR=cache
    python -m tools.run_sweep experiments/eps --seeds=3 --launch=slurm --nodes=8 --gin.INIT_WEIGHTS=weights/opt-30b
    python -m tools.run_sweep experiments/eps --collect

A sweep is a folder of gin files, one per member. A run goes to runs/SWEEP/MEMBER/seedN. Run again, the command skips
what is finished, resumes what is not, and starts what failed. Settings (--gin.NAME=VALUE, --gin_file=FILE) apply to all
members. Results of all members are collected in runs/SWEEP/sweep.json, which tools.paper_tables and tools.compare_runs
read.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from optiml_jax.common.errors import UserError, check_known, exit_on_user_error
from optiml_jax.common.files import exclusive, write_atomically
from optiml_jax.common.tables import Parser, output_folder
from tasks.paper.runs import RECORD
from tools.sweep import collecting, launchers, members, running, state
from tools.sweep.members import Member, Sweep

LAUNCHERS = ("here", "print", "slurm", "kubernetes")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.run_sweep", __doc__)
    add = parser.add_argument
    add("sweeps", nargs="+", metavar="DIR_OR_GIN", help="folders of gin files, or gin files that are the members")
    add("--output", type=output_folder, default="runs", help="folder of the runs (runs)")
    add("--seeds", type=int, default=1, help="runs of each member, with SEED 1, 2, ... (1)")
    add("--members", help="only these members, such as 128,4096")
    add("--name", default="sweep", help="name of a sweep that is given as gin files (sweep)")
    add("--collect", action="store_true", help="run nothing, collect the results")
    add("--launch", choices=LAUNCHERS, default="here", help="here; print the commands; or write a job for a cluster")
    add("--nodes", type=int, default=1, help="nodes per run, of a cluster's job (1)")
    add("--gpus", type=int, default=8, help="GPUs per node, of a cluster's job (8)")
    add("--time", default="24:00:00", help="time limit of a Slurm job (24:00:00)")
    add("--image", default="optiml-jax:cuda", help="container image of a Kubernetes job (optiml-jax:cuda)")
    flags, flags.extra = parser.parse_known_args(arguments)
    for word in flags.extra:
        if not word.startswith(("--gin.", "--gin_file=")) or "=" not in word:
            parser.error(f"{word}: unknown flag; settings of all members are --gin.NAME=VALUE and --gin_file=FILE")
    for taken in ("MODEL_DIR", "SEED", "OUTPUT_DIR"):
        if any(word.startswith(f"--gin.{taken}=") for word in flags.extra):
            other = "--seeds" if taken == "SEED" else "--output"
            parser.error(f"--gin.{taken}: every run has its own; use {other}")
    for name in ("seeds", "nodes", "gpus"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name}={getattr(flags, name)} must be at least 1")
    return flags


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    sweeps = members.load(flags.sweeps, flags.name)
    names = flags.members.split(",") if flags.members else None
    if names:
        for name in names:
            check_known("member", name, {member for sweep in sweeps for member in sweep.members})
    failed = [failure for sweep in sweeps for failure in _sweep(sweep, names, flags)]
    if failed:
        raise SystemExit(1)


class Status(NamedTuple):
    """What is known of the runs of a sweep before it starts.

    Attributes:
      steps: of each run with correct settings; 0 for an evaluation.
      finished: runs with results of these settings.
      errors: what is wrong with the settings of a run.
    """

    steps: dict[Member, int]
    finished: list[Member]
    errors: dict[Member, str]


def _status(every: Sequence[Member]) -> Status:
    status = Status({}, [], {})
    for member in every:
        try:
            settings = state.settings(member)
        except UserError as error:
            status.errors[member] = str(error).splitlines()[0]  # gin adds lines of its own
            continue
        status.steps[member] = settings["optimization"].train_steps if "optimization" in settings else 0
        if state.finished(member, settings):
            status.finished.append(member)
    return status


def _sweep(sweep: Sweep, names: Sequence[str] | None, flags: argparse.Namespace) -> list[Member]:
    """Runs or launches a sweep; returns the runs that failed.

    Args:
      names: members to run; None: all. Results of the others are collected as well.
    """
    output, seeds = Path(flags.output), range(1, flags.seeds + 1)
    every = members.runs(sweep, output, sorted({*seeds, *members.seeds_of(sweep, output)}), flags.extra)
    status = _status(every)
    chosen = [member for member in every if member.seed in seeds and (names is None or member.name in names)]
    remaining = [member for member in chosen if member in status.steps and member not in status.finished]
    print(f"{sweep.name}: {sweep.title}" if sweep.title else sweep.name)
    count = sum(member in status.finished for member in chosen)
    print(f"{len(chosen)} runs into {output / sweep.name}, {count} finished")
    for member in chosen:
        if member in status.errors:
            print(f"{member.title}: wrong settings: {status.errors[member]}")
    if flags.launch != "here" and not flags.collect:
        _launch(sweep, remaining, flags)
        return [member for member in chosen if member in status.errors]
    done, errors, seconds = list(status.finished), dict(status.errors), {}
    with exclusive(output / sweep.name, "wait for that sweep or choose another --output"):
        if not flags.collect:
            for member, outcome in running.run_all(remaining, status.steps.__getitem__, count):
                if outcome.error is not None:
                    errors[member] = outcome.error
                else:
                    done.append(member)
                    seconds[member] = outcome.seconds
                _collect(sweep, every, done, errors, output, seconds)
        content = _collect(sweep, every, done, errors, output, seconds)
    print("\n" + collecting.summary(content))
    failed = [member for member in chosen if member in errors]
    for member in failed:
        log = "" if member in status.errors else f" ({running.log_file(member)})"
        print(f"failed: {member.title}: {errors[member]}{log}")
    print(f"results   {output / sweep.name / RECORD}")
    if sweep.table and content["runs"]:
        print(f"beside the paper's: python -m tools.paper_tables --table={sweep.table} --runs={output / sweep.name}")
    sys.stdout.flush()
    return failed


def _collect(
    sweep: Sweep,
    every: Sequence[Member],
    done: Sequence[Member],
    errors: dict[Member, str],
    output: Path,
    seconds: dict[Member, float],
) -> dict:
    unfinished = {member: errors.get(member, "not finished") for member in every if member not in done}
    return collecting.collect(sweep, every, unfinished, output, seconds)


def _launch(sweep: Sweep, remaining: Sequence[Member], flags: argparse.Namespace) -> None:
    """Prints the commands of unfinished runs, or writes a job for them."""
    if not remaining:
        print("nothing to launch")
        return
    if flags.launch == "print":
        print("\n".join(launchers.command(member) for member in remaining))
        return
    folder = Path(flags.output, sweep.name)
    resources = launchers.Resources(flags.nodes, flags.gpus, flags.time, flags.image)
    if flags.launch == "slurm":
        path, submit = folder / "sweep.sbatch", "sbatch"
        text = launchers.slurm(sweep.name, remaining, resources, str(folder))
    else:
        path, submit = folder / "sweep.k8s.yaml", "kubectl apply -f"
        text = launchers.kubernetes(sweep.name, remaining, resources)
    write_atomically(path, text)
    print(f"{len(remaining)} runs: {submit} {path}")
    print("afterwards: the same command with --collect")


if __name__ == "__main__":
    main()
