"""EleutherAI's lm-evaluation-harness: our models run its tasks (`model.py`), its samples are read here (`samples.py`).

Its model class needs `pip install '.[lm-eval]'`; reading samples needs nothing.
"""
