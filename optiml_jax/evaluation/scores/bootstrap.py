"""Confidence intervals of scores: what other tasks of a kind, and other questions of a task, might have given.

Questions of one task resemble each other, and a question asked in several wordings or with several demonstrations is
still one question: neither is an independent draw. So the bootstrap has two stages: tasks are drawn with replacement,
then the examples of each, with all the prompts that ask about them (Field and Welsh 2007, the randomized cluster
bootstrap; Miller 2024, "Adding Error Bars to Evals", on why the cluster is what counts). Where there is one task, its
examples alone are drawn. Intervals are percentiles, so they stay within [0, 1]; with a handful of tasks they are wide,
which is the truth about a handful of tasks.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

REPLICATES = 1_000
COVERAGE = 0.95
_AT_ONCE = 2_000_000  # numbers drawn at once

Questions = Mapping[str, Mapping[str, Mapping[tuple, float]]]  # shots -> template -> (seed, example) -> score
Shares = Mapping[str, float]  # number of shots -> what a task's mean at it weighs in a score


class Resampled:
    """The scores of one task, of as many draws of its examples as there are replicates.

    Args:
      name: of the task; its draws are the same whatever else is evaluated.
      questions: of each wording, as `aggregation.questions` gives them.
      replicates: how many draws.
    """

    def __init__(self, name: str, questions: Questions, replicates: int = REPLICATES) -> None:
        self.name = name
        examples = sorted({q[1] for templates in questions.values() for of in templates.values() for q in of})
        place = {example: i for i, example in enumerate(examples)}
        self.shots = list(questions)
        # Of every example: what it adds to the score at each number of shots, and to the weight that divides it.
        sums, weights = np.zeros((2, len(examples), len(self.shots)))
        for k, templates in enumerate(questions.values()):
            for of_template in templates.values():
                share = 1 / (len(templates) * len(of_template))
                for (_, example), score in of_template.items():
                    sums[place[example], k] += share * score
                    weights[place[example], k] += share
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.sums_RK, self.weights_RK = np.empty((2, replicates, len(self.shots)))
        step = max(1, _AT_ONCE // len(examples))
        for first in range(0, replicates, step):
            drawn = slice(first, min(first + step, replicates))
            counts = rng.multinomial(len(examples), np.full(len(examples), 1 / len(examples)), drawn.stop - first)
            self.sums_RK[drawn], self.weights_RK[drawn] = counts @ sums, counts @ weights

    def weighed(self, shares: Shares) -> tuple[np.ndarray, np.ndarray]:
        """Of each replicate, the sum of the scores and of the weights in a mean of which `shares` are this task's."""
        by_shot_K = np.array([shares.get(k, 0.0) for k in self.shots])
        return self.sums_RK @ by_shot_K, self.weights_RK @ by_shot_K


def replicates(tasks: Sequence[tuple[Resampled, Shares]]) -> np.ndarray:
    """A mean over tasks, of each replicate: [R].

    Args:
      tasks: and what each weighs.
    """
    sums, weights = (np.stack(parts) for parts in zip(*(task.weighed(shares) for task, shares in tasks)))
    if len(tasks) == 1:
        return sums[0] / weights[0]
    count = sums.shape[1]
    rng = np.random.default_rng(zlib.crc32("\n".join(task.name for task, _ in tasks).encode()))
    task_RJ = rng.integers(len(tasks), size=(count, len(tasks)))
    draw_RJ = rng.integers(count, size=task_RJ.shape)  # a task that is drawn twice is not twice the same
    return sums[task_RJ, draw_RJ].sum(1) / weights[task_RJ, draw_RJ].sum(1)


def interval(values: np.ndarray, coverage: float = COVERAGE) -> list[float]:
    """[low, high] of replicates."""
    tail = (1 - coverage) / 2
    return [float(end) for end in np.quantile(values, [tail, 1 - tail])]
