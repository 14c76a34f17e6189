"""Small prompts and samples that the evaluation's tests share."""

import json

from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import Prompt
from optiml_jax.evaluation.scores.samples import score_sample


def prompt(number: int = 0, **changes) -> Prompt:
    fields = {
        "suite": "suite",
        "benchmark": "bench",
        "task": "bench.sky",
        "template": "plain",
        "example_id": str(number),
        "shots": 0,
        "seed": 0,
        "category": "weather",
        "level": "held_out_instances",
        "metric": "accuracy",
        "prompt": f"Is sky {number} blue?\nAnswer:",
        "candidates": ("yes", "no"),
        "references": ("yes",),
    }
    fields |= changes
    return Prompt(**fields | {"metric": Metric.parse(fields["metric"])})


def sample(score: float, **changes) -> dict:
    """A sample with a given score, whatever its answer was."""
    made = score_sample(prompt(**changes), "yes")
    return made | {"score": score, "correct": score == 1.0}


def ledger_line(made: Prompt, **changes) -> str:
    return json.dumps(json.loads(made.line()) | changes)
