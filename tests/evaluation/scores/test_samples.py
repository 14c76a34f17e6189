"""Checks the lines of samples.jsonl."""

import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.evaluation.scores.samples import score_sample, scored
from tests.evaluation.example_prompts import prompt


def test_a_sample_holds_the_answer_its_score_and_where_it_counts():
    made = score_sample(prompt(), "no", scores=(-2.0, -1.0), prompt_cut=True)
    assert (made["score"], made["correct"], made["truncated"], made["prompt_cut"]) == (0.0, False, False, True)
    assert made["candidates"] == ["yes", "no"] and made["scores"] == [-2.0, -1.0]
    assert (made["level"], made["category"], made["shots"]) == ("held_out_instances", "weather", 0)
    assert score_sample(prompt(metric="rouge_l", candidates=None, references=("a b",)), "a")["score"] == 2 / 3


@pytest.mark.parametrize("score", [float("nan"), float("-inf")])
def test_a_score_that_cannot_be_ranked_is_an_error_naming_the_prompt(score):
    with pytest.raises(UserError, match=r"prompt suite/bench.sky/plain/0/0/0: candidate scores"):
        score_sample(prompt(), "yes", scores=[-1.0, score])


def test_a_prompt_that_cannot_be_asked_has_no_score():
    made = score_sample(prompt(), None, remark="a candidate is empty")
    assert (made["score"], made["prediction"], made["remark"]) == (None, None, "a candidate is empty")
    assert not made["correct"] and scored([made, score_sample(prompt(1), "yes")]) == [score_sample(prompt(1), "yes")]
