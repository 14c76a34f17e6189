r"""Builds the token store and the prompt ledger of a mixture, or brings them up to date.

    python -m tools.cache_tasks --mixture=samples --cache_dir=cache/samples
    python -m tools.cache_tasks --mixture=super_natural_instructions --data_dir=data --cache_dir=cache/ni \
        --tokenizer=facebook/opt-125m

    python -m tools.cache_tasks --verify --cache_dir=cache/ni

`--data_dir` holds one folder a benchmark. Flags that are not listed by --help are Beam's, such as --runner=FlinkRunner.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["OPTIML_TASKS_WITHOUT_SEQIO"] = "1"  # for the imports below: TensorFlow takes 5 s, and nothing here uses it

from optiml_jax.data import caches
from optiml_jax.data.sampling import coverage_text
from optiml_jax.data.verify import splits
from optiml_jax.errors import DataError, UserError, exit_on_user_error, nearest
from optiml_jax.opt.tokenizer import Tokenizer
from optiml_jax.tables import Parser, table
from tasks import artifacts, caching, mixtures, pipeline
from tasks.benchmarks import samples
from tasks.caching import Result
from tasks.jobs import Job
from tasks.registry import Options

del os.environ["OPTIML_TASKS_WITHOUT_SEQIO"]

FEW_TASKS = 40  # up to here the whole table is printed
LARGEST = 20
LISTED = 20  # skipped records printed
HEADER = ("task", "split", "examples", "tokens", "label tokens", "skipped")


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and those left for Beam."""
    parser = Parser("tools.cache_tasks", __doc__)
    add = parser.add_argument
    add("--verify", action="store_true", help="check every byte of the store; write nothing")
    verify = "--verify" in (sys.argv[1:] if arguments is None else arguments)
    add("--mixture", required=not verify, help=", ".join(mixtures.MIXTURES))
    add("--data_dir", default=os.environ.get("OPTIML_DATA_DIR"), help="raw data, one folder a benchmark")
    add("--cache_dir", required=True, help="where the store is, or will be")
    add("--tokenizer", default=os.environ.get("OPTIML_TOKENIZER"), help="directory or hub name; samples have their own")
    add("--held_out_instances", type=int, help="validation instances of each train task (samples: 32, others: 0)")
    add("--max_label_tokens", type=int, default=0, help="skip and list longer labels")
    add("--max_prompts_per_task", type=int, default=250, help="of a split in the ledger, chosen by id; 0: all")
    add("--allow_bad_records", action="store_true", help="skip them even when more than 1%% of a split is unusable")
    add("--allow_empty_tasks", action="store_true", help="leave out tasks without usable instances")
    flags, beam_flags = parser.parse_known_args(arguments)
    for name in ("held_out_instances", "max_label_tokens", "max_prompts_per_task"):
        if (getattr(flags, name) or 0) < 0:
            raise UserError(f"--{name}={getattr(flags, name)}: must not be negative")
    if beam_flags:
        check_beam_flags(beam_flags, [action.option_strings[0] for action in parser._actions])
    return flags, beam_flags


def check_beam_flags(beam_flags: Sequence[str], own: Sequence[str]) -> None:
    """Beam ignores flags it does not know; a misspelt flag must not be ignored."""
    known = pipeline.beam_flags()
    for flag in beam_flags:
        name = flag.split("=")[0]
        if flag.startswith("-") and name not in known:
            raise UserError(f"{name}: neither a flag of this tool nor of Beam{nearest(name, own) or '; see --help'}")


def tokenizer_of(flags: argparse.Namespace) -> Tokenizer:
    """The tokenizer asked for; the samples bring their own."""
    source = flags.tokenizer or (samples.TOKENIZER if flags.mixture == samples.NAME else None)
    if source is None:
        needed = "vocab.json + merges.txt, or facebook/opt-125m (in a gin file: TOKENIZER)"
        raise UserError(f"--tokenizer is needed for {flags.mixture}: {needed}")
    return Tokenizer.load(source)


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags, beam_flags = parse(arguments)
    if flags.verify:
        verify(flags.cache_dir)
        return
    mixtures.mixture(flags.mixture)  # a misspelt mixture before a missing tokenizer
    options = Options(flags.held_out_instances, flags.allow_bad_records, flags.allow_empty_tasks)
    tokenizer = tokenizer_of(flags)
    store = str(caches.store_for(flags.cache_dir, tokenizer.fingerprint))
    job = Job(flags.mixture, flags.data_dir, store, options, flags.max_label_tokens)
    start = time.perf_counter()
    announce = functools.partial(print, flush=True)
    result = caching.run(job, tokenizer, beam_flags, flags.max_prompts_per_task, announce)
    print(report(job, result, time.perf_counter() - start))


