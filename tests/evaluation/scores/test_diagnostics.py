"""Compares the diagnostics of generated answers with counts by hand."""

import pytest

from optiml_jax.evaluation.scores.diagnostics import diagnose, repeats_itself, task_labels
from optiml_jax.evaluation.scores.samples import score_sample
from tests.evaluation.example_prompts import prompt

LOOP = "the cat sat on the mat and " * 4


def written(answers, references, **fields):
    return [
        score_sample(
            prompt(n, candidates=None, references=(right,), metric="rouge_l", **fields), text, truncated=text == LOOP
        )
        for n, (text, right) in enumerate(zip(answers, references, strict=True))
    ]


def test_shares_are_counted_by_task():
    answers = ["yes", "No.", "maybe", "", LOOP, "yes", "yes", "yes", "no", "yes"]
    result = diagnose(written(answers, ["yes", "no"] * 5))
    assert result == {"bench.sky": {"outside": 0.2, "empty": 0.1, "cut": 0.1, "repeated": 0.1, "same": 0.5}}


def test_a_task_that_writes_freely_has_no_labels():
    samples = written([f"text {n}" for n in range(10)], [f"word {n}" for n in range(10)])
    assert task_labels(samples) is None and diagnose(samples)["bench.sky"]["outside"] is None


def test_ranked_and_unscored_prompts_are_not_checked():
    ranked = [score_sample(prompt(n), "yes", scores=[0.0, -1.0]) for n in range(5)]
    unscored = [score_sample(prompt(9, candidates=None), None, remark="a candidate is empty")]
    assert diagnose([*ranked, *unscored]) == {}


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("one two three four " * 5, True),
        ("ha " * 12, True),
        ("ha " * 5, False),  # too short to say
        (" ".join(map(str, range(40))), False),
        (" ".join(map(str, range(20))) + " 1 2 3 4 5 6", False),  # a phrase may come back
    ],
)
def test_an_answer_repeats_itself_when_half_of_its_runs_stood_there_before(text, repeats):
    assert repeats_itself(text) is repeats
