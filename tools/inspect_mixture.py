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
from pathlib import Path
from typing import Any

import numpy as np

from optiml_jax.common.errors import UserError, exit_on_user_error, nearest
from optiml_jax.common.files import write_atomically
from optiml_jax.common.settings import check
from optiml_jax.common.tables import Parser, output_file, table
from optiml_jax.data.block_plan import mean_positions, rates
from optiml_jax.data.demonstrations import Demonstrator
from optiml_jax.data.lookup import find_manifest
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.packing import pack
from optiml_jax.data.sampling import probabilities, shares
from optiml_jax.data.settings import Data
from optiml_jax.data.specification import options_of
from optiml_jax.data.store import SPLIT, TokenStore
from optiml_jax.data.subset import selected
from optiml_jax.evaluation.prompts.ledger import read_ledger
from optiml_jax.tokenizer import Tokenizer
from tools import mixture_page
from tools.mixture_prompts import KINDS, TARGET, Prompts

TRAIN_TOKENS = 2_000_000_000  # the paper's runs (Table 3)
EOS = 1  # extra positions per example, and extra labels: its inputs start with </s>, its targets end with it
FLAGS_OF_DATA = ("mixture", "cache_dir", "tokenizer", "data_dir", "eps", "row_length")  # flags that settings have too
MARKS = dict(zip(KINDS, "|:>"))
LEARNED = ">"  # after the mark of what has the loss, of targets alone left out
CAPS = (
    {2**n: None for n in range(7, 15)} | {10**6: None} | {512: 0.97, 4096: 0.50, 8192: 0.16}
)  # EPS of 4.2, its shares
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
    add("--manifest", help="a file of CACHE_DIR/mixtures/MIXTURE, in place of the flags above")
    add("--data_dir", help="raw data, if the mixture is cached from several folders")
    add("--eps", type=int, help="cap on a task's examples (that of the mixture)")
    add("--train_tokens", type=float, help="length of the run for expected epochs, in tokens (2e9)")
    add("--json", type=output_file, help="also write the table to this JSON file")
    add("--html", type=output_file, help="also write an HTML page: shares, tasks, prompts, packed rows, lengths")
    add("--show", metavar="TASK", help="print prompts of this task, with source and target, and a packed row")
    add("--examples", type=int, default=3, help="number of prompts to show")
    add("--row_length", type=int, help="length of the packed rows, in tokens (2048)")
    flags, gin_flags = parser.parse_known_args(arguments)
    if wrong := [flag for flag in gin_flags if not flag.startswith(("--gin_file=", "--gin.", "--gin_search_paths="))]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if flags.train_tokens is not None:
        check("--train_tokens", flags.train_tokens, float)
    if flags.examples < 1:
        parser.error("--examples must be at least 1")
    flags.run = _run_settings(gin_flags) if gin_flags else None
    named = {name: getattr(flags, name) for name in FLAGS_OF_DATA if getattr(flags, name) is not None}
    if flags.manifest:
        path = Path(flags.manifest)
        named |= {"mixture": path.parent.name, "cache_dir": str(path.parents[2])}
    for name in ("mixture", "cache_dir"):
        if not flags.run and name not in named:
            parser.error(f"--{name} is missing; pass it, or --gin_file=FILE")
    flags.data = dataclasses.replace(flags.run["data"], **named) if flags.run else Data(**named)
    return flags


def _run_settings(gin_flags: Sequence[str]) -> dict[str, Any]:
    """The settings of a training run."""
    from optiml_jax import gin_cli  # imports jax

    return gin_cli.read_settings(gin_flags, "tools.inspect_mixture")


def train_tokens(flags: argparse.Namespace) -> float:
    """The length of the run in tokens, padding included."""
    if flags.train_tokens is not None or flags.run is None:
        return flags.train_tokens or TRAIN_TOKENS
    return flags.run["optimization"].train_steps * flags.data.batch_rows * flags.data.row_length


def open_store(flags: argparse.Namespace) -> TokenStore:
    """The store of the mixture; with a gin file, as the run will read it."""
    data = flags.data
    if flags.manifest:
        return TokenStore.open(flags.manifest)
    fingerprint = Tokenizer.load(data.tokenizer).fingerprint if data.tokenizer else None
    options = options_of(data) if flags.run else None
    return TokenStore.open(find_manifest(data.cache_dir, data.mixture, fingerprint, options, data.data_dir))


