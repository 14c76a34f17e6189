"""Scores of predictions against references: accuracy, exact match, ROUGE-L, F1."""

from optiml_jax.evaluation.metrics.definitions import (
    METRICS,
    REPORTED,
    Metric,
    accuracy,
    exact_match,
    macro_f1,
    rouge_l,
    token_f1,
)

__all__ = ["METRICS", "REPORTED", "Metric", "accuracy", "exact_match", "macro_f1", "rouge_l", "token_f1"]
