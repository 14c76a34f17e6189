"""Confidence intervals beside closed forms, direct sums and simulated coverage."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from optiml_jax.evaluation.scores.aggregation import aggregate
from optiml_jax.evaluation.scores.intervals import TaskQuestions, over_clusters, over_questions, variance
from optiml_jax.evaluation.scores.samples import score_sample
from optiml_jax.evaluation.scores.task_scores import question_scores
from tests.evaluation.example_prompts import prompt, sample
from tests.evaluation.scores import coverage


def task(scores, templates: int = 1) -> TaskQuestions:
    return TaskQuestions(
        {"0": {f"t{t}": {(0, str(i)): score for i, score in enumerate(scores)} for t in range(templates)}}
    )


def test_variance_and_degrees_of_freedom_are_those_of_the_matrices():
    """Against Bell and McCaffrey's formulas written with matrices; with equal weights, the textbook's variance."""
    rng = np.random.default_rng(0)
    for count in (2, 3, 9, 40):
        weights, means = rng.dirichlet(np.ones(count)), rng.random(count)
        residual_maker = np.eye(count) - weights
        covariance = residual_maker @ residual_maker.T
        factors = weights**2 / np.diag(covariance)
        want = factors @ (residual_maker @ means) ** 2
        spread = np.sqrt(np.outer(factors, factors)) * covariance
        freedom = (weights @ weights) ** 2 / (spread**2).sum()
        np.testing.assert_allclose(variance(weights, means), (want, freedom), rtol=1e-9)
        equal = np.full(count, 1 / count)
        np.testing.assert_allclose(variance(equal, means), (means.var(ddof=1) / count, count - 1), rtol=1e-9)


def test_right_and_wrong_answers_have_wilsons_interval():
    """Equal to statsmodels' for 2,000 questions, where Student's t and n - 1 are as good as the normal and n."""
    scores = np.repeat([1.0, 0.0], [1400, 600])
    have = over_clusters(*task(scores).clusters({"0": 1.0}), len(scores))
    np.testing.assert_allclose(have, proportion_confint(1400, 2000, method="wilson"), atol=1e-4)
    none_right = over_clusters(*task([0.0] * 30).clusters({"0": 1.0}), 30)
    assert none_right[0] == 0.0 and 0.11 < none_right[1] < 0.13, "none of thirty is still not certainly none"


def test_the_interval_of_many_fractions_is_that_of_a_mean():
    scores = np.random.default_rng(1).beta(2, 3, 3000)
    have = over_clusters(*task(scores).clusters({"0": 1.0}), len(scores))
    want = stats.t.interval(0.95, len(scores) - 1, scores.mean(), stats.sem(scores))
    np.testing.assert_allclose(have, want, atol=1e-4)
    wide = over_clusters(np.full(9, 1 / 9), 20 * scores[:9], 9, (-np.inf, np.inf))
    np.testing.assert_allclose(wide, stats.t.interval(0.95, 8, 20 * scores[:9].mean(), 20 * stats.sem(scores[:9])))


def test_all_prompts_of_a_question_are_one_cluster():
    """Ten wordings of the same 20 questions, answered alike, say as much as one."""
    scores = [float(i % 3 == 0) for i in range(20)]
    single, repeated = (over_clusters(*task(scores, templates).clusters({"0": 1.0}), 20) for templates in (1, 10))
    np.testing.assert_allclose(single, repeated, atol=1e-12)


def test_the_variance_over_questions_is_the_sum_of_the_tasks():
    """Three tasks of unequal size and weight, against the sum of squares and Satterthwaite's formula."""
    rng = np.random.default_rng(2)
    groups, weights = [rng.random(size) for size in (10, 30, 200)], np.array([0.5, 0.3, 0.2])
    parts = weights**2 * [group.var(ddof=1) / len(group) for group in groups]
    freedom = parts.sum() ** 2 / sum(part**2 / (len(group) - 1) for part, group in zip(parts, groups))
    t = stats.t.ppf(0.975, freedom)
    mean = sum(weight * group.mean() for weight, group in zip(weights, groups))
    tasks = [(task(group), {"0": weight}) for group, weight in zip(groups, weights)]
    want = mean - t * np.sqrt(parts.sum()), mean + t * np.sqrt(parts.sum())
    np.testing.assert_allclose(over_questions(tasks, (-np.inf, np.inf)), want)


