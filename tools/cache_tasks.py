r"""Builds or updates the token store of a mixture and the prompt ledger of a suite.

    python -m tools.cache_tasks --mixture=samples --cache_dir=cache/samples
    python -m tools.cache_tasks --mixture=super_natural_instructions --data_dir=data --cache_dir=cache/ni \
        --tokenizer=facebook/opt-125m
    python -m tools.cache_tasks --suite=super_natural_instructions --data_dir=data --cache_dir=cache/ni
    python -m tools.cache_tasks --suite=mmlu,bbh --data_dir=data --cache_dir=cache/ni

    python -m tools.cache_tasks --verify --cache_dir=cache/ni
    python -m tools.cache_tasks --prune --cache_dir=cache/ni

A mixture also writes the ledgers of the suites of its benchmarks. `--data_dir` holds one folder per benchmark. A cache
holds any number of mixtures, tokenizers and options side by side. Flags that --help does not list are passed to Beam,
such as --runner=FlinkRunner.
"""

import argparse
import functools
import os
import time
from collections.abc import Sequence

from optiml_jax.common.errors import DataError, UserError, exit_on_user_error
from optiml_jax.common.settings import FROM_ZERO, check
from optiml_jax.common.tables import Parser, output_folder
from optiml_jax.data.manifest import SEPARATOR as MIXTURE_SEPARATOR
from optiml_jax.data.specification import OPTIONS, RANGES, REFUSE, CacheOptions
from optiml_jax.data.verify import contents
from optiml_jax.tokenizer import Tokenizer
from tasks import suites
from tasks.benchmarks import samples
from tasks.caching import build, pipeline, prune
from tasks.caching.work_item import Job
from tasks.catalog import mixtures
from tasks.catalog.registry import MissingError
from tasks.decontamination import overlap
from tasks.prompting.demonstrations import SEPARATOR
from tasks.suites import ledger_job
from tools import cache_report


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Returns the flags of this tool, and the remaining ones for Beam."""
    parser = Parser("tools.cache_tasks", __doc__)
    add = parser.add_argument
    add("--verify", action="store_true", help="check every byte of the store; write nothing")
    add("--prune", action="store_true", help="remove what no manifest points to and no run reads")
    add("--check", action="store_true", help="say whether the mixture is cached as it is now; write nothing")
    add("--quiet", action="store_true", help="print one line if nothing has changed")
    add("--mixture", help=f"mixture to train on: {', '.join(mixtures.names())}")
    add("--suite", help=f"suite to evaluate on, without a mixture; several with commas: {', '.join(suites.names())}")
    add("--data_dir", default=os.environ.get("OPTIML_DATA_DIR"), help="raw data, one folder per benchmark")
    add("--cache_dir", type=output_folder, required=True, help="folder of the store")
    add(
        "--tokenizer", default=os.environ.get("OPTIML_TOKENIZER"), help="directory or hub name; the samples include one"
    )
    for option in OPTIONS.values():
        help_, choices = option.metadata["help"], option.metadata.get("choices")
        if option.type is bool:
            add(f"--{option.name}", action="store_true", help=help_)
        else:
            kind = str if option.type in (str, str | None) else int
            add(f"--{option.name}", type=kind, default=option.default, choices=choices, help=help_)
    add("--max_prompts_per_task", type=int, default=250, help="prompts per split in the ledger, selected by id; 0: all")
    add(
        "--demonstration_separator",
        default=SEPARATOR,
        help="text between examples of a few-shot prompt (three line breaks)",
    )
    add("--overlap", help="OUTPUT.examples.tsv of tools.find_overlap: examples that the ledger marks as contaminated")
    flags, beam_flags = parser.parse_known_args(arguments)
    if not (flags.verify or flags.prune) and bool(flags.mixture) == bool(flags.suite):
        parser.error("give one of --mixture and --suite")
    flags.suites = [name.strip() for name in (flags.suite or "").split(",")] if flags.suite else []
    if "" in flags.suites or len(set(flags.suites)) < len(flags.suites):
        parser.error(f"--suite={flags.suite}: names a suite twice, or has an empty name")
    check("--max_prompts_per_task", flags.max_prompts_per_task, int, FROM_ZERO)
    for name, option in OPTIONS.items():
        check(f"--{name}", getattr(flags, name), option.type, RANGES.get(name))
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
    elif flags.prune:
        print(prune.run(flags.cache_dir))
    elif flags.mixture:
        cache_mixture(flags, beam_flags)
    else:
        cache_suites(flags)


def cache_mixture(flags: argparse.Namespace, beam_flags: Sequence[str]) -> None:
    """Caches the tokens of a mixture and the ledgers of its benchmarks, and prints what it holds."""
    mixtures.mixture(flags.mixture)  # report a misspelt mixture before a missing tokenizer
    tokenizer, options = tokenizer_of(flags), cache_options(flags)
    job = Job(flags.mixture, flags.data_dir, flags.cache_dir, options)
    start = time.perf_counter()
    lines: list[str] = []

    def ledgers() -> dict[str, str]:
        paths = {}
        for name in flags.mixture.split(MIXTURE_SEPARATOR):
            if name in suites.names():
                began = time.perf_counter()
                result = write_ledger(flags, options, suites.suite(name), of_mixture=True)
                paths[name] = result.stored.relative_to(flags.cache_dir).as_posix()
                lines.append(cache_report.ledger_report(name, result, time.perf_counter() - began, alone=False))
        return paths

    announce = functools.partial(print, flush=True)
    result = build.run(job, tokenizer, beam_flags, announce, ledgers, flags.check)
    seconds = time.perf_counter() - start
    if flags.check or (flags.quiet and not result.written):
        print(cache_report.unchanged_report(result, seconds))
        return
    print("\n".join([cache_report.mixture_report(result, seconds), *lines]))


def cache_suites(flags: argparse.Namespace) -> None:
    """Writes the ledgers of suites, and prints what they hold."""
    options = cache_options(flags)
    selected = [suites.suite(name) for name in flags.suites]
    for suite in selected:
        start = time.perf_counter()
        try:
            result = write_ledger(flags, options, suite, of_mixture=False)
        except MissingError as error:
            if len(selected) == 1 or options.missing_benchmarks == REFUSE:
                raise
            print(f"suite {suite.name} is left out: {error}")
            continue
        print(cache_report.ledger_report(suite.name, result, time.perf_counter() - start, alone=True))


def write_ledger(
    flags: argparse.Namespace, options: CacheOptions, suite: suites.Suite, of_mixture: bool
) -> ledger_job.LedgerResult:
    """Brings the ledger of a suite up to date; that of a mixture may be empty, and is written while it is cached."""
    return ledger_job.run(
        suite,
        flags.data_dir,
        flags.cache_dir,
        options,
        flags.max_prompts_per_task,
        flags.demonstration_separator.replace("\\n", "\n"),
        may_be_empty=of_mixture,
        locked=of_mixture,
        contaminated=overlap.read_examples(flags.overlap) if flags.overlap else None,
    )


def cache_options(flags: argparse.Namespace) -> CacheOptions:
    """The options among the flags."""
    return CacheOptions(**{name: getattr(flags, name) for name in OPTIONS})


def verify(cache_dir: str) -> None:
    """Prints that the store is intact, or every fault.

    Raises:
      DataError: the first fault; the others are printed before it.
    """
    start = time.perf_counter()
    faults = list(build.verify(cache_dir))
    for fault in faults[1:]:
        print(fault)
    if faults:
        raise DataError(faults[0] + (f" (and {len(faults) - 1} more faults, listed above)" if faults[1:] else ""))
    seconds = time.perf_counter() - start
    print(f"{cache_dir}: {len(contents(cache_dir))} contents of tasks are intact, checked in {seconds:.1f} s")


if __name__ == "__main__":
    main()
