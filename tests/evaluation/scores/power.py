"""How often the tests of a comparison find planted effects: `python -m tests.evaluation.scores.power`.

Two models answer the questions of several tasks in several wordings. Their answers to the wordings of one question are
correlated, as those of real models are. Without an effect, at most 5% of the p-values should be below 0.05.
"""

import numpy as np
from scipy import stats

from optiml_jax.evaluation.scores.comparison import compare, pair
from tests.evaluation.example_prompts import sample

WORDINGS, TASKS = (1, 3, 10), (2, 5, 10, 50)
QUESTIONS = 40
ALPHA = 0.05


def runs(rng: np.random.Generator, wordings: int, tasks: int, effect: float) -> list[list[dict]]:
    """Samples of two runs; the second answers a question correctly with a probability higher by `effect` on average."""
    template = sample(1.0)
    sides = [[], []]
    for task in range(tasks):
        difficulty = rng.beta(2, 2, QUESTIONS)
        for side, shift in zip(sides, (0.0, effect)):
            # The probability that this model answers a wording of each question correctly.
            probability = np.clip(difficulty + shift + rng.normal(0, 0.2, QUESTIONS), 0, 1)
            right = rng.random((QUESTIONS, wordings)) < probability[:, None]
            for question, answers in enumerate(right.tolist()):
                for wording, correct in enumerate(answers):
                    address = {"id": f"{task}/{question}/{wording}", "task": f"t{task}", "example_id": str(question)}
                    side.append(template | address | {"template": str(wording), "score": float(correct)})
    return sides


def rejected(wordings: int, tasks: int, effect: float, draws: int) -> dict[str, float | None]:
    """Share of p-values below 0.05 of the tasks, of their category (None if it is not tested), and of scipy's exact
    sign test of the same tasks' questions ("exact"; only with one wording)."""
    rng = np.random.default_rng([wordings, tasks, int(100 * effect)])
    by_kind: dict[str, list[float]] = {"tasks": [], "category": [], "exact": []}
    for _ in range(draws):
        sides = runs(rng, wordings, tasks, effect)
        comparison = compare(pair(*sides))
        by_kind["tasks"] += [entry["p"] for entry in comparison["tasks"].values()]
        by_kind["category"] += [entry["p"] for entry in comparison["categories"].values() if entry["p"] is not None]
        if wordings == 1:
            for task in comparison["tasks"]:
                first, second = ([s["score"] for s in side if s["task"] == task] for side in sides)
                differences = np.subtract(second, first)
                more, fewer = int((differences > 0).sum()), int((differences < 0).sum())
                by_kind["exact"].append(stats.binomtest(more, more + fewer).pvalue if more + fewer else 1.0)
    return {kind: float(np.mean(np.array(p) < ALPHA)) if p else None for kind, p in by_kind.items()}


if __name__ == "__main__":
    print("effect  wordings  tasks   p < 0.05: tasks  category  exact test of the tasks")
    for effect in (0.0, 0.1):
        for wordings in WORDINGS:
            for tasks in TASKS:
                shares = rejected(wordings, tasks, effect, draws=max(40, 2_000 // tasks))
                cells = [f"{100 * share:.1f}" if share is not None else "-" for share in shares.values()]
                print(f"{effect:6.2f}{wordings:10}{tasks:7}{cells[0]:>24}{cells[1]:>10}{cells[2]:>10}", flush=True)