def verify(cache_dir: str) -> None:
    """Says that the store is whole, or names what is not.

    Raises:
      DataError: the first fault; the others are printed before.
    """
    start = time.perf_counter()
    stores = caches.stores(cache_dir) or [Path(cache_dir)]
    faults = [fault for store in stores for fault in caching.verify(store)]
    for fault in faults[1:]:
        print(fault)
    if faults:
        raise DataError(faults[0] + (f" (and {len(faults) - 1} more faults, listed above)" if faults[1:] else ""))
    seconds = time.perf_counter() - start
    count = sum(len(splits(store)) for store in stores)
    print(f"{cache_dir}: {count} splits are as they were written, checked in {seconds:.1f} s")


def report(job: Job, result: Result, seconds: float) -> str:
    """Tables and lists of what was cached; what is too long to print goes to files beside the manifest."""
    stats = [artifacts.read_stats(job.cache_dir, task.name, split) for task, split in result.splits]
    rows = [_row(s, s["task"], s["split"]) for s in stats]
    totals = [_sum(stats, name) for name in sorted({s["benchmark"] for s in stats})]
    directory = artifacts.manifest_path(job.cache_dir, job.mixture).parent
    whole = directory / f"{job.mixture}.txt"
    whole.write_text(table(HEADER, rows + totals) + "\n", encoding="utf-8")
    shown = rows
    note = []
    if len({s["task"] for s in stats}) > FEW_TASKS:
        shown = sorted(rows, key=lambda row: -row[3])[:LARGEST]
        note = [f"the {len(shown)} largest of {len(rows)} splits; all of them: {whole}"]
    lines = [
        table(HEADER, shown + totals),
        *note,
        "",
        *_skipped(stats, result, directory / f"{job.mixture}.skipped.txt"),
    ]
    lines.append(coverage_text(result.coverage))
    longest = max(stats, key=lambda s: s["longest_label"])
    lines.append(
        f"longest label: {longest['longest_label']:,} tokens, {longest['task']} {longest['longest_label_example']}"
    )
    new = {(task.name, split) for task, split in result.written}
    tokens = sum(s["tokens"] for s in stats if (s["task"], s["split"]) in new)
    if new:
        lines.append(f"wrote {len(new)} of {len(stats)} splits, {tokens:,} tokens, in {seconds:.1f} s")
        rate = tokens / result.seconds / 1e6
        lines[-1] += f" ({result.seconds:.1f} s of it in the pipeline: {rate:.2f} million tokens a second)"
    else:
        lines.append(f"all {len(stats)} splits were there, checked in {seconds:.1f} s")
    ledger = artifacts.ledger_path(job.cache_dir, job.mixture)
    lines.append(f"store: {job.cache_dir}  ledger: {ledger}, {result.prompts:,} prompts")
    return "\n".join(lines)


def _row(stats: dict, task: str, split: str) -> tuple:
    return task, split, stats["examples"], stats["tokens"], stats["label_tokens"], stats["skipped_count"]


def _sum(stats: Sequence[dict], benchmark: str) -> tuple:
    own = [s for s in stats if s["benchmark"] == benchmark]
    keys = ("examples", "tokens", "label_tokens", "skipped_count")
    tasks = len({s["task"] for s in own})
    return _row({key: sum(s[key] for s in own) for key in keys}, f"{benchmark} ({tasks} tasks)", "all")


def _skipped(stats: Sequence[dict], result: Result, path: Path) -> list[str]:
    """Every record and task left out, with the reason: the first twenty here, all in a file."""
    path.unlink(missing_ok=True)
    lines = [f"{item['where']}: {item['reason']}" for s in stats for item in s["skipped"]]
    lines += [f"{item.where}: {item.reason}" for item in result.left_out]
    if not lines:
        return ["skipped: nothing"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    records = sum(s["skipped_count"] for s in stats)
    more = [f"  ... all of them: {path}"] if len(lines) > LISTED else []
    counted = f"skipped: {records:,} records; {len(result.left_out):,} tasks left out"
    return [counted, *(f"  {line}" for line in lines[:LISTED]), *more]


if __name__ == "__main__":
    main()
