"""Bootstrap confidence intervals, clustered by task.

Questions of one task are correlated, and a question with several templates or numbers of shots is still one question:
neither is an independent draw. The bootstrap therefore has two stages: it draws tasks with replacement, then the
examples of each, with all the prompts about them (Field and Welsh 2007, the randomized cluster bootstrap; Miller 2024,
"Adding Error Bars to Evals", on clustering). With a single task, only its examples are drawn. Intervals are
percentiles, and so stay within [0, 1].
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

REPLICATES = 1_000
COVERAGE = 0.95
_DRAWN_AT_ONCE = 2_000_000  # random numbers per call, which bounds memory

Questions = Mapping[str, Mapping[str, Mapping[tuple, float]]]  # shots -> template -> (seed, example) -> score
Shares = Mapping[str, float]  # number of shots -> weight of a task's mean at it in a score


class Resampled:
    """Bootstrap replicates of the scores of one task.

    Args:
      name: of the task; seeds its draws, so that they do not depend on what else is evaluated.
      questions: scores of each template, as `aggregation.question_scores` returns them.
      replicates: number of draws.
    """

    def __init__(self, name: str, questions: Questions, replicates: int = REPLICATES) -> None:
        self.name = name
        examples = sorted({q[1] for templates in questions.values() for by_q in templates.values() for q in by_q})
        index = {example: i for i, example in enumerate(examples)}
        self.shots = list(questions)
        # For every example, its contribution to the score at each number of shots, and to the weight that divides it.
        sums, weights = np.zeros((2, len(examples), len(self.shots)))
        for k, templates in enumerate(questions.values()):
            for by_question in templates.values():
                share = 1 / (len(templates) * len(by_question))
                for (_, example), score in by_question.items():
                    sums[index[example], k] += share * score
                    weights[index[example], k] += share
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.sums_RK, self.weights_RK = np.empty((2, replicates, len(self.shots)))
        step = max(1, _DRAWN_AT_ONCE // len(examples))
        for first in range(0, replicates, step):
            drawn = slice(first, min(first + step, replicates))
            counts = rng.multinomial(len(examples), np.full(len(examples), 1 / len(examples)), drawn.stop - first)
            self.sums_RK[drawn], self.weights_RK[drawn] = counts @ sums, counts @ weights

    def weighted(self, shares: Shares) -> tuple[np.ndarray, np.ndarray]:
        """For each replicate, the sums of scores and of weights in a mean where this task has the weights `shares`."""
        by_shot_K = np.array([shares.get(k, 0.0) for k in self.shots])
        return self.sums_RK @ by_shot_K, self.weights_RK @ by_shot_K


def replicates(tasks: Sequence[tuple[Resampled, Shares]]) -> np.ndarray:
    """Replicates of a weighted mean over tasks: [R].

    Args:
      tasks: with their weights.
    """
    sums, weights = (np.stack(parts) for parts in zip(*(task.weighted(shares) for task, shares in tasks)))
    if len(tasks) == 1:
        return sums[0] / weights[0]
    count = sums.shape[1]
    rng = np.random.default_rng(zlib.crc32("\n".join(task.name for task, _ in tasks).encode()))
    task_RJ = rng.integers(len(tasks), size=(count, len(tasks)))
    draw_RJ = rng.integers(count, size=task_RJ.shape)  # a task drawn twice has two different replicates
    return sums[task_RJ, draw_RJ].sum(1) / weights[task_RJ, draw_RJ].sum(1)


def interval(values: np.ndarray, coverage: float = COVERAGE) -> list[float]:
    """[low, high] percentiles of replicates."""
    tail = (1 - coverage) / 2
    return [float(end) for end in np.quantile(values, [tail, 1 - tail])]
