"""The choice among ranked candidates, without a model."""

from types import SimpleNamespace

import pytest

from optiml_jax.evaluation.answers import answering
from optiml_jax.inference.model import Ranked
from tests.evaluation.example_prompts import prompt


@pytest.mark.parametrize(
    ("scores", "best"), [((-1.0, -1.0, -1.0), "a"), ((-2.0, -1.0, -1.0), "b"), ((-1, -3, -0.5), "c")]
)
def test_the_best_candidate_wins_and_of_equal_ones_the_first(scores, best):
    question = prompt(candidates=("a", "b", "c"), references=("b",))
    tokens = [[(text, score)] for text, score in zip(question.candidates, scores)]
    model = SimpleNamespace(rank_prepared=lambda prepared: prepared)
    group = answering._Rankable([question], [0], [None], [0], [[Ranked(list(scores), tokens, False)]])
    (answer,) = answering._rank_group(model, group, "sum")
    assert answer["prediction"] == best and answer["scores"] == list(scores)
