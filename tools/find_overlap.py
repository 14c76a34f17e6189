r"""Finds evaluation examples that share 13 consecutive words with the training data, and counts them by pairs of tasks.

    python -m tools.cache_tasks --mixture=opt_iml --data_dir=data --cache_dir=cache --tokenizer=facebook/opt-125m
    python -m tools.cache_tasks --suite=opt_eval,mmlu --data_dir=data --cache_dir=cache --max_prompts_per_task=0
    python -m tools.find_overlap --train=opt_iml --eval=opt_eval,mmlu --cache_dir=cache \
        --output=overlap.tsv --review=review.tsv
    python -m tools.cache_tasks --suite=opt_eval,mmlu ... --review=review.tsv --overlap=overlap.examples.tsv

`overlap` is the fraction of an evaluation task's examples that share a 13-gram with the train task (paper 2.3), `own`
the same without 13-grams that more than half of the task's examples have, because those are its wording. Pairs above
the threshold are written to the review, with earlier decisions; fill in `decision` (keep, drop_train or
drop_evaluation), `reason` and `reviewer`. `overlap.examples.tsv` lists the examples that share more than wording; with
this file a ledger marks them. Flags that --help does not list are passed to Beam: with --runner each task is an
element.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from optiml_jax.common.errors import UserError, exit_on_user_error
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser, output_file, table
from optiml_jax.data import cache_paths
from optiml_jax.data.lookup import find_manifest
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.store import SPLIT, TokenStore
from optiml_jax.evaluation.prompts.ledger import read_ledger
from optiml_jax.tokenizer import Tokenizer
from tasks.caching import pipeline
from tasks.catalog import review
from tasks.catalog.review import TaskPair
from tasks.decontamination import overlap
from tasks.decontamination.overlap import Index, N, TokenHashes

SHOWN = 20  # pairs printed
DEFINITION = (
    f"# a pair shares {N} consecutive words; a word is a run of bytes between ASCII white space, in lower case and "
    "without ASCII punctuation; a train sequence is as it is cached, an evaluation example is its prompts with a right "
    "answer and without demonstrations"
)
COLUMNS = ("train", "evaluation", "examples", "sharing", "overlap", "own")


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser("tools.find_overlap", __doc__)
    add = parser.add_argument
    add("--train", required=True, help="a mixture whose token store is in --cache_dir")
    add("--eval", required=True, help="suites whose ledgers are in --cache_dir, with commas")
    add("--cache_dir", required=True, help="folder that tools.cache_tasks wrote")
    add("--tokenizer", help="tokenizer of the store, if the mixture is cached for several")
    add("--output", type=output_file, required=True, help="output table of pairs; a file beside it lists the examples")
    add("--review", help="file of pairs above the threshold, for decisions; existing decisions are preserved")
    add("--threshold", type=float, default=0.01, help="fraction of the evaluation task's examples (0.01)")
    add("--processes", type=int, default=os.cpu_count(), help="tasks processed in parallel (one per core)")
    flags, beam_flags = parser.parse_known_args(arguments)
    if flags.processes < 1:
        raise UserError(f"--processes={flags.processes}: must be at least 1")
    if not 0 <= flags.threshold <= 1:
        raise UserError(f"--threshold={flags.threshold}: must be a fraction, such as 0.01")
    if beam_flags:
        pipeline.check_flags(beam_flags, [action.option_strings[0] for action in parser._actions])
    return flags, beam_flags


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags, beam_flags = parse(arguments)
    start = time.perf_counter()
    fingerprint = Tokenizer.load(flags.tokenizer).fingerprint if flags.tokenizer else None
    path = find_manifest(flags.cache_dir, flags.train, fingerprint)
    manifest = Manifest.read(path)
    ledgers = [cache_paths.ledger_path(flags.cache_dir, name.strip()) for name in flags.eval.split(",")]
    decided = review.read(flags.review) if flags.review and Path(flags.review).exists() else ()
    tasks, evaluated = overlap.examples(prompt for path in ledgers for prompt in read_ledger(path))
    index = Index.build(evaluated)
    indexed = time.perf_counter()
    names = [task.name for task in sorted(manifest.tasks, key=lambda task: -task.examples)]
    with tempfile.TemporaryDirectory(dir=flags.cache_dir, prefix=".overlap-") as folder:
        index.save(Path(folder))
        run = beam(beam_flags) if beam_flags else functools.partial(local, flags.processes)
        shared, tokens = {}, 0
        for name, positions, count in tqdm(run(str(path), folder, names), "overlap", len(names), unit="task"):
            shared[name] = index.shared(positions)
            tokens += count
    rows = pairs(tasks, evaluated, shared)
    summary = (
        f"{len(shared):,} train tasks with {tokens:,} tokens, {len(tasks):,} evaluation tasks with {len(evaluated):,} "
        f"examples and {len(index.grams):,} different {N}-grams: {len(rows):,} pairs share one"
    )
    contaminated = Counter(int(number) for _, more in shared.values() for number in more)
    path = Path(flags.output).with_suffix(".examples.tsv")
    overlap.write_examples(path, tasks, evaluated, contaminated)
    write_table(flags.output, summary, rows)  # last: a table whose writing succeeds has its examples
    print(table(COLUMNS, rows[:SHOWN]) if rows else "no pair shares anything")
    above = [row for row in rows if row[4] > flags.threshold]
    print(f"{summary}; {len(above):,} above {flags.threshold:.0%} of the examples")
    print(f"all pairs: {flags.output}; examples: {path}")
    if flags.review:
        measured = [
            TaskPair(train, task, f"{share:.4f}", f"{beyond_wording:.4f}")
            for train, task, _, _, share, beyond_wording in above
        ]
        reviewed = review.merged(measured, decided)
        review.write(flags.review, reviewed)
        open_ = sum(not pair.decision for pair in reviewed)
        print(f"review: {flags.review}, {open_:,} of {len(reviewed):,} pairs to decide")
    took = time.perf_counter() - indexed
    rate = tokens / took / 1e6
    print(f"{indexed - start:.1f} s for the index, {took:.1f} s for the training tasks: {rate:.1f} M tokens per second")


def pairs(
    tasks: Sequence[str],
    evaluated: Sequence[overlap.EvaluationExample],
    shared: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> list[tuple]:
    """Returns a row of `COLUMNS` per overlapping pair, sorted by the overlap apart from wording.

    Args:
      shared: train task -> result of `Index.shared`.
    """
    of_task = np.array([example.task for example in evaluated], np.int64)
    sizes = np.bincount(of_task, minlength=len(tasks))
    rows = []
    for train, both in shared.items():
        any_gram, beyond_wording = (np.bincount(of_task[numbers], minlength=len(tasks)) for numbers in both)
        for i in np.flatnonzero(any_gram):
            rows.append(
                (train, tasks[i], int(sizes[i]), int(any_gram[i]), any_gram[i] / sizes[i], beyond_wording[i] / sizes[i])
            )
    return sorted(rows, key=lambda row: (-row[5], -row[4], row[0], row[1]))


def write_table(path: str, summary: str, rows: Sequence[tuple]) -> None:
    lines = ("\t".join((*map(str, row[:4]), *(f"{share:.4f}" for share in row[4:]))) for row in rows)
    write_atomically(path, "\n".join([DEFINITION, f"# {summary}", "\t".join(COLUMNS), *lines]) + "\n")


def match(manifest: str, index: str, task: str) -> tuple[str, np.ndarray, int]:
    """Beam element: the matches of a task with the index."""
    store, vocabulary, index = _opened(manifest, index)
    return task, *overlap.store_matches(store, task, SPLIT, vocabulary, index)


@functools.cache
def _opened(manifest: str, index: str) -> tuple[TokenStore, TokenHashes, Index]:
    store = TokenStore.open(manifest)
    vocabulary = TokenHashes.from_bytes(store.load_tokenizer().token_bytes())
    return store, vocabulary, Index.load(Path(index))


def local(processes: int, store: str, index: str, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray, int]]:
    """Processes every task in local processes."""
    if processes == 1:
        yield from (match(store, index, name) for name in names)
        return
    context = multiprocessing.get_context("spawn")  # NumPy's threads may hang after a fork
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        jobs = [pool.submit(match, store, index, name) for name in names]
        for job in concurrent.futures.as_completed(jobs):
            yield job.result()


def beam(flags: Sequence[str]):
    """Processes every task in a Beam pipeline, whose workers see the files and write results to the folder of the
    index."""

    def run(store: str, index: str, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray, int]]:
        beam_, options = pipeline.import_beam()
        with beam_.Pipeline(options=options(list(flags))) as built:
            elements = built | beam_.Create(list(names)) | beam_.Reshuffle()
            _ = elements | beam_.Map(match_to_file, store, index)
        for name in names:
            with np.load(Path(index) / f"{name}.npz") as result:
                yield name, result["positions"], int(result["tokens"])

    return run


def match_to_file(task: str, store: str, index: str) -> None:
    """Writes the result of `match` to a file in the folder of the index."""
    _, positions, tokens = match(store, index, task)
    np.savez(Path(index) / f"{task}.npz", positions=positions, tokens=tokens)


if __name__ == "__main__":
    main()
