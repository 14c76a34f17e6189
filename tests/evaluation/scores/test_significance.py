"""Paired tests beside scipy and statsmodels, and the p-values of planted effects."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from optiml_jax.evaluation.scores.significance import SWAPS, holm, sign_flip, swap
from tests.evaluation.scores import power


def test_right_and_wrong_answers_have_mcnemars_exact_test():
    rng = np.random.default_rng(0)
    for _ in range(100):
        both, first, second, neither = rng.integers(0, 40, 4).tolist()
        differences = np.repeat([0.0, -1.0, 1.0], [both + neither, first, second]) / 160
        want = statsmodels_mcnemar([[both, first], [second, neither]], exact=True).pvalue if first + second else 1.0
        assert sign_flip(differences) == pytest.approx(want, rel=1e-9)


def test_it_is_scipys_permutation_test_of_paired_samples():
    """Which enumerates the signs too; the sizes here have no common unit, so ours are rounded."""
    rng = np.random.default_rng(1)
    for count in (2, 5, 9, 13):
        differences = rng.normal(0.3, 1, count)
        want = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
        assert sign_flip(differences) == pytest.approx(want, abs=2 / 2**count)
        assert sign_flip(np.abs(differences)) == 2.0 ** (1 - count)


def test_its_tails_reach_as_far_as_those_of_the_t_test():
    differences = np.random.default_rng(2).normal(0.5, 1, 250)
    have, want = sign_flip(differences), stats.ttest_1samp(differences, 0).pvalue
    assert want < 1e-10 and np.log10(have) == pytest.approx(np.log10(want), abs=0.7)
    assert 0 < sign_flip(np.ones(5000)) < 1e-300


def test_one_question_decides_nothing():
    assert sign_flip([]) == sign_flip([0.0, 0.0]) == sign_flip([1.0]) == sign_flip([0.0, -0.222]) == 1.0
    assert sign_flip([1.0] * 5) == 2 / 32 and sign_flip([0.1] * 6) == 2 / 64


def test_swapped_answers_of_a_mean_have_the_exact_p_value():
    """Where the score is a mean, swapping answers is flipping signs."""
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.4):
        differences = rng.normal(shift, 1, 40)
        have = swap("task", 40, lambda mask, d=differences: float(np.where(mask, -d, d).mean()))
        assert have == pytest.approx(sign_flip(differences), rel=0.35, abs=5e-4)


def test_no_p_value_of_draws_is_zero():
    """If no draw is as extreme as the observed difference, the p-value is 1 / (draws + 1)."""
    assert swap("task", 60, lambda mask: 1.0 if not mask.any() else 0.0) == 1 / (SWAPS + 1)


def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(1)
    for count in (1, 2, 7, 100):
        p = (rng.random(count) ** 3).tolist()
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)
    assert holm([]) == []


@pytest.mark.parametrize(("wordings", "tasks"), [(1, 6), (10, 6)])
def test_equal_models_are_rarely_told_apart(wordings, tasks):
    shares = power.rejected(wordings=wordings, tasks=tasks, effect=0.0, draws=60)
    assert shares["tasks"] <= 0.08 and shares["category"] <= 0.12  # 360 and 60 draws


@pytest.mark.slow
def test_no_effect_is_found_in_one_of_twenty_draws_and_a_real_one_as_often_as_by_an_exact_test():
    for wordings in power.WORDINGS:
        for tasks in power.TASKS:
            draws = max(40, 1_000 // tasks)
            null = power.rejected(wordings=wordings, tasks=tasks, effect=0.0, draws=draws)
            assert null["tasks"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / (draws * tasks))
            assert null["category"] is None or null["category"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
    real = power.rejected(wordings=1, tasks=10, effect=0.3, draws=100)
    assert real["tasks"] == pytest.approx(real["exact"], abs=0.02) and real["tasks"] > 0.4
