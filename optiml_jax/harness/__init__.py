"""Integration with EleutherAI's lm-evaluation-harness: a model class for it (`model.py`), and a reader of its samples.

The model class needs `pip install '.[lm-eval]'`; reading samples (`samples.py`) needs nothing.
"""
