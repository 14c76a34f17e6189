"""The loss of references, against training's and against the definition in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optiml_jax.evaluation.answers.reference_loss import ReferenceLoss, reference_losses
from optiml_jax.evaluation.validation import validation_losses
from optiml_jax.tokenizer import join
from optiml_jax.training.step import Computation, batch_nats
from tests.evaluation.small_model import CONFIG, prompt, small_model


def prompts():
    generated = {"candidates": None, "references": ("a longer answer, generated", "another"), "level": "held_out_task"}
    questions = [prompt(i) for i in range(5)] + [prompt(10 + i, **generated) for i in range(4)]
    demonstration = "Task: say 3.\nOutput: yes\n\n"
    shown = {"demonstration_ids": ("3",), "demonstration_spans": ((0, len(demonstration)),), "shots": 1}
    questions.append(prompt(20, prompt=f"{demonstration}Task: say 4.\nOutput:", **shown))
    return [
        *questions,
        prompt(21, prompt=f"{60 * demonstration}Output:"),
        prompt(22, level=None, references=("a third one",)),
    ]


def as_in_training(model, question) -> tuple[list[int], int]:
    """Token ids of the training example of a prompt, without what does not fit, and the number of its label tokens."""
    source, target = join(question.prompt, question.references[0], question.separator)
    label = [*model.tokenizer.encode(target), model.tokenizer.eos_id]
    ids = model.prompt_ids(source) + label
    return ids[:1] + ids[1:][-CONFIG.max_positions :], len(label)


def nats_of_training(model, question) -> ReferenceLoss:
    ids, labels = as_in_training(model, question)
    tokens, targets = np.array(ids[:-1]), np.array(ids[1:])
    batch = {
        "tokens_BT": tokens,
        "targets_BT": targets,
        "segment_ids_BT": np.ones_like(tokens),
        "positions_BT": np.arange(len(tokens)),
        "label_mask_BT": np.arange(len(tokens)) >= len(tokens) - labels,
    }
    batch = {name: jnp.asarray(row)[None] for name, row in batch.items()}
    fp32 = Computation(precision="fp32")
    with jax.set_mesh(model.mesh):
        nats = jax.jit(lambda params, batch: batch_nats(params, batch, CONFIG, fp32, None))(model.params, batch)
    return ReferenceLoss(float(nats), labels)


@pytest.mark.parametrize("rows", [2, 64])
def test_a_reference_has_the_loss_that_it_has_in_training(rows):
    model, questions = small_model(), prompts()
    groups = list(reference_losses(model, questions, batch_rows=rows, batches=2))
    assert len(groups) == (3 if rows == 2 else 1)
    losses = [loss for group in groups for loss in group]
    for question, loss in zip(questions, losses, strict=True):
        expected = nats_of_training(model, question)
        assert loss.tokens == expected.tokens and loss.nats == pytest.approx(expected.nats, rel=1e-5)
    # The definition, in float64.
    ids, labels = as_in_training(model, questions[0])
    logits = np.float64(model.logits(np.array([ids[:-1]]))[0])
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    taken = log_probabilities[np.arange(len(ids) - 1), ids[1:]]
    assert losses[0].nats == pytest.approx(-taken[-labels:].sum(), rel=1e-5)


def test_a_reference_longer_than_the_model_counts_as_far_as_it_fits():
    model = small_model()
    ((loss,),) = reference_losses(model, [prompt(0, candidates=None, references=("word " * 500,))], batch_rows=2)
    assert loss.tokens == CONFIG.max_positions and math.isfinite(loss.nats)


def test_losses_are_per_token_and_by_level():
    questions = [prompt(0), prompt(1), prompt(2, level="fully_held_out"), prompt(3, level=None)]
    losses = [ReferenceLoss(*pair) for pair in ((1.0, 1), (5.0, 2), (3.0, 6), (11.0, 1))]
    assert validation_losses(questions, losses) == {
        "loss": 2.0,
        "loss/fully_held_out": 0.5,
        "loss/held_out_instances": 2.0,
    }
