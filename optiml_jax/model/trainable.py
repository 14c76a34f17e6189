"""The choice of the parameters that a run trains, by their names. The others are frozen, in the compute dtype.

Trained and frozen parameters are two trees with the paths of `decoder.init_params`; each leaf is in one of them.
"""

from collections.abc import Callable
from typing import Any

from optiml_jax.model import adapter

Path = tuple[str, ...]  # of a parameter, such as ("blocks", "query", "kernel")

# Name -> whether a parameter is trained. "biases": of all maps and norms (Ben Zaken et al. 2022).
TRAINABLE: dict[str, Callable[[Path], bool]] = {
    "all": lambda path: True,
    "lora": lambda path: path[-1] in adapter.NAMES,
    "biases": lambda path: path[-1] == "bias",
    "embeddings": lambda path: path[0] in ("token_embedding", "position_embedding"),
}


def split(params: dict, name: str) -> tuple[dict, dict]:
    """Splits parameters into the trained and the frozen ones; `name` is in `TRAINABLE`."""
    is_trained = TRAINABLE[name]
    return _selected(params, is_trained, ()), _selected(params, lambda path: not is_trained(path), ())


def _selected(tree: dict, wanted: Callable[[Path], bool], path: Path) -> dict:
    """The leaves whose path is wanted; without branches that have none."""
    selected: dict[str, Any] = {}
    for name, branch in tree.items():
        if not isinstance(branch, dict):
            if wanted((*path, name)):
                selected[name] = branch
        elif below := _selected(branch, wanted, (*path, name)):
            selected[name] = below
    return selected


def join(trained: dict, frozen: dict) -> dict:
    """The whole tree of parameters, from its two parts."""
    both = trained.keys() & frozen.keys()
    return {**trained, **frozen, **{name: join(trained[name], frozen[name]) for name in both}}
