"""Paired tests beside scipy and statsmodels on the same counts."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from optiml_jax.common.errors import UserError
from optiml_jax.evaluation.scores.comparison import bootstrap_p, compare, holm, mcnemar, pair
from tests.evaluation.example_prompts import sample


def test_mcnemar_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    for _ in range(100):
        both, first, second, neither = rng.integers(0, 40, 4).tolist()
        if first + second:
            want = statsmodels_mcnemar([[both, first], [second, neither]], exact=True).pvalue
            assert mcnemar(first, second) == pytest.approx(want, rel=1e-9)
    assert mcnemar(0, 0) == 1.0


def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(1)
    for count in (1, 2, 7, 100):
        p = (rng.random(count) ** 3).tolist()
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)
    assert holm([]) == []


def sides(first, second, **fields):
    """Two runs of one task with these scores."""
    return [[sample(float(score), number=n, **fields) for n, score in enumerate(scores)] for scores in (first, second)]


def test_a_task_of_right_and_wrong_is_tested_on_the_prompts_that_differ():
    first, second = [1] * 30 + [0] * 20, [1] * 25 + [0] * 5 + [1] * 16 + [0] * 4
    (task,) = compare(pair(*sides(first, second)))["tasks"].values()
    assert (task["only_first"], task["only_second"], task["test"]) == (5, 16, "mcnemar")
    assert task["p"] == pytest.approx(stats.binomtest(5, 21).pvalue) and task["p_holm"] == task["p"]
    assert task["difference"] == pytest.approx(11 / 50)
    low, high = task["interval"]
    want = stats.bootstrap(
        (np.subtract(second, first),), np.mean, n_resamples=10_000, method="percentile", rng=0
    ).confidence_interval
    np.testing.assert_allclose([low, high], want, atol=0.021)  # steps of 0.02


def test_a_task_of_fractions_is_tested_by_the_paired_bootstrap():
    """Against scipy's bootstrap of the same differences, and near the paired t-test, whose assumptions hold here."""
    rng = np.random.default_rng(4)
    first = rng.random(80)
    second = np.clip(first + rng.normal(0.02, 0.1, 80), 0, 1)
    (task,) = compare(pair(*sides(first, second, metric="rouge_l")))["tasks"].values()
    want = stats.bootstrap((second - first,), np.mean, n_resamples=10_000, method="percentile", rng=5)
    np.testing.assert_allclose(task["interval"], want.confidence_interval, atol=0.002)
    assert task["test"] == "bootstrap" and task["p"] == pytest.approx(stats.ttest_rel(second, first).pvalue, abs=0.02)


def test_categories_and_levels_are_clustered_by_task():
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
    assert category["tasks"] == 12 and category["difference"] == pytest.approx(shifts.mean())
    assert category["p"] == pytest.approx(stats.ttest_1samp(shifts, 0).pvalue, abs=0.07)  # 12 tasks, not 600 prompts
    np.testing.assert_allclose(category["interval"], level["interval"], atol=0.001)
    assert sum(task["p"] < 0.01 for task in comparison["tasks"].values()) == 12
    assert comparison["changed"] == comparison["prompts"] == 600


def test_equal_runs_do_not_differ():
    comparison = compare(pair(*sides([1, 0, 0.5], [1, 0, 0.5], metric="rouge_l")))
    assert [comparison[kind].popitem()[1]["p"] for kind in ("tasks", "categories", "levels")] == [1.0] * 3
    assert comparison["changed"] == 0 and bootstrap_p(np.zeros(100)) == 1.0


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
