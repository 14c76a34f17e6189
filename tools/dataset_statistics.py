r"""The paper's Table 1 for the data that are here, beside the paper's numbers.

    python -m tools.dataset_statistics --data_dir=data --tokenizer=facebook/opt-125m
    python -m tools.dataset_statistics --data_dir=data --tokenizer=facebook/opt-125m --benchmarks=flan,t5 \
        --skipped=out.txt

Reads every record of every split; of each, so many prompts are tokenised (`--prompts`). The second table holds all
splits: those that are never trained on too. What cannot be read is counted, and `--skipped` lists it with the reason.
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
from optiml_jax.common.tables import Parser, table
from optiml_jax.tokenizer import Tokenizer, join
from tasks.catalog import mixtures, registry
from tasks.catalog.registry import Benchmark, MissingError
from tasks.example import Example, Skipped
from tasks.prompting.subsampling import Pool
from tasks.suites import flan, promptsource, super_natural_instructions_held_out, unifiedskg, validation
from tasks.task import Options, Task

BATCH = 1024  # prompts tokenised at once
REASONS = 12  # printed


class Paper(NamedTuple):
    """A line of Table 1; lengths are of prompts in tokens."""

    categories: int
    tasks: int
    examples: float
    prompts: float
    mean: int
    deviation: int


TABLE_1 = {
    "super_natural_instructions": Paper(76, 1_613, 12.4e6, 1.0, 287, 882),
    "promptsource": Paper(51, 280, 12.8e6, 5.7, 179, 222),
    "crossfit": Paper(32, 159, 7.1e6, 1.0, 117, 258),
    "flan": Paper(12, 70, 4.4e6, 8.5, 193, 375),
    "exmix": Paper(10, 14, 0.5e6, 1.0, 132, 191),
    "t5": Paper(9, 36, 1.9e6, 1.0, 111, 167),
    "unifiedskg": Paper(7, 21, 0.8e6, 1.0, 444, 297),
    "reasoning": Paper(1, 14, 0.4e6, 1.0, 146, 122),
}
TRAINED = "OPT-IML Bench (train)"
TABLE_1[TRAINED] = Paper(93, 1_545, 17.9e6, 1.7, 261, 631)  # what opt_iml draws from
STATED = {"train": TABLE_1[TRAINED][:2], "validation": (7, 35), "test": (10, 87)}  # categories and tasks, Table 1
OTHERS = ("pretrain_text", "dialogue")  # used by the paper, not in its Table 1


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
    add("--data_dir", default=os.environ.get("OPTIML_DATA_DIR"), help="raw data, one folder a benchmark")
    add("--tokenizer", default=os.environ.get("OPTIML_TOKENIZER"), help="directory or hub name")
    add("--benchmarks", help="some of them: flan,t5 (those of the paper)")
    add("--prompts", type=int, default=1_000, help="tokenised of each split, drawn at random; 0: all (1000)")
    add("--skipped", help="also write all that was skipped to this file, with the reasons")
    add("--json", help="also write the numbers to this file")
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
    """Every record of a split, and the lengths of at most `most` of its prompts (0: of all)."""
    pool = Pool(task, split, most=None if split == "train" else 0)
    examples, taken, skipped = 0, [], []
    draws = random.Random(f"{task.name} {split}")
    try:
        for pair in pool:
            if isinstance(pair, Skipped):
                skipped.append(pair)
                continue
            examples += 1  # a uniform sample of a stream: pair n replaces one with chance most / n
            if not most or len(taken) < most:
                taken.append(pair)
            elif (place := draws.randrange(examples)) < most:
                taken[place] = pair
    except DataError as error:
        skipped.append(Skipped(f"{task.name} {split}", str(error)))
    rendered = [pool.render(pair) for pair in taken]
    unfit = [one for one in rendered if isinstance(one, Skipped)]
    fitting = [one for one in rendered if isinstance(one, Example)]
    lengths = np.array(list(_lengths(fitting, tokenizer)), np.int64).reshape(-1, 2)
    examples -= len(unfit)
    own = (task.name, task.benchmark, task.category, split, len(task.templates))
    return Measured(*own, examples, lengths, skipped + unfit)


def _lengths(examples: Sequence[Example], tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    for start in range(0, len(examples), BATCH):
        texts = [join(one.source, one.target, one.separator) for one in examples[start : start + BATCH]]
        ids = tokenizer.encode_batch(list(itertools.chain.from_iterable(texts)))
        yield from ((len(source), len(target)) for source, target in zip(ids[::2], ids[1::2]))


def beside_the_paper(name: str, tasks: Sequence[Task], measured: Sequence[Measured]) -> tuple:
    """A line of Table 1, ours and the paper's. Ours is of train splits: others of a benchmark may repeat them."""
    paper = TABLE_1.get(name)
    names = {task.name for task in tasks}
    measured = [one for one in measured if one.split == "train" and one.task in names]
    sources = np.concatenate([one.lengths[:, 0] for one in measured] or [np.empty(0, np.int64)])
    weights = np.repeat(
        [one.examples / max(len(one.lengths), 1) for one in measured], [len(o.lengths) for o in measured]
    )
    mean = np.average(sources, weights=weights) if len(sources) else 0
    deviation = np.sqrt(np.average((sources - mean) ** 2, weights=weights)) if len(sources) else 0
    categories = len({task.category for task in tasks})
    prompts = sum(len(task.templates) for task in tasks) / max(len(tasks), 1)
    examples = sum(one.examples for one in measured)
    ours = (categories, len(tasks), examples, f"{prompts:.1f}", f"{mean:.0f} ± {deviation:.0f}")
    if paper is None:
        return name, *(cell for one in ours for cell in (one, "-"))
    theirs = (paper.categories, paper.tasks, f"{paper.examples / 1e6:.1f} M", f"{paper.prompts:.1f}")
    theirs += (f"{paper.mean} ± {paper.deviation}",)
    return name, *(cell for pair in zip(ours, theirs) for cell in pair)


