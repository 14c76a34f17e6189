"""Confidence intervals of scores, clustered by question and by task.

A question with several templates or numbers of shots is still one question, and the questions of one task are
correlated: neither prompts nor questions are independent draws. A score is therefore a weighted mean over clusters, the
questions of a task or the tasks of a category, and its variance is estimated from the differences between clusters:
V = sum c_i (s_i - m)^2 with the factors c that make it unbiased for equal variances, and Satterthwaite's degrees of
freedom (Bell and McCaffrey 2002). The interval is Wilson's with the effective sample size m (1 - m) / V and the
quantile of Student's t (Dean and Pagano 2015), which stays within [0, 1] and has a width where all answers are correct.

With fewer than `MIN_CLUSTERS` tasks there is no interval over tasks. `over_questions` is conditional on the tasks: it
says how far the score of these tasks is known, and nothing about other tasks. `tests/evaluation/scores/coverage.py`
prints the coverage for 5 to 100 clusters.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from optiml_jax.evaluation.scores.task_scores import Questions, template_weights

MIN_CLUSTERS = 5
COVERAGE = 0.95
UNBOUNDED = (-math.inf, math.inf)
_ENTIRE = (0.0, 1.0)

Interval = list[float] | None  # [low, high]
Shares = Mapping[str, float]  # number of shots -> weight of a task's mean at it in a score


class TaskQuestions:
    """The examples of a task, each with all the prompts about it, as clusters of the task's score.

    Args:
      questions: scores of each template, as `task_scores.question_scores` returns them.
      pooled: how templates weigh, see `task_scores.template_weights`.
    """

    def __init__(self, questions: Questions, pooled: bool = False) -> None:
        examples = sorted({q[1] for templates in questions.values() for by_q in templates.values() for q in by_q})
        index = {example: i for i, example in enumerate(examples)}
        self.shots = list(questions)
        # For each example, what it contributes to the score at each number of shots, and with which weight.
        self._sums_EK, self._weights_EK = np.zeros((2, len(examples), len(self.shots)))
        self.prompts = 0
        for k, templates in enumerate(questions.values()):
            weights = template_weights({name: len(by_question) for name, by_question in templates.items()}, pooled)
            for name, by_question in templates.items():
                share = weights[name] / len(by_question)
                self.prompts += len(by_question)
                for (_, example), score in by_question.items():
                    self._sums_EK[index[example], k] += share * score
                    self._weights_EK[index[example], k] += share

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._sums_EK)

    def clusters(self, shares: Shares) -> tuple[np.ndarray, np.ndarray]:
        """Weights, with the sum 1, and means [E] of the examples in the mean over shots with the weights `shares`."""
        shares_K = np.array([shares.get(k, 0.0) for k in self.shots])
        sums, weights = self._sums_EK @ shares_K, self._weights_EK @ shares_K
        used = weights > 0
        return weights[used] / weights.sum(), sums[used] / weights[used]


def variance(weights: np.ndarray, means: np.ndarray) -> tuple[float, float]:
    """Variance of the weighted mean of independent clusters, and its degrees of freedom.

    Args:
      weights: [C], with the sum 1.  means: [C].
    """
    residuals = means - weights @ means
    square = weights @ weights
    # Residuals are (I - 1 w') means: for equal variances, their covariances are 1 - w_i - w_j + sum w^2 (+ 1 if i = j).
    diagonal = 1 - 2 * weights + square
    factors = np.divide(weights**2, diagonal, out=np.zeros_like(weights), where=diagonal > 1e-12)
    a, aw, aww = factors.sum(), factors @ weights, factors @ weights**2
    # sum_ij c_i c_j (square - w_i - w_j)^2, and the diagonal's difference from it
    off = square**2 * a**2 + 2 * aww * a + 2 * aw**2 - 4 * square * a * aw
    on = factors**2 @ (diagonal**2 - (square - 2 * weights) ** 2)
    return float(factors @ residuals**2), float(square**2 / (off + on))


def over_clusters(weights: np.ndarray, means: np.ndarray, questions: int, bounds: tuple = _ENTIRE) -> Interval:
    """The interval of a weighted mean of clusters; None with fewer than `MIN_CLUSTERS`.

    Args:
      weights: [C], with the sum 1.  means: [C].
      questions: the effective sample size where the clusters do not differ at all.
      bounds: of the scores; (0, 1) for Wilson's interval, others for a symmetric one.
    """
    if len(weights) < MIN_CLUSTERS:
        return None
    return _interval(float(weights @ means), *variance(weights, means), questions, bounds)


def over_questions(tasks: Sequence[tuple[TaskQuestions, Shares]], bounds: tuple = _ENTIRE) -> Interval:
    """The interval of a weighted mean over these tasks, of which only the questions are a sample.

    Args:
      tasks: with their weights by number of shots, which sum to 1.

    Returns:
      None if a task has fewer than two questions, or all together fewer than `MIN_CLUSTERS`.
    """
    questions = sum(len(task) for task, _ in tasks)
    if questions < MIN_CLUSTERS or any(len(task) < 2 for task, _ in tasks):
        return None
    mean = total = fourth = 0.0
    for task, shares in tasks:
        weight = sum(shares.values())
        weights, means = task.clusters(shares)
        task_variance, freedom = variance(weights, means)
        mean += weight * float(weights @ means)
        total += weight**2 * task_variance
        fourth += (weight**2 * task_variance) ** 2 / freedom
    return _interval(mean, total, total**2 / fourth if fourth else math.inf, questions, bounds)


def _interval(mean: float, variance: float, freedom: float, questions: int, bounds: tuple) -> list[float]:
    t = float(stats.t.ppf((1 + COVERAGE) / 2, freedom))
    if bounds != _ENTIRE:
        half = t * math.sqrt(variance)
        return [max(bounds[0], mean - half), min(bounds[1], mean + half)]
    mean = min(1.0, max(0.0, mean))
    spread = mean * (1 - mean)
    size = spread / variance if variance > 1e-12 and spread > 1e-12 else questions
    divisor = 1 + t * t / size
    middle = (mean + t * t / (2 * size)) / divisor
    half = t / divisor * math.sqrt(spread / size + t * t / (4 * size * size))
    return [min(mean, max(0.0, middle - half)), max(mean, min(1.0, middle + half))]
