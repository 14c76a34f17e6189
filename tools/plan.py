"""python -m tools.plan: the planner of `optiml_jax/plan.py`, beside the other tools."""

from optiml_jax.plan import main

if __name__ == "__main__":
    main()