def inspect(
    store: TokenStore,
    manifest: Manifest,
    train_tokens: float,
    data: Data,
    demonstrator: Demonstrator | None = None,
) -> dict:
    """Returns the mixture's tasks, the probabilities of benchmarks and categories, the benchmarks' shares of the
    positions and of the labels ("tokens", "label_tokens"), the tasks that each cap of the paper limits ("caps"), and
    the demonstrations of a run with them.

    A draw takes its tokens and `</s>`, at most a row. A run of `train_tokens` positions therefore draws a task
    probability x train_tokens / mean positions times; divided by its examples, this is its number of epochs.
    """
    by_task, eps = rates(store, manifest, data, demonstrator), manifest.cap(data.eps)
    stats = {name: store.stats(name, "train") for name in by_task}
    drawn = [name for name, p in by_task.items() if p > 0]
    positions = dict.fromkeys(by_task, 0.0) | mean_positions(store, data, drawn, demonstrator)
    draws = train_tokens / sum(p * positions[name] for name, p in by_task.items())
    labels = dict.fromkeys(by_task, 0.0) | {
        name: by_task[name] * _label_positions(store, data, name, positions[name], demonstrator) for name in drawn
    }
    tasks = [
        {
            **{name: getattr(task, name) for name in ("name", "benchmark", "category", "examples")},
            "capped_examples": min(task.examples, eps),
            "probability": by_task[task.name],
            "tokens": stats[task.name]["tokens"],
            "expected_epochs": draws * by_task[task.name] / task.examples,
        }
        for task in manifest.tasks
    ]
    weights = {"tokens": {name: p * positions[name] for name, p in by_task.items()}, "label_tokens": labels}
    return {
        "tasks": tasks,
        **{plural: shares(by_task, manifest.tasks, key) for plural, key in mixture_page.GROUPS.items()},
        **{kind: _normalized(shares(weight, manifest.tasks)) for kind, weight in weights.items()},
        "caps": [_cap(manifest, eps, paper) for eps, paper in sorted(CAPS.items())],
        "demonstrations": demonstrator and _demonstrations(by_task, demonstrator),
    }


def _demonstrations(rates: Mapping[str, float], demonstrator: Demonstrator) -> dict:
    """How many demonstrations examples have, and which tasks have fewer."""
    return {
        "shares": demonstrator.probabilities.tolist(),
        "dropped": demonstrator.dropped_share(rates),
        "few": demonstrator.few,
        "without": demonstrator.without,
    }


def _label_positions(
    store: TokenStore, data: Data, task: str, mean_positions: float, demonstrator: Demonstrator | None
) -> float:
    """Mean label positions of an example of a task."""
    if data.objective == "document":
        return mean_positions
    if data.objective == "suffix" and demonstrator is not None and task not in demonstrator.without:
        return demonstrator.estimate(task).suffix_labels
    stats = store.stats(task, "train")
    return stats["label_tokens"] / stats["examples"] + EOS


def _cap(manifest: Manifest, eps: int, paper: float | None) -> dict:
    """How many tasks a cap limits; `paper`: the share that the paper states for its own."""
    count = sum(task.examples >= eps for task in manifest.tasks)
    return {"eps": eps, "tasks": count, "share": count / len(manifest.tasks), "paper": paper}


