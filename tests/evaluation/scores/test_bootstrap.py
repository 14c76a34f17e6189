"""Confidence intervals beside scipy's bootstrap, the known variance of clusters, and the scores they belong to."""

import numpy as np
import pytest
from scipy import stats

from optiml_jax.evaluation.scores.aggregation import aggregate, question_scores
from optiml_jax.evaluation.scores.bootstrap import Resampled, interval, replicates
from tests.evaluation.example_prompts import sample


def of_task(name: str, scores) -> Resampled:
    return Resampled(name, {"0": {"t": {(0, str(i)): score for i, score in enumerate(scores)}}}, 20_000)


def test_one_task_has_the_percentile_interval_of_scipy():
    scores = np.random.default_rng(1).random(60) ** 2
    have = interval(replicates([(of_task("a", scores), {"0": 1.0})]))
    want = stats.bootstrap((scores,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    np.testing.assert_allclose(have, want, atol=0.003)  # either is a draw of 20,000: their quantiles differ by so much


def test_the_spread_of_several_tasks_is_that_between_them_and_that_within():
    """For n tasks with m questions: var = between / n + within / (n m), the first stage and the second."""
    rng = np.random.default_rng(3)
    scores = rng.normal(rng.normal(0, 0.2, (40, 1)), 0.1, (40, 25))
    values = replicates([(of_task(f"task{i}", group), {"0": 1.0}) for i, group in enumerate(scores)])
    between, within = scores.mean(1).var(), scores.var(1).mean()
    assert values.mean() == pytest.approx(scores.mean(), abs=0.001)
    assert values.std() == pytest.approx(np.sqrt(between / 40 + within / (40 * 25)), rel=0.03)


def test_all_prompts_of_an_example_are_drawn_together():
    """Ten wordings of the same 20 question_scores, answered alike, say as much as one."""
    scores = [float(i % 3 == 0) for i in range(20)]
    widths = []
    for templates in (1, 10):
        requests = {"0": {f"t{t}": {(0, str(i)): score for i, score in enumerate(scores)} for t in range(templates)}}
        low, high = interval(replicates([(Resampled("a", requests, 20_000), {"0": 1.0})]))
        widths.append(high - low)
    assert widths[0] == pytest.approx(widths[1], abs=1e-12)


def test_every_score_lies_in_its_interval_and_weighs_its_tasks_as_the_aggregation_does():
    """A category with 300 equal tasks and one with a single task each contribute half of the level."""
    samples = [sample(1.0, number=n, task=f"many{t}", category="many") for t in range(6) for n in range(10)]
    samples += [sample(float(n % 2), number=n, task="one", category="one", shots=k) for n in range(10) for k in (0, 5)]
    result = aggregate(samples)
    level = result["levels"]["held_out_instances"]
    assert level["score"] == 0.75 and level["interval"][0] < 0.75 < level["interval"][1]
    assert result["categories"]["many"]["interval"] == [1.0, 1.0] and result["average_interval"] == level["interval"]
    for entry in (*result["tasks"].values(), *result["categories"].values(), *result["benchmarks"].values()):
        assert entry["interval"][0] <= entry["score"] <= entry["interval"][1]
    assert result["tasks"]["one"]["interval"] == result["categories"]["one"]["interval"]


def test_what_is_scored_together_has_no_interval_of_its_own():
    samples = [sample(float(n % 2), number=n, metric="macro_f1") for n in range(10)]
    (task,) = aggregate(samples)["tasks"].values()
    assert task["interval"] is None


def test_a_question_of_several_samples_is_one_example_as_right_as_its_worst():
    samples = [sample(float(n != 3), number=n, part_of=str(n // 2)) for n in range(6)]
    assert question_scores(samples) == {"0": {"plain": {(0, "0"): 1.0, (0, "1"): 0.0, (0, "2"): 1.0}}}
