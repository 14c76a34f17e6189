"""Harmless replacements for the classes in metaseq's pickles, so that reading them runs no foreign code."""

from typing import Any


class Inert:
    """Replaces an object of a class that is not imported: keeps its state as attributes and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> "Inert":
        return Inert()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def append(self, _: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return 0


INERT_PACKAGES = ("argparse", "omegaconf", "metaseq", "fairseq", "fairscale", "enum")
INERT_NAMES = {
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("typing", "Any"),
    ("torch", "device"),
    *(("torch", name) for name in ("float16", "bfloat16", "float32", "float64", "int64", "int32", "bool")),
}


def inert_class(module: str, name: str) -> Any:
    """`Inert` for classes of a checkpoint's configuration and training state, None for all others."""
    if module.partition(".")[0] in INERT_PACKAGES or (module, name) in INERT_NAMES:
        return Inert
    if module in ("builtins", "__builtin__") and name in ("set", "frozenset", "dict", "list", "int", "float", "bool"):
        return {"set": set, "frozenset": frozenset, "dict": dict, "list": list}.get(name, Inert)
    if (module, name) == ("collections", "defaultdict"):
        return Inert
    return None
