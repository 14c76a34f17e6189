"""Paired tests whose unit is the question, or the task.

If two models are equally good, it is a coin toss which of them gave which of the two answers to a question. The tests
are exact under that hypothesis: `sign_flip` enumerates all 2^n assignments (for answers that are right or wrong, once
per question, it is McNemar's exact test), and `swap` draws assignments for a metric that must be computed over the
task.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np

GRID = 1 << 15  # steps between 0 and the sum of all differences, where they are not multiples of a common unit
SWAPS = 20_000  # draws at most
EXTREMES = 100  # draws as extreme as the observed one after which the p-value is known well enough
_UNITS = 64  # multiples of the smallest difference tried as a common unit


def sign_flip(contributions: Sequence[float] | np.ndarray) -> float:
    """The exact two-sided p-value of "their signs are coin tosses".

    Args:
      contributions: of each question or task to the difference of two scores.

    Returns:
      The probability of a sum at least this far from zero; the smallest one is 2^(1 - n). Contributions that are not
      multiples of a common unit are rounded to 1 / `GRID` of their absolute sum, and the test is exact for these.
    """
    values = np.asarray(contributions, np.float64)
    values = values[np.abs(values) > 1e-12 * np.abs(values).max(initial=0.0)]
    if not len(values):
        return 1.0
    units = _in_units(np.abs(values))
    total, observed = int(units.sum()), abs(int(np.sign(values) @ units))
    by_sum = np.zeros(total + 1)  # probability of each sum of the contributions with a positive sign
    by_sum[0], end = 1.0, 0
    for unit in units.tolist():
        by_sum[: end + unit + 1] *= 0.5
        by_sum[unit : end + unit + 1] += by_sum[: end + 1].copy()
        end += unit
    sums = np.abs(2 * np.arange(total + 1) - total)
    return float(min(1.0, max(by_sum[sums >= observed].sum(), np.finfo(float).tiny)))


def _in_units(sizes: np.ndarray) -> np.ndarray:
    """The sizes as multiples of a common unit, or of a fine one."""
    for parts in range(1, _UNITS):
        multiples = sizes * parts / sizes.min()
        whole = np.rint(multiples)
        if np.abs(multiples - whole).max() < 1e-6 and whole.sum() <= GRID:
            return whole.astype(np.int64)
    return np.rint(sizes * GRID / sizes.sum()).astype(np.int64)


def swap(name: str, questions: int, difference: Callable[[np.ndarray], float]) -> float:
    """The two-sided p-value of "the two models' answers are interchangeable", by random swaps of them.

    Draws end once `EXTREMES` of them are as extreme as the observed difference (Besag and Clifford 1991), so that
    clearly insignificant differences take few.

    Args:
      name: of the task; seeds the draws.
      questions: their number.
      difference: the difference of the scores after swapping the answers to the questions in a mask, bool [questions].
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    observed = abs(difference(np.zeros(questions, bool)))
    extreme = 0
    for draws in range(1, SWAPS + 1):
        extreme += abs(difference(rng.random(questions) < 0.5)) >= observed - 1e-12
        if extreme == EXTREMES:
            return extreme / draws
    return (extreme + 1) / (SWAPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): adjusted p-values, in the order given."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
