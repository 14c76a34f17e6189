"""The loss of references: what training minimizes, on the prompts of a ledger."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from optiml_jax.evaluation.answers.answering import BATCHES_PER_GROUP, fit
from optiml_jax.evaluation.prompts.ledger import Prompt
from optiml_jax.inference import ranking
from optiml_jax.inference.model import Model


class ReferenceLoss(NamedTuple):
    """Negative log-likelihood of a reference and its `</s>` after the prompt, in nats, and their number of tokens."""

    nats: float
    tokens: int


def reference_losses(
    model: Model, prompts: Sequence[Prompt], *, batch_rows: int | None, batches: int = BATCHES_PER_GROUP
) -> Iterator[list[ReferenceLoss]]:
    """Yields, for group after group of prompts, the loss of the first reference of each.

    Args:
      batch_rows: rows computed at once, None: as many as memory allows.
      batches: of rows per group.
    """
    size = batches * (batch_rows or model.capacity.rows)
    for start in range(0, len(prompts), size):
        group = prompts[start : start + size]
        pairs = [_ids(model, prompt) for prompt in group]
        scored = ranking.continuations(model, pairs, batch_rows, [prompt.id for prompt in group])
        yield [ReferenceLoss(-continuation.score, len(label)) for continuation, (_, label) in zip(scored, pairs)]


def _ids(model: Model, prompt: Prompt) -> tuple[list[int], list[int]]:
    """Token ids of a prompt, without the demonstrations that do not fit, and of its label as in training; a label
    longer than the model's positions is cut."""
    ((source, reference),), _ = fit(model, prompt, prompt.references[:1], tokens=1)
    label = [*model.tokenizer.encode(reference), model.tokenizer.eos_id]
    return model.prompt_ids(source), label[: model.config.max_positions]