def _normalized(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def show(prompts: Prompts, task: str, count: int) -> str:
    """Prints prompts of a task as the model reads them, each line after the mark of its part, and a packed row."""
    store, row_length = prompts.store, prompts.data.row_length
    lengths = store.lengths(task, SPLIT)
    lines = []
    for i in range(min(count, len(lengths))):
        ids, label_start = store.read(task, SPLIT, i)
        sizes = f"{label_start} source + {len(ids) - label_start} target tokens"
        document = prompts.document(task, i)
        parts, labels = prompts.parts(document)
        if document.demonstrations:
            shown = ", ".join(store.example_id(task, SPLIT, number) for number in document.demonstrations)
            sizes += f", after {shown}; {document.length} positions, {labels} of them labels"
        lines += [f"{task} {SPLIT} {store.example_id(task, SPLIT, i)}: {sizes}"]
        for kind, text, learned in parts:
            mark = MARKS[kind] + (LEARNED if learned and kind != TARGET else "")
            lines += [f"  {mark} {line}" for line in text.removesuffix("\n").split("\n")]
        lines.append("")
    if prompts.demonstrator is not None:
        marks = ", ".join(f"{mark} {kind}" for kind, mark in MARKS.items())
        lines += [f"{marks}; {LEARNED} after a mark: has the loss, too", ""]
    fitting = np.sort(lengths[lengths + EOS <= row_length][:1000] + EOS)
    if len(fitting):
        rows = pack(fitting, row_length)
        fill = int(fitting.sum()) / (len(rows) * row_length)
        lines += [f"{len(fitting):,} examples pack into {len(rows):,} rows of {row_length:,} tokens, {fill:.1%} full"]
        lines += [f"the first: examples of {', '.join(str(n) for n in fitting[rows[0]])} tokens"]
    return "\n".join(lines)


def write_page(flags: argparse.Namespace, mixture: Mapping, prompts: Prompts, manifest: Manifest) -> str:
    """Writes the page of `--html` and returns its size. Evaluation prompts come from the mixture's own ledgers."""
    ledgers = [prompts.store.directory / path for path in manifest.ledgers.values()]
    # A ledger is empty where nothing is held out.
    ledger = [prompt for path in ledgers if path.stat().st_size for prompt in read_ledger(path)]
    text = mixture_page.page(mixture, prompts, train_tokens(flags), flags.examples, ledger)
    write_atomically(flags.html, text)
    return f"page: {flags.html}, {len(text.encode()) / 1e6:.1f} MB"


def _task(name: str, names: Sequence[str], cache_dir: str) -> str:
    """Finds a task by its name, with or without the benchmark, or by a part that no other name has."""
    if name in names:
        return name
    exact = [task for task in names if task.split(".", 1)[-1] == name]
    matches = exact or [task for task in names if name in task]
    if len(matches) == 1:
        return matches[0]
    close = f"; did you mean {' or '.join(sorted(matches)[:3])}?" if matches else nearest(name, names)
    which = f"{len(matches)} training tasks match" if matches else "no such training task"
    raise UserError(f"--show={name}: {which} in the mixture of {cache_dir}{close}")


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    data = flags.data
    store = open_store(flags)
    manifest = selected(store.manifest, data)
    proportional = probabilities(manifest, data.eps, data.proportions)
    prompts = Prompts(store, data, [name for name, p in proportional.items() if p > 0])
    report = inspect(store, manifest, train_tokens(flags), data, prompts.demonstrator)
    if flags.json:
        write_atomically(flags.json, json.dumps(report, indent=1) + "\n")
    if flags.show:
        task = _task(flags.show, [task.name for task in store.manifest.tasks], data.cache_dir)
        print(show(prompts, task, flags.examples))
        return
    print(
        table(
            [name.replace("_", " ") for name in COLUMNS], [[task[key] for key in COLUMNS] for task in report["tasks"]]
        )
    )
    for plural, key in mixture_page.GROUPS.items():
        counts = {name: sum(task[key] == name for task in report["tasks"]) for name in report[plural]}
        columns = ("tokens", "label_tokens") if plural == "benchmarks" else ()
        rows = [
            (name, counts[name], p, *(report[kind][name] for kind in columns)) for name, p in report[plural].items()
        ]
        heads = [f"share of {kind.replace('_', ' ')}" for kind in columns]
        print("\n" + table((key, "tasks", "probability", *heads), rows))
    print(f"\nexpected epochs are those of a run of {train_tokens(flags):,.0f} tokens")
    rows = [(cap["eps"], cap["tasks"], cap["share"], cap["paper"]) for cap in report["caps"]]
    print("\n" + table(("EPS", "tasks at their maximum", "share", "in the paper"), rows))
    if prompts.demonstrator is not None:
        dropped = report["demonstrations"]["dropped"]
        print(f"\n{prompts.demonstrator}; {dropped:.1%} of them do not fit in a row and are dropped")
    if flags.html:
        print(write_page(flags, report, prompts, manifest))


if __name__ == "__main__":
    main()
