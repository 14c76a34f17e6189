"""Paired tests beside scipy and statsmodels on the same counts."""

import numpy as np
import pytest
from scipy import stats

from optiml_jax.common.errors import UserError
from optiml_jax.evaluation.scores.comparison import MUST_AGREE, compare, pair
from optiml_jax.evaluation.scores.samples import score_sample
from tests.evaluation.example_prompts import prompt, sample
from tests.evaluation.scores.test_intervals import macro_f1


def sides(first, second, **fields):
    """Two runs of one task with these scores."""
    return [[sample(float(score), number=n, **fields) for n, score in enumerate(scores)] for scores in (first, second)]


def test_a_task_of_right_and_wrong_is_tested_on_the_prompts_that_differ():
    first, second = [1] * 30 + [0] * 20, [1] * 25 + [0] * 5 + [1] * 16 + [0] * 4
    (task,) = compare(pair(*sides(first, second)))["tasks"].values()
    assert (task["only_first"], task["only_second"], task["test"]) == (5, 16, "mcnemar")
    assert task["p"] == pytest.approx(stats.binomtest(5, 21).pvalue) and task["p_holm"] == task["p"]
    assert task["difference"] == pytest.approx(11 / 50)
    # Bonett and Price (2012): a question added to each kind that differs
    first_only, second_only = 6 / 52, 17 / 52
    middle = second_only - first_only
    half = stats.t.ppf(0.975, 51) * np.sqrt((first_only + second_only - middle**2) / 51)
    np.testing.assert_allclose(task["interval"], [middle - half, middle + half])


def test_a_task_of_fractions_is_tested_by_question():
    """The paired t-test's assumptions hold here, and its p-value and interval are near."""
    rng = np.random.default_rng(4)
    first = rng.random(80)
    second = np.clip(first + rng.normal(0.02, 0.1, 80), 0, 1)
    (task,) = compare(pair(*sides(first, second, metric="rouge_l")))["tasks"].values()
    want = stats.ttest_rel(second, first)
    np.testing.assert_allclose(task["interval"], want.confidence_interval())
    assert task["test"] == "sign flip" and task["p"] == pytest.approx(want.pvalue, abs=0.01)


def test_one_question_in_ten_wordings_is_one_question():
    """The second run answers one more of 30 questions, in all ten wordings: one question differs, not ten."""
    runs = [
        [sample(float(n or side), number=n, template=f"t{t}") for n in range(30) for t in range(10)] for side in (0, 1)
    ]
    comparison = compare(pair(*runs))
    (task,) = comparison["tasks"].values()
    assert (task["p"], task["only_first"], task["only_second"], task["prompts"]) == (1.0, 0, 1, 300)
    assert task["test"] == "sign flip" and task["interval"][0] < 0 < task["interval"][1]


def test_macro_f1_is_compared_by_macro_f1():
    """Accuracy rises from .86 to .90 while macro-F1 falls: the test is that of what the difference shows."""
    labels = ["a"] * 45 + ["b"] * 5
    before = ["a"] * 39 + ["b"] * 6 + ["b"] * 4 + ["a"]
    after = ["a"] * 50
    runs = [
        [
            score_sample(prompt(n, metric="macro_f1", references=(label,), candidates=("a", "b")), answer)
            for n, (label, answer) in enumerate(zip(labels, answers))
        ]
        for answers in (before, after)
    ]
    (task,) = compare(pair(*runs))["tasks"].values()
    first, second = (macro_f1(labels, answers) for answers in (before, after))
    assert (task["first"], task["second"]) == (pytest.approx(first), pytest.approx(second)) and second < first
    assert task["test"] == "permutation" and task["interval"][0] < task["difference"] < task["interval"][1] < 0.1
    # Against all 2^10 assignments of the ten answers that differ
    differ = [n for n in range(50) if before[n] != after[n]]
    extreme = 0
    for mask in range(2 ** len(differ)):
        ours, theirs = list(before), list(after)
        for bit, n in enumerate(differ):
            if mask >> bit & 1:
                ours[n], theirs[n] = theirs[n], ours[n]
        scores = [macro_f1(labels, answers) for answers in (ours, theirs)]
        extreme += abs(scores[1] - scores[0]) >= abs(second - first) - 1e-12
    assert task["p"] == pytest.approx(extreme / 2 ** len(differ), rel=0.3)


