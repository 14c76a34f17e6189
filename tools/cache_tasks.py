r"""Builds or updates the token store of a mixture and the prompt ledger of a suite.

    python -m tools.cache_tasks --mixture=samples --cache_dir=cache/samples
    python -m tools.cache_tasks --mixture=super_natural_instructions --data_dir=data --cache_dir=cache/ni \
        --tokenizer=facebook/opt-125m
    python -m tools.cache_tasks --suite=super_natural_instructions --data_dir=data --cache_dir=cache/ni
    python -m tools.cache_tasks --suite=mmlu,bbh --data_dir=data --cache_dir=cache/ni

    python -m tools.cache_tasks --verify --cache_dir=cache/ni

A mixture also writes the ledger of the suite with the same name, if there is one. `--data_dir` holds one folder per
benchmark. Flags that --help does not list are passed to Beam, such as --runner=FlinkRunner.
"""

import argparse
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path

from optiml_jax.common.errors import DataError, UserError, exit_on_user_error
from optiml_jax.common.tables import Parser, table
from optiml_jax.data import cache_paths
from optiml_jax.data.manifest import coverage_text
from optiml_jax.data.sampling import shares_text
from optiml_jax.data.settings import LEAVE_OUT, REFUSE
from optiml_jax.data.verify import splits
from optiml_jax.tokenizer import Tokenizer
from tasks import suites
from tasks.benchmarks import samples
from tasks.caching import build, pipeline
from tasks.caching.shard import Limits
from tasks.caching.work_item import Job
from tasks.catalog import mixtures
from tasks.catalog.registry import MissingError
from tasks.decontamination import overlap
from tasks.example import Skipped
from tasks.prompting.demonstrations import SEPARATOR
from tasks.suites import ledger_job
from tasks.task import Options

