"""Shows the contents of a cached mixture: sizes, probabilities, expected epochs; with `--show` the prompts of a task.

python -m tools.inspect_mixture --mixture=samples --cache_dir=cache --show=sample007_number_parity
python -m tools.inspect_mixture --mixture=samples --cache_dir=cache --html=mixture.html
python -m tools.inspect_mixture --gin_file=opt125m_super_natural_instructions.gin --gin.BATCH_ROWS=128

With a gin file, mixture, cache, tokenizer, cap, proportions and the length of the run are those of training.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from optiml_jax.common.errors import UserError, exit_on_user_error, nearest
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser, table
from optiml_jax.data import cache_paths
from optiml_jax.data.manifest import SEPARATOR, Manifest
from optiml_jax.data.packing import pack
from optiml_jax.data.sampling import probabilities, shares
from optiml_jax.data.settings import Data
from optiml_jax.data.store import TokenStore
from optiml_jax.evaluation.prompts.ledger import read_ledger
from optiml_jax.tokenizer import Tokenizer
from tools import mixture_page

TRAIN_TOKENS = 2_000_000_000  # the paper's runs (Table 3)
EOS = 1  # extra positions per example: its inputs start with </s>, its targets end with it
COLUMNS = (
    "name",
    "benchmark",
    "category",
    "examples",
    "capped_examples",
    "probability",
    "tokens",
    "expected_epochs",
)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.inspect_mixture", __doc__)
    add = parser.add_argument
    add("--mixture", help="mixture of tools.cache_tasks")
    add("--cache_dir", help="folder of the token store")
    add("--tokenizer", help="tokenizer of the store, if the mixture is cached for several")
    add("--eps", type=int, help="cap on a task's examples (that of the mixture)")
    add("--train_tokens", type=float, help="length of the run for expected epochs, in tokens (2e9)")
    add("--json", help="also write the table to this JSON file")
    add("--html", help="also write an HTML page: shares, tasks, prompts, packed rows, lengths")
    add("--show", metavar="TASK", help="print prompts of this task, with source and target, and a packed row")
    add("--examples", type=int, default=3, help="number of prompts to show")
    add("--row_length", type=int, help="length of the packed rows, in tokens (2048)")
    flags, gin_flags = parser.parse_known_args(arguments)
    if wrong := [flag for flag in gin_flags if not flag.startswith(("--gin_file=", "--gin.", "--gin_search_paths="))]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    flags.proportions, flags.seed, flags.tasks, flags.categories = None, None, None, None
    if gin_flags:
        _take_from_gin(flags, gin_flags)
    flags.train_tokens = flags.train_tokens or TRAIN_TOKENS
    flags.row_length = flags.row_length or Data.row_length
    flags.seed = Data.seed if flags.seed is None else flags.seed
    if flags.row_length < 2 or flags.examples < 1:
        parser.error("--row_length must be at least 2 and --examples at least 1")
    for name in ("mixture", "cache_dir"):
        if getattr(flags, name) is None:
            parser.error(f"--{name} is missing; pass it, or --gin_file=FILE")
    return flags


def _take_from_gin(flags: argparse.Namespace, gin_flags: Sequence[str]) -> None:
    """Returns the settings of a training run that the flags do not set."""
    from optiml_jax import gin_cli  # imports jax

    settings = gin_cli.read_settings(gin_flags, "tools.inspect_mixture")
    data = settings["data"]
    for name in (
        "mixture",
        "cache_dir",
        "tokenizer",
        "eps",
        "proportions",
        "tasks",
        "categories",
        "row_length",
        "seed",
    ):
        if getattr(flags, name) is None:
            setattr(flags, name, getattr(data, name))
    if flags.train_tokens is None:
        flags.train_tokens = settings["optimization"].train_steps * data.batch_rows * data.row_length


def inspect(
    store: TokenStore,
    manifest: Manifest,
    train_tokens: float,
    eps: int | None = None,
    proportions: Mapping[str, float] | None = None,
) -> dict:
    """Returns the mixture's tasks and the probabilities of benchmarks and categories.

    A draw uses its tokens and one `</s>`, on average over the mixture. A run of `train_tokens` positions therefore
    draws a task probability x train_tokens / mean positions times; divided by its examples, this is its number of
    epochs.
    """
    rates = probabilities(manifest, eps, proportions)
    eps = manifest.cap(eps)
    stats = {name: store.stats(name, "train") for name in rates}
    positions = sum(p * (stats[name]["tokens"] / stats[name]["examples"] + EOS) for name, p in rates.items())
    draws = train_tokens / positions
    tasks = [
        {
            **dataclasses.asdict(task),
            "capped_examples": min(task.examples, eps),
            "probability": rates[task.name],
            "tokens": stats[task.name]["tokens"],
            "expected_epochs": draws * rates[task.name] / task.examples,
        }
        for task in manifest.tasks
    ]
    return {"tasks": tasks} | {
        plural: shares(rates, manifest.tasks, key) for plural, key in mixture_page.GROUPS.items()
    }


def show(store: TokenStore, tokenizer: Tokenizer, task: str, count: int, row_length: int) -> str:
    """Prints prompts of a task as the model reads them (source lines after "|", target after ">"), and a packed row."""
    split = "train"
    lengths = store.lengths(task, split)
    lines = []
    for i in range(min(count, len(lengths))):
        ids, label_start = store.read(task, split, i)
        source, target = tokenizer.decode(ids[:label_start]), tokenizer.decode(ids[label_start:])
        sizes = f"{label_start} source + {len(ids) - label_start} target tokens"
        lines += [f"{task} {split} {store.example_id(task, split, i)}: {sizes}"]
        lines += [*(f"  | {line}" for line in source.split("\n")), *(f"  > {line}" for line in target.split("\n")), ""]
    fitting = np.sort(lengths[lengths + EOS <= row_length][:1000] + EOS)
    if len(fitting):
        rows = pack(fitting, row_length)
        fill = int(fitting.sum()) / (len(rows) * row_length)
        lines += [f"{len(fitting):,} examples pack into {len(rows):,} rows of {row_length:,} tokens, {fill:.1%} full"]
        lines += [f"the first: examples of {', '.join(str(n) for n in fitting[rows[0]])} tokens"]
    return "\n".join(lines)


def write_page(flags: argparse.Namespace, mixture: Mapping, store: TokenStore) -> str:
    """Writes the page of `--html` and prints its size. Evaluation prompts come from ledgers in the same cache."""
    data = Data(flags.mixture, flags.cache_dir, row_length=flags.row_length, seed=flags.seed)
    ledgers = [cache_paths.ledger_path(flags.cache_dir, name) for name in flags.mixture.split(SEPARATOR)]
    prompts = [prompt for path in ledgers if path.exists() for prompt in read_ledger(path)]
    tokenizer = Tokenizer.load(store.directory / "tokenizer")
    text = mixture_page.page(mixture, store, tokenizer, data, flags.train_tokens, flags.examples, prompts)
    write_atomically(flags.html, text)
    return f"page: {flags.html}, {len(text.encode()) / 1e6:.1f} MB"


def _task(name: str, names: Sequence[str], cache_dir: str) -> str:
    """Finds a task by its name, with or without the benchmark."""
    if name in names:
        return name
    exact = [task for task in names if task.split(".", 1)[-1] == name]
    if len(exact) == 1:
        return exact[0]
    matches = exact or [task for task in names if name in task]
    close = f"; did you mean {' or '.join(sorted(matches)[:3])}?" if matches else nearest(name, names)
    raise UserError(f"--show={name}: no task of {cache_dir}{close}")


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    fingerprint = Tokenizer.load(flags.tokenizer).fingerprint if flags.tokenizer else None
    store = TokenStore(cache_paths.store_with(flags.cache_dir, flags.mixture, fingerprint) or flags.cache_dir)
    manifest = Manifest.read(cache_paths.manifest_path(store.directory, flags.mixture))
    manifest = manifest.only(flags.tasks, flags.categories)
    report = inspect(store, manifest, flags.train_tokens, flags.eps, flags.proportions)
    if flags.json:
        write_atomically(flags.json, json.dumps(report, indent=1) + "\n")
    if flags.show:
        task = _task(flags.show, [path.name for path in (store.directory / "tasks").iterdir()], flags.cache_dir)
        tokenizer = Tokenizer.load(store.directory / "tokenizer")
        print(show(store, tokenizer, task, flags.examples, flags.row_length))
        return
    print(
        table(
            [name.replace("_", " ") for name in COLUMNS], [[task[key] for key in COLUMNS] for task in report["tasks"]]
        )
    )
    for plural, key in mixture_page.GROUPS.items():
        counts = {name: sum(task[key] == name for task in report["tasks"]) for name in report[plural]}
        rows = [(name, counts[name], p) for name, p in report[plural].items()]
        print("\n" + table((key, "tasks", "probability"), rows))
    print(f"\nexpected epochs are those of a run of {flags.train_tokens:,.0f} tokens")
    if flags.html:
        print(write_page(flags, report, store))


if __name__ == "__main__":
    main()
