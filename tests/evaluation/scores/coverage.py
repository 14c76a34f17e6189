"""Simulated coverage of the 95% intervals: `python -m tests.evaluation.scores.coverage`.

Tasks have true scores drawn from a beta distribution and 10 to 1,000 questions each, answered right or wrong. The
interval of their mean should hold the mean of the distribution in 95% of the draws.
"""

import numpy as np

from optiml_jax.evaluation.scores.intervals import over_clusters

COUNTS = (5, 6, 8, 12, 20, 50, 100)
SCORES = ((0.5, 0.15), (0.5, 0.3), (0.85, 0.15), (0.1, 0.08), (0.97, 0.03))  # mean and spread between tasks


def covered(clusters: int, mean: float, spread: float, unequal: bool, draws: int) -> float:
    """Share of draws whose interval holds the mean.

    Args:
      unequal: whether the score is a mean of categories with different numbers of tasks, so that tasks weigh unequally.
    """
    rng = np.random.default_rng([clusters, int(100 * mean), int(100 * spread), unequal])
    scale = mean * (1 - mean) / spread**2 - 1
    hits = 0
    for _ in range(draws):
        truths = rng.beta(mean * scale, (1 - mean) * scale, clusters)
        questions = np.exp(rng.uniform(np.log(10), np.log(1000), clusters)).astype(int)
        weights = np.full(clusters, 1 / clusters)
        if unequal:
            categories = max(2, clusters // 4)
            category = np.r_[np.arange(categories), rng.integers(0, categories, clusters - categories)]
            weights = 1 / categories / np.bincount(category)[category]
        low, high = over_clusters(weights, rng.binomial(questions, truths) / questions, int(questions.sum()))
        hits += low <= mean <= high
    return hits / draws


def table(draws: int) -> dict[tuple, float]:
    """Coverage by (clusters, unequal, mean, spread)."""
    return {
        (count, unequal, mean, spread): covered(count, mean, spread, unequal, draws)
        for unequal in (False, True)
        for mean, spread in SCORES
        for count in COUNTS
    }


if __name__ == "__main__":
    shares = table(draws=4_000)
    print("weights  mean  spread " + "".join(f"{count:>7}" for count in COUNTS) + "  tasks")
    for unequal in (False, True):
        for mean, spread in SCORES:
            cells = "".join(f"{100 * shares[count, unequal, mean, spread]:7.1f}" for count in COUNTS)
            print(f"{'unequal' if unequal else 'equal':<8}{mean:5.2f}{spread:8.2f} {cells}")