def test_categories_levels_and_averages_are_clustered_by_task():
    """Twelve tasks that differ by chance, each of many alike prompts: as one cloud of prompts they would be certain."""
    rng = np.random.default_rng(6)
    shifts = rng.normal(0.03, 0.15, 12)
    runs = [[], []]
    for t, shift in enumerate(shifts):
        base = rng.random(50) * 0.4 + 0.3
        for side, scores in zip(runs, (base, base + shift)):
            side += [sample(score, number=n, task=f"t{t}", metric="rouge_l") for n, score in enumerate(scores)]
    comparison = compare(pair(*runs))
    category, level = comparison["categories"]["weather"], comparison["levels"]["held_out_instances"]
    want = stats.ttest_1samp(shifts, 0)
    assert category["tasks"] == 12 and category["difference"] == pytest.approx(shifts.mean())
    assert category["p"] == pytest.approx(want.pvalue, abs=0.03)  # 12 tasks, not 600 prompts
    for entry in (category, level, *comparison["averages"].values()):
        np.testing.assert_allclose(entry["interval"], want.confidence_interval())
        low, high = entry["questions_interval"]
        assert high - low < 1e-9, "every question of a task differs by the same"
    assert sum(task["p"] < 0.01 for task in comparison["tasks"].values()) == 12
    assert comparison["changed"] == comparison["prompts"] == 600


def test_few_tasks_are_not_tested():
    runs = [[sample(float(side), number=n, task=f"t{t}") for t in range(4) for n in range(50)] for side in (0, 1)]
    comparison = compare(pair(*runs))
    for kind in ("categories", "levels", "averages"):
        for entry in comparison[kind].values():
            assert entry["p"] is entry["p_holm"] is entry["interval"] is None and entry["difference"] == 1.0
            assert entry["questions_interval"] == [1.0, 1.0]
    assert all(task["p_holm"] < 1e-10 for task in comparison["tasks"].values())


def test_a_question_is_answered_if_every_wording_is():
    """Whichever wording is wrong; both runs answer the other questions."""
    for wrong in range(3):
        runs = [
            [
                sample(float(bool(side or n or t != wrong)), number=n, template=f"t{t}")
                for n in range(8)
                for t in range(3)
            ]
            for side in (0, 1)
        ]
        (task,) = compare(pair(*runs))["tasks"].values()
        assert (task["only_first"], task["only_second"]) == (0, 1)


@pytest.mark.parametrize("field", MUST_AGREE)
def test_prompts_that_differ_in_anything_that_matters_are_not_paired(field):
    ours, theirs = sides([1, 0, 1], [1, 0, 1])
    theirs[1] = theirs[1] | {field: "another"}
    paired = pair(ours, theirs)
    assert len(paired.first) == 2 and paired.left_out[0].startswith(f"1 prompts differ in {field}: ")


def test_what_must_agree_is_all_that_a_score_depends_on():
    fields = {"prompt", "references", "candidates", "metric", "pooled", "task", "template", "example_id", "shots"}
    assert set(MUST_AGREE) == fields | {"seed", "part_of"}


def test_equal_runs_do_not_differ():
    comparison = compare(pair(*sides([1, 0, 0.5], [1, 0, 0.5], metric="rouge_l")))
    assert comparison["tasks"].popitem()[1]["p"] == 1.0 and comparison["changed"] == 0


def test_what_cannot_be_paired_is_told():
    ours, theirs = sides([1, 0, 1, 1], [1, 0, 1, 0])
    theirs[1] = theirs[1] | {"prompt": "another"}
    paired = pair(ours[:3], theirs[1:])
    assert [item["example_id"] for item in paired.first] == ["2"]
    assert paired.left_out == [
        "1 prompts differ in prompt: suite/bench.sky/plain/1/0/0",
        "1 prompts are only in the first run",
        "1 prompts are only in the second run",
    ]
    with pytest.raises(UserError, match=r"2 prompts .*first run"):
        pair(ours[:2], theirs[2:])