FEW_TASKS = 40  # longer tables are abbreviated
LARGEST = 20
LISTED = 20  # skipped records printed
HEADER = ("task", "examples", "tokens", "label tokens", "skipped")
SUITE_COLUMNS = ("task", "split", "level", "prompts")


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Returns the flags of this tool, and the remaining ones for Beam."""
    parser = Parser("tools.cache_tasks", __doc__)
    add = parser.add_argument
    add("--verify", action="store_true", help="check every byte of the store; write nothing")
    add("--mixture", help=f"mixture to train on: {', '.join(mixtures.names())}")
    add("--suite", help=f"suite to evaluate on, without a mixture; several with commas: {', '.join(suites.names())}")
    add("--data_dir", default=os.environ.get("OPTIML_DATA_DIR"), help="raw data, one folder per benchmark")
    add("--cache_dir", required=True, help="folder of the store")
    add(
        "--tokenizer", default=os.environ.get("OPTIML_TOKENIZER"), help="directory or hub name; the samples include one"
    )
    add("--held_out_instances", type=int, help="validation instances of each task (samples: 32, others: 0)")
    add("--max_label_tokens", type=int, default=0, help="skip and list examples with longer labels")
    add("--row_length", type=int, default=Limits.row_length, help="length of the pieces of longer documents (2048)")
    add("--max_prompts_per_task", type=int, default=250, help="prompts per split in the ledger, selected by id; 0: all")
    add(
        "--all_templates",
        action="store_true",
        help="also use templates that alter the original task (PromptSource, FLAN)",
    )
    add("--t0_truncation", action="store_true", help="cut fields of PromptSource to 2,048 characters, as T0 did")
    add(
        "--demonstration_separator",
        default=SEPARATOR,
        help="text between examples of a few-shot prompt (three line breaks)",
    )
    add(
        "--missing_benchmarks",
        choices=(REFUSE, LEAVE_OUT),
        default=REFUSE,
        help="benchmarks of a mixture whose data are missing (refuse)",
    )
    add("--review", help="decisions of tools.find_overlap on pairs of tasks: which task to drop")
    add("--overlap", help="OUTPUT.examples.tsv of tools.find_overlap: examples that the ledger marks as contaminated")
    add(
        "--allow_bad_records", action="store_true", help="skip bad records even if more than 1%% of a split is unusable"
    )
    add("--allow_empty_tasks", action="store_true", help="leave out tasks without usable instances")
    flags, beam_flags = parser.parse_known_args(arguments)
    if not flags.verify and (flags.mixture is None) == (flags.suite is None):
        parser.error("give one of --mixture and --suite")
    for name in ("held_out_instances", "max_label_tokens", "max_prompts_per_task"):
        if (getattr(flags, name) or 0) < 0:
            raise UserError(f"--{name}={getattr(flags, name)}: must not be negative")
    if flags.row_length < 2:
        raise UserError(f"--row_length={flags.row_length}: must be at least 2")
    if beam_flags:
        pipeline.check_flags(beam_flags, [action.option_strings[0] for action in parser._actions])
    return flags, beam_flags


def tokenizer_of(flags: argparse.Namespace) -> Tokenizer:
    """Loads the requested tokenizer; the samples include one."""
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
    options = Options(
        flags.held_out_instances,
        flags.all_templates,
        flags.t0_truncation,
        flags.allow_bad_records,
        flags.allow_empty_tasks,
        flags.missing_benchmarks,
        flags.review,
    )
    contaminated = overlap.read_examples(flags.overlap) if flags.overlap else None
    selected = [suites.suite(name.strip()) for name in (flags.suite or "").split(",") if name]
    if flags.mixture:
        cache_mixture(flags, options, beam_flags)
        selected = [suites.suite(flags.mixture)] if flags.mixture in suites.names() else []
    separator = flags.demonstration_separator.replace("\\n", "\n")
    for suite in selected:
        start = time.perf_counter()
        try:
            result = ledger_job.run(
                suite,
                flags.data_dir,
                flags.cache_dir,
                options,
                flags.max_prompts_per_task,
                separator,
                may_be_empty=bool(flags.mixture),
                contaminated=contaminated,
            )
        except MissingError as error:
            if len(selected) == 1 or options.missing_benchmarks == REFUSE:
                raise
            print(f"suite {suite.name} is left out: {error}")
            continue
        print(ledger_report(suite.name, result, time.perf_counter() - start, alone=not flags.mixture))


def cache_mixture(flags: argparse.Namespace, options: Options, beam_flags: Sequence[str]) -> None:
    mixtures.mixture(flags.mixture)  # report a misspelt mixture before a missing tokenizer
    tokenizer = tokenizer_of(flags)
    store = str(cache_paths.store_for(flags.cache_dir, tokenizer.fingerprint))
    limits = Limits(flags.max_label_tokens, flags.row_length)
    job = Job(flags.mixture, flags.data_dir, store, options, limits)
    start = time.perf_counter()
    result = build.run(job, tokenizer, beam_flags, functools.partial(print, flush=True))
    print(report(job, result, time.perf_counter() - start))


def verify(cache_dir: str) -> None:
    """Prints that the store is intact, or every fault.

    Raises:
      DataError: the first fault; the others are printed before it.
    """
    start = time.perf_counter()
    stores = cache_paths.stores(cache_dir) or [Path(cache_dir)]
    faults = [fault for store in stores for fault in build.verify(store)]
    for fault in faults[1:]:
        print(fault)
    if faults:
        raise DataError(faults[0] + (f" (and {len(faults) - 1} more faults, listed above)" if faults[1:] else ""))
    seconds = time.perf_counter() - start
    count = sum(len(splits(store)) for store in stores)
    print(f"{cache_dir}: {count} tasks are intact, checked in {seconds:.1f} s")


def report(job: Job, result: build.CacheResult, seconds: float) -> str:
    """Prints tables and lists of the cached tasks; long ones go to files beside the manifest."""
    stats = [build.read_stats(job.cache_dir, task.name) for task in result.tasks]
    if not stats:
        return f"mixture {job.mixture}: there is no task to train on; {coverage_text(result.manifest.coverage)}"
    rows = [_row(s, s["task"]) for s in stats]
    totals = [_sum(stats, name) for name in sorted({s["benchmark"] for s in stats})]
    beside = cache_paths.manifest_path(job.cache_dir, job.mixture)
    skipped = [Skipped(**item) for s in stats for item in s["skipped"]]
    lines = [
        *_folded(HEADER, rows, totals, 2, beside.with_suffix(".txt")),
        "",
        *_skipped(skipped, sum(s["skipped_count"] for s in stats), result.left_out, beside.with_suffix(".skipped.txt")),
        coverage_text(result.manifest.coverage),
        *filter(None, [shares_text(result.manifest)]),
    ]
    longest = max(stats, key=lambda s: s["longest_label"])
    lines.append(
        f"longest label: {longest['longest_label']:,} tokens, {longest['task']} {longest['longest_label_example']}"
    )
    new = {task.name for task in result.written}
    tokens = sum(s["tokens"] for s in stats if s["task"] in new)
    if new:
        lines.append(f"wrote {len(new)} of {len(stats)} tasks, {tokens:,} tokens, in {seconds:.1f} s")
        rate = tokens / result.seconds / 1e6
        lines[-1] += f" ({result.seconds:.1f} s of it in the pipeline: {rate:.2f} million tokens per second)"
    else:
        lines.append(f"all {len(stats)} tasks were already cached, checked in {seconds:.1f} s")
    lines.append(f"store: {job.cache_dir}")
    return "\n".join(lines)


def ledger_report(suite: str, result: ledger_job.LedgerResult, seconds: float, alone: bool) -> str:
    """Prints the contents of a suite: one line after a mixture, otherwise the whole table."""
    rows = [(*where, count) for where, count in result.prompts.items()]
    beside = result.path.with_suffix(".txt")
    left_out = result.left_out if alone else ()  # otherwise they are listed with the mixture
    lines = _folded(SUITE_COLUMNS, rows, [(suite, "all", "all", result.count)], 3, beside) if alone else []
    if alone or result.skipped_count:
        lines += [
            "",
            *_skipped(result.skipped, result.skipped_count, left_out, result.path.with_suffix(".skipped.txt")),
        ]
    done = "written" if result.written else "already written, checked"
    lines.append(f"ledger: {result.path}, {result.count:,} prompts of {len(rows):,} tasks, {done} in {seconds:.1f} s")
    return "\n".join(lines)


def _row(stats: dict, task: str) -> tuple:
    return task, stats["examples"], stats["tokens"], stats["label_tokens"], stats["skipped_count"]


def _sum(stats: Sequence[dict], benchmark: str) -> tuple:
    matching = [s for s in stats if s["benchmark"] == benchmark]
    keys = ("examples", "tokens", "label_tokens", "skipped_count")
    return _row({key: sum(s[key] for s in matching) for key in keys}, f"{benchmark} ({len(matching)} tasks)")


def _folded(header: Sequence[str], rows: list[tuple], totals: list[tuple], by: int, path: Path) -> list[str]:
    """Returns a table, or its rows with the largest values in column `by` and the path of the whole table."""
    path.write_text(table(header, rows + totals) + "\n", encoding="utf-8")
    if len(rows) <= FEW_TASKS:
        return [table(header, rows + totals)]
    shown = sorted(rows, key=lambda row: -row[by])[:LARGEST]
    return [table(header, shown + totals), f"the {len(shown)} largest of {len(rows)} tasks; all of them: {path}"]


def _skipped(skipped: Sequence[Skipped], count: int, left_out: Sequence[Skipped], path: Path) -> list[str]:
    """Lists every record and task left out, with the reason: prints the first twenty and writes all to a file."""
    path.unlink(missing_ok=True)
    lines = [f"{item.where}: {item.reason}" for item in (*skipped, *left_out)]
    if not lines:
        return ["skipped: nothing"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    more = [f"  ... all of them: {path}"] if len(lines) > LISTED else []
    counted = f"skipped: {count:,} records; {len(left_out):,} tasks left out"
    return [counted, *(f"  {line}" for line in lines[:LISTED]), *more]


if __name__ == "__main__":
    main()
