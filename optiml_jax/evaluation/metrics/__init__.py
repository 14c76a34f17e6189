"""Scores of predictions against references: accuracy, exact match, ROUGE-L, F1."""

from optiml_jax.evaluation.metrics.definitions import (
    METRICS,
    OVER_TASK,
    Metric,
    accuracy,
    exact_match,
    macro_f1,
    rouge_l,
    token_f1,
)

__all__ = ["METRICS", "OVER_TASK", "Metric", "accuracy", "exact_match", "macro_f1", "rouge_l", "token_f1"]
