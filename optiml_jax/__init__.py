"""OPTIML-JAX: OPT-IML (Iyer et al. 2022) in JAX."""

__version__ = "0.1.0"


def load_model(source: str, **options):
    """A model with `logits`, `rank`, `generate` and `save`; see `optiml_jax.model.load_model`."""
    from optiml_jax.model import load_model as load  # here, so that reading a token store does not import jax

    return load(source, **options)
