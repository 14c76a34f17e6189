"""The peer of `train`: Hugging Face `OPTForCausalLM` and torch, with the batch layouts that its users choose.

Adam, schedule, clipping and dropout equal this project's, except for the dropout on the embeddings, which transformers'
OPT lacks.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.training.optimizer import Optimization, learning_rate
from tools.speed import machine
from tools.speed.rows import PAD

try:
    import torch
    import transformers
except ImportError as error:
    raise UserError(f"the peer is not installed ({error}); pip install '.[test]', or use --no_peer") from None

from tools.speed import varlen  # needs both

IGNORED = -100  # torch's cross-entropy ignores these targets
Part = dict[str, torch.Tensor | int]  # arguments of the model; a step may have several parts


def packed(arrays: dict[str, np.ndarray]) -> Iterator[Part]:
    """Returns the packed rows with causal attention over the whole row: documents attend to earlier documents."""
    targets_BT = np.where(arrays["label_mask_BT"], arrays["targets_BT"], IGNORED)
    yield _part(arrays["tokens_BT"], targets_BT)


def masked(arrays: dict[str, np.ndarray]) -> Iterator[Part]:
    """Returns the packed rows with positions that restart and a mask [B, 1, T, T] of the pairs in one document."""
    segment_ids_BT = arrays["segment_ids_BT"]
    same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    for part in packed(arrays):
        yield part | {
            "attention_mask": torch.from_numpy(np.tril(same_BTT)[:, None]),
            "position_ids": torch.from_numpy(arrays["positions_BT"]).long(),
        }


def padded(arrays: dict[str, np.ndarray]) -> Iterator[Part]:
    """Returns one document per row, padded to the longest, in parts with at most as many positions as the packed
    rows."""
    (part,) = packed(arrays)
    tokens, targets = part["input_ids"], part["shift_labels"]
    segment_ids = torch.from_numpy(arrays["segment_ids_BT"])
    documents = [
        (tokens[row, here], targets[row, here])
        for row in range(len(tokens))
        for segment in range(1, int(segment_ids[row].max()) + 1)
        for here in [segment_ids[row] == segment]
    ]
    while documents:
        count, longest = 0, 0
        for document, _ in documents:
            longest = max(longest, len(document))
            if (count + 1) * longest > tokens.numel():
                break
            count += 1
        pad = torch.nn.utils.rnn.pad_sequence
        taken, documents = documents[:count], documents[count:]
        yield _part(
            pad([document for document, _ in taken], batch_first=True, padding_value=PAD),
            pad([labels for _, labels in taken], batch_first=True, padding_value=IGNORED),
        ) | {"attention_mask": pad([torch.ones(len(document), dtype=torch.long) for document, _ in taken], True)}


def padding_free(arrays: dict[str, np.ndarray]) -> Iterator[Part]:
    """Returns one row of all documents, without padding, with positions that restart."""
    real = arrays["segment_ids_BT"] > 0
    targets = np.where(arrays["label_mask_BT"], arrays["targets_BT"], IGNORED)[real]
    positions = torch.from_numpy(arrays["positions_BT"][real]).long()
    starts = torch.nn.functional.pad(torch.nonzero(positions == 0)[:, 0], (0, 1), value=len(positions))
    yield _part(arrays["tokens_BT"][real][None], targets[None]) | {
        "position_ids": positions[None],
        "cu_seq_lens_q": starts.int(),
        "max_length_q": int(starts.diff().max()),
    }


def _part(tokens_BT: np.ndarray | torch.Tensor, targets_BT: np.ndarray | torch.Tensor) -> Part:
    """`shift_labels` are already shifted to the next token; `labels` is only set to request a loss."""
    targets_BT = torch.as_tensor(targets_BT).long()
    return {"input_ids": torch.as_tensor(tokens_BT).long(), "labels": targets_BT, "shift_labels": targets_BT}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A batch layout of the peer.

    Attributes:
      exact: whether loss and gradients equal those of separate examples.
      attention: transformers' name of the implementation.
    """

    name: str
    parts: Callable[[dict[str, np.ndarray]], Iterator[Part]]
    exact: bool
    attention: str = "sdpa"