def test_fewer_than_five_tasks_or_questions_have_no_interval():
    samples = [sample(float(n % 2), number=n, task=f"t{t}") for t in range(4) for n in range(30)]
    result = aggregate(samples)
    category = result["categories"]["weather"]
    assert category["interval"] is None and category["clusters"] == 4
    low, high = category["questions_interval"]
    assert low < 0.5 < high and high - low < 0.2
    assert all(entry["interval"] for entry in result["tasks"].values())
    assert aggregate(samples[:4])["tasks"]["t0"]["interval"] is None
    category = aggregate(samples[:1])["categories"]["weather"]
    assert category["interval"] is category["questions_interval"] is None


def test_sub_tasks_of_one_task_count_as_one_among_others_and_for_themselves_alone():
    subjects = [sample(float(n % 2), number=n, task=f"law{t}", group="mmlu") for t in range(6) for n in range(9)]
    others = [sample(float(n % 3 == 0), number=n, task=f"t{t}") for t in range(4) for n in range(9)]
    assert aggregate(subjects)["categories"]["weather"]["clusters"] == 6
    both = aggregate(subjects + others)["categories"]["weather"]
    assert both["clusters"] == 5 and both["tasks"] == 10


def test_every_score_lies_in_its_intervals():
    samples = [sample(1.0, number=n, task=f"many{t}", category="many") for t in range(6) for n in range(10)]
    samples += [sample(float(n % 2), number=n, task="one", category="one", shots=k) for n in range(10) for k in (0, 5)]
    result = aggregate(samples)
    level = result["levels"]["held_out_instances"]
    assert level["score"] == 0.75 and result["averages"]["average"]["shots"] == {"0": 0.75, "5": 0.5}
    entries = [*result["tasks"].values(), *result["categories"].values(), *result["benchmarks"].values(), level]
    for entry in (*entries, *result["averages"].values()):
        for name in ("interval", "questions_interval"):
            if entry.get(name) is not None:
                assert entry[name][0] - 1e-12 <= entry["score"] <= entry[name][1] + 1e-12
    assert result["categories"]["many"]["interval"][0] > 0.9


def macro_f1(labels, answers) -> float:
    """Mean over the labels of 2 right / (predicted + expected), as scikit-learn computes it."""
    labels, answers = np.asarray(labels), np.asarray(answers)
    names = np.union1d(labels, answers)
    right = [2 * ((labels == name) & (answers == name)).sum() for name in names]
    return float(np.mean([r / ((labels == n).sum() + (answers == n).sum()) for r, n in zip(right, names)]))


def test_macro_f1_is_resampled_as_itself():
    """The jackknife's variance beside the spread of macro-F1 over new draws of questions."""
    rng = np.random.default_rng(4)

    def draw(count):
        labels = rng.choice(["a", "b", "c"], count, p=[0.6, 0.3, 0.1])
        answers = np.where(rng.random(count) < 0.7, labels, rng.choice(["a", "b", "c"], count))
        return labels, answers

    labels, answers = draw(200)
    pairs = enumerate(zip(labels.tolist(), answers.tolist()))
    fields = {"metric": "macro_f1", "candidates": ("a", "b", "c")}
    samples = [score_sample(prompt(n, references=(label,), **fields), answer) for n, (label, answer) in pairs]
    (entry,) = aggregate(samples)["tasks"].values()
    assert entry["score"] == pytest.approx(macro_f1(labels, answers))
    pseudo = np.array(list(question_scores(samples)["0"]["plain"].values()))
    assert pseudo.mean() == pytest.approx(entry["score"])
    spread = np.std([macro_f1(*draw(200)) for _ in range(400)])
    assert pseudo.std(ddof=1) / np.sqrt(200) == pytest.approx(spread, rel=0.3)
    assert entry["interval"][0] < entry["score"] < entry["interval"][1]


def test_a_question_of_several_samples_is_one_example_as_right_as_its_worst():
    samples = [sample(float(n != 3), number=n, part_of=str(n // 2)) for n in range(6)]
    assert question_scores(samples) == {"0": {"plain": {(0, "0"): 1.0, (0, "1"): 0.0, (0, "2"): 1.0}}}


def test_the_coverage_of_five_tasks():
    """The smallest case of the slow test below, on fewer draws."""
    share = coverage.covered(clusters=5, mean=0.5, spread=0.15, unequal=True, draws=600)
    assert 0.92 <= share <= 0.98


@pytest.mark.slow
def test_intervals_cover_what_they_promise():
    """93 to 97% on average over every number of tasks and kind of weights, and no single case far from it."""
    table = coverage.table(draws=4_000)
    by_count = {}
    for (count, *_), share in table.items():
        by_count.setdefault(count, []).append(share)
        assert 0.915 <= share <= 0.985
    assert all(0.93 <= np.mean(shares) <= 0.97 for shares in by_count.values())
