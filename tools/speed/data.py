"""`data`: real tokens per second of the training loader, and of torch's DataLoader with transformers' collator."""

import argparse
import itertools
from collections.abc import Callable, Sequence

from optiml_jax.common.errors import UserError
from optiml_jax.data.store import Store
from tools.speed import rows
from tools.speed.rounds import Side, interleave, row

PARTS = ("start", "pack", "cache", "render", "batches")  # all except the last are in `plane.py`
SYNTHETIC_TASKS = 1_545


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--parts", default=",".join(PARTS), help=f"parts to measure (all): {','.join(PARTS)}")
    add(
        "--peer_tasks",
        type=int,
        default=40,
        help="tasks with which seqio starts; its time is extrapolated linearly (40)",
    )
    add("--full_peer", action="store_true", help="start seqio with all tasks (takes minutes and gigabytes)")
    add("--scratch", help="folder for 3 GB of synthetic tokens (a temporary one)")
    add("--vocab_size", type=int, default=50_272, help="of the random ids")


def check(flags: argparse.Namespace) -> None:
    """Raises a `UserError` for an unknown part."""
    for part in flags.parts.split(","):
        if part not in PARTS:
            raise UserError(f"--parts={flags.parts}: unknown part {part}; choose of {', '.join(PARTS)}")
    if not 4 <= flags.peer_tasks <= SYNTHETIC_TASKS:
        raise UserError(f"--peer_tasks={flags.peer_tasks} must be from 4 to {SYNTHETIC_TASKS}")


def compare(flags: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """Returns one row, and lines that describe the measurement."""
    origin = rows.source(flags, flags.vocab_size)
    batches = rows.batches(flags, flags.vocab_size)
    examples = [example for batch in batches for documents in batch.examples for example in documents]

    def run() -> int:
        """Starts a new loader, so that planning and packing of the first block are included."""
        with rows.loader(flags, *origin) as loader:
            return sum(
                int((batch.arrays["segment_ids_BT"] > 0).sum()) for batch in itertools.islice(loader, flags.steps)
            )

    ours, peers = Side("ours", run), []
    if not flags.no_peer:
        peers = [Side("DataLoader", _peer(origin[0], examples, flags))]
    interleave(ours, peers, flags.rounds)
    real = sum(batch.real_tokens for batch in batches)
    name = "data: packed rows" + ("" if flags.no_peer else "; DataLoader + DataCollatorWithFlattening")
    result = row(name, "real tokens/s", real, ours, *(peers or [None]))
    result |= {"real_tokens": ours.first, "peer_real_tokens": peers[0].first if peers else None}
    notes = [
        rows.describe(batches, flags),
        "the peer reads the same examples and concatenates them instead of packing them into rows; one process each",
    ]
    return [result], notes


def _peer(store: Store, examples: Sequence[tuple[str, int]], flags: argparse.Namespace) -> Callable[[], int]:
    from tools.speed.peer import IGNORED, torch, transformers

    class Examples(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, i: int) -> dict[str, list[int]]:
            ids, source_length = store.read(examples[i][0], "train", examples[i][1])
            cut = max(0, len(ids) + 1 - flags.row_length)
            ids, source_length = ids[cut:].tolist(), max(0, source_length - cut)
            return {"input_ids": [rows.EOS, *ids], "labels": [IGNORED] * (1 + source_length) + ids[source_length:]}

    collate = transformers.DataCollatorWithFlattening(return_tensors="pt")
    loader = torch.utils.data.DataLoader(Examples(), batch_size=len(examples) // flags.steps, collate_fn=collate)
    return lambda: sum(batch["input_ids"].numel() for batch in loader)
