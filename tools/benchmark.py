"""Measures this package and its peers, interleaved in one process, and writes the medians.

python -m tools.benchmark train --model=125m --rows=2 --row_length=512 --precision=fp32 --json=train.json
python -m tools.benchmark attention --model=1.3b --rows=8 --row_length=2048 --precision=bf16 --json=attention.json
python -m tools.benchmark evaluate --json=evaluate.json
python -m tools.benchmark data --json=data.json
python -m tools.benchmark overlap --json=overlap.json
python -m tools.benchmark all --out=results --minutes=8
"""

import argparse
import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from optiml_jax.common import xla_flags
from optiml_jax.common.errors import UserError, exit_on_user_error
from optiml_jax.common.tables import Parser, output_file, table

# columns of the printed table; the JSON file has more
SHOWN = (
    "name",
    "ours",
    "peer",
    "ratio",
    "lowest_ratio",
    "highest_ratio",
    "unit",
    "goal",
    "exact",
    "peer_step_seconds",
    "peer_positions",
)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    from optiml_jax.model.attention import IMPLEMENTATIONS
    from optiml_jax.model.decoder import LAYERS, REMAT
    from tools.speed import data, evaluate
    from tools.speed.models import MODELS
    from tools.speed.rows import TOKENIZER

    parser = Parser("tools.benchmark", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser(
        "train", description="Training steps, compared with Hugging Face OPTForCausalLM and torch."
    )
    layer = commands.add_parser(
        "attention", description="Attention of one layer over packed rows, compared with torch."
    )
    train.add_argument(
        "--dropout", type=float, default=0.1, help="of both sides; this project also applies it to the embeddings"
    )
    train.add_argument(
        "--remat",
        default="none",
        help=f"activations that this project stores for the backward pass (none): {', '.join(REMAT)}",
    )
    train.add_argument("--layers", default="auto", choices=LAYERS, help="how this project represents the layers (auto)")
    train.add_argument(
        "--profile", action="store_true", help="also print the kernels of this project by time, on a GPU"
    )
    for command in (train, layer):
        add = command.add_argument
        add("--model", choices=MODELS, default="125m")
        add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the computation (fp32)")
        add("--attention", default="auto", help="our implementation (auto)")
        add("--no_torch_compile", action="store_true", help="run the peer without torch.compile on a GPU too")

    evaluation = commands.add_parser(
        "evaluate", description="Ranking and greedy generation, compared with lm-evaluation-harness and torch."
    )
    evaluate.add_flags(evaluation)
    evaluation.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of both sides (fp32)")

    plane = commands.add_parser("data", description="The data pipeline, compared with seqio and torch's DataLoader.")
    data.add_flags(plane)

    shared = commands.add_parser("overlap", description="Shared 13-grams, compared with a Python set and NumPy.")
    shared.add_argument("--train_tokens", type=float, default=2e6, help="ids on the training side (2e6)")
    shared.add_argument("--eval_tokens", type=float, default=4e5, help="ids on the evaluation side (4e5)")
    shared.add_argument("--tokenizer", default=str(TOKENIZER), help="tokenizer of the ids (that of the samples)")

    every = commands.add_parser("all", description="Runs every benchmark that this machine supports.")
    every.add_argument("--out", required=True, help="output folder, with one JSON file per part")
    every.add_argument("--minutes", type=float, default=8, help="parts that have not started by then are left out (8)")
    every.add_argument("--only", default="", help="substring of the names to run (all)")

    for command in (train, layer, evaluation, plane, shared):
        add = command.add_argument
        add("--seed", type=int, default=0)
        add(
            "--rounds",
            type=int,
            default=5,
            help="rounds, each of which measures every side once; medians are reported (5)",
        )
        add("--quick", action="store_true", help="3 rounds")
        add("--no_peer", action="store_true", help="measure ours alone")
        add("--json", type=output_file, help="also write the numbers to this JSON file")
    for command, steps, rows in ((train, 2, 2), (layer, 10, 2), (plane, 100, 16)):
        add = command.add_argument
        add("--rows", type=int, default=rows, help=f"rows of a batch ({rows})")
        add("--row_length", type=int, default=512, help="tokens of a row (512)")
        add("--label_share", type=float, default=0.15, help="fraction of an example's tokens that are labels (0.15)")
        add("--cache_dir", help="use the rows of this token store (random ids)")
        add("--mixture", help="of the token store")
        add("--steps", type=int, default=steps, help=f"batches a round, the same for all ({steps})")
    flags = parser.parse_args(arguments)
    if flags.command == "all":
        return flags
    if flags.quick:
        flags.rounds = 3
    for name in ("rounds", "rows", "row_length", "steps", "prompts", "batch", "new"):
        if getattr(flags, name, 1) < 1:
            raise UserError(f"--{name}={getattr(flags, name)} must be at least 1")
    if flags.command in ("overlap", "evaluate"):
        return flags
    if getattr(flags, "attention", "auto") not in IMPLEMENTATIONS:
        raise UserError(f"--attention={flags.attention} is unknown; use one of {', '.join(IMPLEMENTATIONS)}")
    if (flags.cache_dir is None) != (flags.mixture is None):
        raise UserError("--cache_dir and --mixture go together: a token store, and a mixture in it")
    if flags.command == "data":
        data.check(flags)
    if not 0 < flags.label_share <= 1:
        raise UserError(f"--label_share={flags.label_share} must be above 0 and at most 1")
    return flags


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    # By default JAX reserves three quarters of a GPU's memory at its first use, and the peer would have none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    xla_flags.set_defaults(os.environ)
    flags = parse(arguments)
    from tools.speed import everything, machine

    if flags.command == "all":
        return everything.run(flags)
    before, others = machine.load(), machine.Others()
    names = [flags.command]
    if flags.command == "data":
        selected = set(flags.parts.split(","))
        names = ["plane"] * bool(selected - {"batches"}) + ["data"] * ("batches" in selected)
    parts = [importlib.import_module(f"tools.speed.{name}") for name in names]
    rows, notes = ([item for part in kind for item in part] for kind in zip(*(part.compare(flags) for part in parts)))
    used = others.cores()
    quiet = used < machine.QUIET * machine.cores()
    if not quiet:
        notes.append(
            f"NOT QUIET: other processes used {used:.2f} of {machine.cores()} cores, which slows the peers more than "
            "this project: measure again before you publish a ratio"
        )
    results = {
        "quiet": quiet,
        "others_cores": used,
        "machine": machine.machine() | {"load_before": before, "load_after": machine.load()},
        "versions": machine.versions(),
        "settings": vars(flags),
        "rows": rows,
    }
    if flags.json:
        path = Path(flags.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(", ".join(f"{name} {value}" for name, value in results["machine"].items() if value is not None))
    print(", ".join(f"{name} {version}" for name, version in results["versions"].items() if version))
    for note in notes:
        print(note)
    columns = [name for name in SHOWN if any(name in row for row in rows)]
    cells = [[row.get(name) for name in columns] for row in rows]
    print("\n" + table([name.replace("_", " ") for name in columns], cells))
    if flags.rounds < 3:
        print(f"{flags.rounds} rounds are too few: a median needs at least 3")


if __name__ == "__main__":
    main()
