"""Shows what a cached mixture trains on: sizes, probabilities, expected epochs; with `--show` the prompts of a task.

python -m tools.inspect_mixture --mixture=samples --cache_dir=cache/samples --show=samples.sample007_number_parity
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from optiml_jax.data.packing import pack
from optiml_jax.data.sampling import load_manifest, probabilities
from optiml_jax.data.store import TokenStore
from optiml_jax.errors import UserError, exit_on_user_error, nearest
from optiml_jax.opt.tokenizer import Tokenizer
from tools.tables import Parser, table

TRAIN_TOKENS = 2_000_000_000  # the paper's runs (Table 3)
EOS = 1  # positions an example takes beside its own tokens: its inputs start with </s>, its targets end in it
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
    add("--mixture", required=True)
    add("--cache_dir", required=True, help="the store of python -m tools.cache_tasks")
    add("--eps", type=int, help="cap on a task's examples (the mixture's own)")
    add("--train_tokens", type=float, default=TRAIN_TOKENS, help="length of the run that expected epochs are of (2e9)")
    add("--json", help="also write the table to this file")
    add("--show", metavar="TASK", help="print prompts of this task, source and target apart, and a packed row of them")
    add("--examples", type=int, default=3, help="prompts shown")
    add("--row_length", type=int, default=2048, help="tokens of the packed row shown")
    return parser.parse_args(arguments)


def inspect(store: TokenStore, manifest: Mapping, eps: int, train_tokens: float) -> dict:
    """The mixture's tasks and the probabilities of benchmarks and categories.

    A draw takes, on average over the mixture, as many positions as its tokens and one `</s>`; a run of `train_tokens`
    positions therefore draws a task with p = probability so many times, and that over its examples are its epochs.
    """
    chances = probabilities(manifest, eps)
    stats = {name: store.stats(name, "train") for name in chances}
    positions = sum(p * (stats[name]["tokens"] / stats[name]["examples"] + EOS) for name, p in chances.items())
    draws = train_tokens / positions
    tasks = [
        {
            **{key: task[key] for key in ("name", "benchmark", "category", "examples")},
            "capped_examples": min(task["examples"], eps),
            "probability": chances[task["name"]],
            "tokens": stats[task["name"]]["tokens"],
            "expected_epochs": draws * chances[task["name"]] / task["examples"],
        }
        for task in manifest["tasks"]
    ]
    return {"tasks": tasks} | {plural: _total(tasks, key) for plural, key in GROUPS.items()}


GROUPS = {"benchmarks": "benchmark", "categories": "category"}


def _total(tasks: Sequence[Mapping], key: str) -> dict[str, float]:
    names = sorted({task[key] for task in tasks})
    return {name: sum(task["probability"] for task in tasks if task[key] == name) for name in names}


def show(store: TokenStore, tokenizer: Tokenizer, task: str, count: int, row_length: int) -> str:
    """Prompts of one task as the model reads them (source lines after "|", target after ">"), and one packed row."""
    split = next(name for name in ("train", "test") if (store.directory / "tasks" / task / f"{name}.json").exists())
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


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    store = TokenStore(flags.cache_dir)
    if flags.show:
        known = [path.name for path in (store.directory / "tasks").iterdir()]
        if flags.show not in known:
            close = [f"; did you mean {name}?" for name in known if flags.show in name] or [nearest(flags.show, known)]
            raise UserError(f"--show={flags.show}: no task of {flags.cache_dir}{close[0]}")
        tokenizer = Tokenizer.load(store.directory / "tokenizer")
        print(show(store, tokenizer, flags.show, flags.examples, flags.row_length))
        return
    manifest = load_manifest(store.directory / "mixtures" / f"{flags.mixture}.json")
    found = inspect(store, manifest, manifest["eps"] if flags.eps is None else flags.eps, flags.train_tokens)
    if flags.json:
        path = Path(flags.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(
        table([name.replace("_", " ") for name in COLUMNS], [[task[key] for key in COLUMNS] for task in found["tasks"]])
    )
    for plural, key in GROUPS.items():
        counts = {name: sum(task[key] == name for task in found["tasks"]) for name in found[plural]}
        rows = sorted(((name, counts[name], p) for name, p in found[plural].items()), key=lambda row: -row[2])
        print("\n" + table((key, "tasks", "probability"), rows))
    print(f"\nexpected epochs are those of a run of {flags.train_tokens:,.0f} tokens")


if __name__ == "__main__":
    main()
