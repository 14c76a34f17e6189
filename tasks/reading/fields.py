"""The fields of a row, or why it cannot be used."""

from collections.abc import Iterable, Mapping
from typing import Any


class UnusableError(Exception):
    """Why a row makes no example."""


def value(row: Mapping[str, Any], names: str) -> Any:
    """The field of the first of these names, "a|b", that the row has; "a.b" is b in a."""
    for name in names.split("|"):
        found: Any = row
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is not None:
            return found
    raise UnusableError(f"the row has no field {names.replace('|', ' or ')}")


def text(row: Mapping[str, Any], names: str) -> str:
    """A field that is a text."""
    found = value(row, names)
    if not isinstance(found, str):
        raise UnusableError(f"the field {names} is {type(found).__name__}, not text")
    return found


def choice(row: Mapping[str, Any], name: str, known: Iterable[str]) -> str:
    """A field that is one of these texts."""
    found = text(row, name)
    if found not in (known := tuple(known)):
        raise UnusableError(f"the {name} is {found!r}, none of {', '.join(known)}")
    return found


def texts(row: Mapping[str, Any], names: str) -> list[str]:
    """A field that is a list of texts."""
    found = value(row, names)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UnusableError(f"the field {names} is no list of texts")
    return found
