r"""Computes the paper's Table 1 for the available data, beside the paper's numbers.

    python -m tools.dataset_statistics --data_dir=data --tokenizer=facebook/opt-125m
    python -m tools.dataset_statistics --data_dir=data --tokenizer=facebook/opt-125m --benchmarks=flan,t5 \
        --skipped=out.txt

Reads every record of every split and tokenises `--prompts` prompts of each. The second table has all splits, including
those that are never trained on. Records that cannot be read are counted, and `--skipped` lists them with the reason.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import os
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from optiml_jax.common.errors import DataError, check_known, exit_on_user_error
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser, output_file, table
from optiml_jax.data.specification import CacheOptions
from optiml_jax.tokenizer import Tokenizer, join
from tasks.catalog import mixtures, registry
from tasks.catalog.registry import Benchmark, MissingError
from tasks.example import Example, Skipped
from tasks.paper import numbers
from tasks.prompting.subsampling import Pool
from tasks.suites import flan, promptsource, super_natural_instructions_held_out, unifiedskg, validation
from tasks.task import Task

BATCH = 1024  # prompts per tokenizer call
REASONS = 12  # printed


class Paper(NamedTuple):
    """A row of Table 1; lengths are of prompts in tokens."""

    categories: int
    tasks: int
    examples: float
    prompts: float
    mean: int
    deviation: int


TRAINED = "OPT-IML Bench (train)"
NAMES = {"Super-NaturalInstructions": "super_natural_instructions", TRAINED: TRAINED}  # others: lower case


def _number(text: str) -> float:
    """Parses "1,545" and "12.4M"."""
    units = {"M": 1e6, "K": 1e3}
    return float(text.rstrip("MK").replace(",", "")) * units.get(text[-1], 1)


def _table_1() -> dict[str, Paper]:
    """Benchmark -> its row in the paper, and the row of all training tasks."""
    columns = ("n_clusters", "n_tasks", "total_examples", "avg_prompts_per_task")
    columns += ("prompt_length_mean", "prompt_length_std")
    rows = {}
    for line in numbers.texts(1):
        if line["prompt_length_mean"]:  # the splits for development and test have none
            clusters, tasks, *others = (_number(line[name]) for name in columns)
            examples, prompts, mean, deviation = others
            name = NAMES.get(line["row"], line["row"].lower())
            rows[name] = Paper(int(clusters), int(tasks), examples, prompts, int(mean), int(deviation))
    return rows


TABLE_1 = _table_1()
STATED = {  # split -> categories and tasks
    split: next(
        (int(_number(line["n_clusters"])), int(_number(line["n_tasks"])))
        for line in numbers.texts(1)
        if line["row"] == row
    )
    for split, row in (("train", TRAINED), ("validation", "OPT-IML Bench (dev)"), ("test", "OPT-IML Bench (test)"))
}
OTHERS = ("pretrain_text", "dialogue")  # used by the paper, not in its Table 1
EXAMPLES = {"dialogue": 320_543}  # dialogues (4.7)


@dataclasses.dataclass
class Measured:
    """A split of a task. `lengths`: of the tokenised prompts: int64 [prompts, 2], source and target."""

    task: str
    benchmark: str
    category: str
    split: str
    templates: int
    examples: int
    lengths: np.ndarray
    skipped: list[Skipped]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.dataset_statistics", __doc__)
    add = parser.add_argument
    add("--data_dir", default=os.environ.get("OPTIML_DATA_DIR"), help="raw data, one folder per benchmark")
    add("--tokenizer", default=os.environ.get("OPTIML_TOKENIZER"), help="directory or hub name")
    add("--benchmarks", help="benchmarks, such as flan,t5 (those of the paper)")
    add("--prompts", type=int, default=1_000, help="prompts to tokenise per split, a random sample; 0: all (1000)")
    add("--skipped", help="also write every skipped record to this file, with the reason")
    add("--json", type=output_file, help="also write the numbers to this file")
    flags = parser.parse_args(arguments)
    for name in ("data_dir", "tokenizer"):
        if getattr(flags, name) is None:
            parser.error(f"--{name} is missing")
    if flags.prompts < 0:
        parser.error(f"--prompts={flags.prompts} must not be negative")
    flags.benchmarks = (
        flags.benchmarks.split(",") if flags.benchmarks else [*(name for name in TABLE_1 if name != TRAINED), *OTHERS]
    )
    for name in flags.benchmarks:
        check_known("benchmark", name, registry.benchmark_names())
    return flags


def measure(task: Task, split: str, tokenizer: Tokenizer, most: int) -> Measured:
    """Reads every record of a split, and measures the lengths of at most `most` of its prompts (0: all)."""
    pool = Pool(task, split, most=None if split == "train" else 0)
    examples, taken, skipped = 0, [], []
    draws = random.Random(f"{task.name} {split}")
    try:
        for pair in pool:
            if isinstance(pair, Skipped):
                skipped.append(pair)
                continue
            examples += 1  # a uniform sample of a stream: pair n replaces another with probability most / n
            if not most or len(taken) < most:
                taken.append(pair)
            elif (index := draws.randrange(examples)) < most:
                taken[index] = pair
    except DataError as error:
        skipped.append(Skipped(f"{task.name} {split}", str(error)))
    rendered = [pool.render(pair) for pair in taken]
    unfit = [result for result in rendered if isinstance(result, Skipped)]
    fitting = [result for result in rendered if isinstance(result, Example)]
    lengths = np.array(list(_lengths(fitting, tokenizer)), np.int64).reshape(-1, 2)
    examples -= len(unfit)
    identity = (task.name, task.benchmark, task.category, split, len(task.templates))
    return Measured(*identity, examples, lengths, skipped + unfit)


def _lengths(examples: Sequence[Example], tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    for start in range(0, len(examples), BATCH):
        texts = [join(example.source, example.target, example.separator) for example in examples[start : start + BATCH]]
        ids = tokenizer.encode_batch(list(itertools.chain.from_iterable(texts)))
        yield from ((len(source), len(target)) for source, target in zip(ids[::2], ids[1::2]))


def beside_the_paper(name: str, tasks: Sequence[Task], measured: Sequence[Measured]) -> tuple:
    """Returns a row of Table 1, measured and the paper's. Only train splits are counted, because others may repeat
    them."""
    paper = TABLE_1.get(name)
    names = {task.name for task in tasks}
    measured = [m for m in measured if m.split == "train" and m.task in names]
    sources = np.concatenate([m.lengths[:, 0] for m in measured] or [np.empty(0, np.int64)])
    weights = np.repeat([m.examples / max(len(m.lengths), 1) for m in measured], [len(o.lengths) for o in measured])
    mean = np.average(sources, weights=weights) if len(sources) else 0
    deviation = np.sqrt(np.average((sources - mean) ** 2, weights=weights)) if len(sources) else 0
    categories = len({task.category for task in tasks})
    prompts = sum(len(task.templates) for task in tasks) / max(len(tasks), 1)
    examples = sum(m.examples for m in measured)
    ours = (categories, len(tasks), examples, f"{prompts:.1f}", f"{mean:.0f} ± {deviation:.0f}")
    if paper is None:
        stated = ("-", "-", f"{EXAMPLES[name]:,}" if name in EXAMPLES else "-", "-", "-")
        return name, *(cell for pair in zip(ours, stated) for cell in pair)
    theirs = (paper.categories, paper.tasks, f"{paper.examples / 1e6:.1f} M", f"{paper.prompts:.1f}")
    theirs += (f"{paper.mean} ± {paper.deviation}",)
    return name, *(cell for pair in zip(ours, theirs) for cell in pair)


HEADER = ("benchmark", "categories", "paper", "tasks", "paper", "train examples", "paper", "prompts per task", "paper")
HEADER += ("prompt tokens", "paper")
SPLITS = ("benchmark", "split", "tasks", "templates", "examples", "tokens", "of them targets", "skipped")


def listed_beside_the_paper() -> list[tuple]:
    """Counts the training, validation and test tasks of the catalog, with or without their files, beside Table 1.

    Test tasks are those of Tables 9 to 13, with ANLI's rounds as separate tasks and without Blended Skill Talk, which
    is in Table 15.
    """
    mixture = mixtures.mixture("opt_iml")
    rows_by_name = {row.name: row for name in mixture.benchmarks for row in registry.catalog(name).values()}
    validated = [(f"{row.benchmark}.{task}", row.category) for row in validation.TABLE_15 for task in row.tasks]
    tested = [(row.name, row.category) for row in registry.catalog("opt_eval").values()]
    tested += [(f"anli {name}", rows_by_name["promptsource.anli"].category) for name in promptsource.ROUNDS]
    named = [f"promptsource.{task}" for task in promptsource.TABLE_10 if task != "blended_skill_talk"]
    named += [f"flan.{task}" for task in flan.TABLE_11] + [f"unifiedskg.{task}" for task in unifiedskg.TABLE_13]
    tested += [(name, rows_by_name[name].category) for name in named]
    super_ni = registry.catalog("super_natural_instructions").values()
    tested += [(row.name, row.category) for row in super_ni if super_natural_instructions_held_out.asks(row)]
    ours = {
        "train": [(row.name, row.category) for row in mixture.listed() if row.benchmark in TABLE_1],
        "validation": validated,
        "test": tested,
    }
    return [
        (name, len({category for _, category in rows}), STATED[name][0], len(rows), STATED[name][1])
        for name, rows in ours.items()
    ]


def by_split(measured: Sequence[Measured]) -> list[tuple]:
    """Returns one row per split of each benchmark; tokens of sampled splits are mean lengths times examples."""
    rows = []
    for benchmark, split in dict.fromkeys((m.benchmark, m.split) for m in measured):
        group = [m for m in measured if (m.benchmark, m.split) == (benchmark, split)]
        source, target = sum((m.lengths.mean(axis=0) * m.examples for m in group if len(m.lengths)), np.zeros(2))
        counts = (sum(m.templates for m in group), sum(m.examples for m in group))
        skipped = sum(len(m.skipped) for m in group)
        rows.append((benchmark, split, len(group), *counts, round(source + target), round(target), skipped))
    return rows


def reasons(skipped: Sequence[Skipped]) -> list[str]:
    """Lists the most frequent reasons, each with its count and its first record."""
    grouped: dict[str, list[str]] = collections.defaultdict(list)
    for item in skipped:
        grouped[item.reason].append(item.where)
    most = sorted(grouped.items(), key=lambda item: -len(item[1]))
    lines = [f"{len(where):7,}  {reason} (first: {where[0]})" for reason, where in most[:REASONS]]
    more = sum(len(where) for _, where in most[REASONS:])
    return lines + ([f"{more:7,}  for {len(most) - REASONS} other reasons (--skipped lists all)"] if more else [])


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    tokenizer = Tokenizer.load(flags.tokenizer)
    options = CacheOptions(allow_bad_records=True, allow_empty_tasks=True)
    benchmarks: dict[str, Benchmark] = {}
    missing = []
    for name in flags.benchmarks:
        try:
            benchmarks[name] = registry.discover(name, flags.data_dir, options)
        except MissingError as error:
            missing.append(Skipped(name, str(error)))
    splits = [(task, split) for item in benchmarks.values() for task in item.tasks.values() for split in task.splits]
    bar = tqdm(splits, "reading", unit="split", leave=False, delay=1)
    measured = [measure(task, split, tokenizer, flags.prompts) for task, split in bar]
    mixture, merged = mixtures.mixture("opt_iml"), mixtures.merge(benchmarks.values())
    trained = [task for task in mixture.tasks(merged) if task.benchmark in TABLE_1]
    lines = {name: list(item.tasks.values()) for name, item in benchmarks.items()} | {TRAINED: trained}
    print(table(HEADER, [beside_the_paper(name, tasks, measured) for name, tasks in lines.items()]))
    print("\n" + table(("OPT-IML Bench, listed", "categories", "paper", "tasks", "paper"), listed_beside_the_paper()))
    print("\n" + table(SPLITS, rows := by_split(measured)))
    skipped = [each for item in measured for each in item.skipped]
    left_out = [*missing, *(each for item in benchmarks.values() for each in item.left_out)]
    print(f"\nskipped: {len(skipped):,} records; {len(left_out):,} files and benchmarks left out")
    print("\n".join(reasons([*skipped, *left_out])))
    if flags.skipped:
        write_atomically(flags.skipped, "".join(f"{item.where}: {item.reason}\n" for item in (*skipped, *left_out)))
    if flags.json:
        content = {
            "splits": [dict(zip(SPLITS, row)) for row in rows],
            "paper": {k: v._asdict() for k, v in TABLE_1.items()},
        }
        write_atomically(flags.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