LAYOUTS = (
    Layout("HF packed, causal only", packed, exact=False),
    Layout("HF packed, 4-D mask", masked, exact=True),
    Layout("HF padded", padded, exact=True),
    *[Layout(f"HF padding-free, {varlen.WHAT}", padding_free, True, varlen.NAME)] * varlen.IS_AVAILABLE,
)


class Trainer:
    """A model and its optimizer; `restart` resets both to their initial state."""

    def __init__(self, weights: Path, optimization: Optimization, bf16: bool, compiled: bool) -> None:
        """`compiled`: with torch.compile, where there is a GPU."""
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(machine.cores())
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as XLA does by default
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        self._autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)
        options = {"dtype": torch.float32, "attn_implementation": "sdpa"}
        self._model = transformers.OPTForCausalLM.from_pretrained(weights, **options).to(self.device).train()
        self._initial = {name: value.cpu().clone() for name, value in self._model.state_dict().items()}
        self._forward = torch.compile(self._model) if compiled and cuda else self._model
        self._clip = optimization.clip_norm
        self._optimizer = torch.optim.AdamW(  # fused is the default of transformers' Trainer, and the fastest
            self._model.parameters(),
            betas=(optimization.beta1, optimization.beta2),
            eps=optimization.epsilon,
            weight_decay=0.0,
            fused=True,
        )
        self._rates = np.asarray(learning_rate(optimization, np.arange(optimization.train_steps))).tolist()
        self._step = 0

    def restart(self) -> None:
        self._model.load_state_dict(self._initial)
        self._optimizer.state.clear()
        self._step = 0

    def use(self, attention: str) -> None:
        """Selects transformers' implementation of attention."""
        self._model.set_attn_implementation(attention)

    def step(self, parts: Sequence[Part]) -> torch.Tensor:
        """Performs one update with the summed gradients of the parts; returns the loss in nats per label token."""
        labels = sum((part["labels"] != IGNORED).sum() for part in parts)
        loss = 0
        for part in parts:
            with self._autocast:
                nats = self._forward(**part, num_items_in_batch=labels, use_cache=False).loss
            nats.backward()
            loss += nats.detach()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rates[min(self._step, len(self._rates) - 1)]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._step += 1
        return loss


def peers(
    weights: Path, optimization: Optimization, flags: argparse.Namespace, batches: Sequence[dict]
) -> list["Peer"]:
    """Returns a peer for every layout. They share one model, because several would not fit on a GPU."""
    trainer = Trainer(weights, optimization, flags.precision == "bf16", not flags.no_torch_compile)
    return [Peer(trainer, layout, batches) for layout in LAYOUTS]


class Peer:
    """Trains on the given batches in one layout. Several share a trainer; the first call of `run` restarts it."""

    def __init__(self, trainer: Trainer, layout: Layout, batches: Sequence[dict[str, np.ndarray]]) -> None:
        self._trainer, self.layout = trainer, layout
        self._batches = [
            [
                {name: x.to(trainer.device) if isinstance(x, torch.Tensor) else x for name, x in part.items()}
                for part in layout.parts(arrays)
            ]
            for arrays in batches
        ]
        self._started = False

    def run(self) -> list[float]:
        """Takes one step per batch and returns the losses, in nats per label token, when the device has finished."""
        if not self._started:
            self._trainer.restart()
            self._started = True
        self._trainer.use(self.layout.attention)
        losses = [self._trainer.step(parts) for parts in self._batches]
        if self._trainer.device.type == "cuda":
            torch.cuda.synchronize()
        return [loss.item() for loss in losses]

    def counts(self) -> dict[str, int]:
        """Counts, over all batches, computed positions, positions that are not padding, and labels."""
        parts = [part for batch in self._batches for part in batch]
        return {
            "peer_positions": sum(part["input_ids"].numel() for part in parts),
            "peer_real_tokens": sum(int((part["input_ids"] != PAD).sum()) for part in parts),
            "peer_label_tokens": sum(int((part["labels"] != IGNORED).sum()) for part in parts),
        }