HEADER = ("benchmark", "categories", "paper", "tasks", "paper", "train examples", "paper", "prompts a task", "paper")
HEADER += ("prompt tokens", "paper")
SPLITS = ("benchmark", "split", "tasks", "templates", "examples", "tokens", "of them targets", "skipped")


def listed_beside_the_paper() -> list[tuple]:
    """What of the catalog is trained on, validated and tested on, whether or not it is there, beside Table 1.

    Tests are the tasks of Tables 9 to 13, ANLI's rounds apart and without Blended Skill Talk, which Table 15 has.
    """
    mixture = mixtures.mixture("opt_iml")
    every = {row.name: row for name in mixture.benchmarks for row in registry.catalog(name).values()}
    trained = [row for row in every.values() if row.split in mixture.splits and mixture.dropped(row) is None]
    validated = [(f"{row.benchmark}.{task}", row.category) for row in validation.TABLE_15 for task in row.tasks]
    tested = [(row.name, row.category) for row in registry.catalog("opt_eval").values()]
    tested += [(f"anli {one}", every["promptsource.anli"].category) for one in promptsource.ROUNDS]
    named = [f"promptsource.{task}" for task in promptsource.TABLE_10 if task != "blended_skill_talk"]
    named += [f"flan.{task}" for task in flan.TABLE_11] + [f"unifiedskg.{task}" for task in unifiedskg.TABLE_13]
    tested += [(name, every[name].category) for name in named]
    super_ni = registry.catalog("super_natural_instructions").values()
    tested += [(row.name, row.category) for row in super_ni if super_natural_instructions_held_out.asks(row)]
    ours = {"train": [(row.name, row.category) for row in trained], "validation": validated, "test": tested}
    return [
        (name, len({category for _, category in rows}), STATED[name][0], len(rows), STATED[name][1])
        for name, rows in ours.items()
    ]


def by_split(measured: Sequence[Measured]) -> list[tuple]:
    """A line for each split of each benchmark; tokens of splits that were sampled are means times examples."""
    rows = []
    for benchmark, split in dict.fromkeys((one.benchmark, one.split) for one in measured):
        own = [one for one in measured if (one.benchmark, one.split) == (benchmark, split)]
        source, target = sum((one.lengths.mean(axis=0) * one.examples for one in own if len(one.lengths)), np.zeros(2))
        counts = (sum(one.templates for one in own), sum(one.examples for one in own))
        skipped = sum(len(one.skipped) for one in own)
        rows.append((benchmark, split, len(own), *counts, round(source + target), round(target), skipped))
    return rows


def reasons(skipped: Sequence[Skipped]) -> list[str]:
    """The most frequent reasons, with how many and the first."""
    grouped: dict[str, list[str]] = collections.defaultdict(list)
    for one in skipped:
        grouped[one.reason].append(one.where)
    most = sorted(grouped.items(), key=lambda item: -len(item[1]))
    lines = [f"{len(where):7,}  {reason} (first: {where[0]})" for reason, where in most[:REASONS]]
    more = sum(len(where) for _, where in most[REASONS:])
    return lines + ([f"{more:7,}  for {len(most) - REASONS} other reasons (--skipped lists all)"] if more else [])


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    tokenizer = Tokenizer.load(flags.tokenizer)
    options = Options(allow_bad_records=True, allow_empty_tasks=True)
    found: dict[str, Benchmark] = {}
    missing = []
    for name in flags.benchmarks:
        try:
            found[name] = registry.discover(name, flags.data_dir, options)
        except MissingError as error:
            missing.append(Skipped(name, str(error)))
    splits = [(task, split) for one in found.values() for task in one.tasks.values() for split in task.splits]
    bar = tqdm(splits, "reading", unit="split", leave=False, delay=1)
    measured = [measure(task, split, tokenizer, flags.prompts) for task, split in bar]
    mixture, every = mixtures.mixture("opt_iml"), mixtures.together(found.values())
    trained = [task for task in mixture.tasks(every) if task.benchmark in TABLE_1]
    lines = {name: list(one.tasks.values()) for name, one in found.items()} | {TRAINED: trained}
    print(table(HEADER, [beside_the_paper(name, tasks, measured) for name, tasks in lines.items()]))
    print("\n" + table(("OPT-IML Bench, listed", "categories", "paper", "tasks", "paper"), listed_beside_the_paper()))
    print("\n" + table(SPLITS, rows := by_split(measured)))
    skipped = [each for one in measured for each in one.skipped]
    left_out = [*missing, *(each for one in found.values() for each in one.left_out)]
    print(f"\nskipped: {len(skipped):,} records; {len(left_out):,} files and benchmarks left out")
    print("\n".join(reasons([*skipped, *left_out])))
    if flags.skipped:
        write_atomically(flags.skipped, "".join(f"{one.where}: {one.reason}\n" for one in (*skipped, *left_out)))
    if flags.json:
        content = {
            "splits": [dict(zip(SPLITS, row)) for row in rows],
            "paper": {k: v._asdict() for k, v in TABLE_1.items()},
        }
        write_atomically(flags.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
