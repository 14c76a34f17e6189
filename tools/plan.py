"""Runs the planner of `optiml_jax/plan.py` as `python -m tools.plan`."""

from optiml_jax.plan import main

if __name__ == "__main__":
    main()
