"""Access to the fields of a row, with a reason where a row cannot be used."""

from collections.abc import Iterable, Mapping
from typing import Any


class UnusableError(Exception):
    """Why a row cannot become an example."""


def value(row: Mapping[str, Any], names: str) -> Any:
    """Returns the field of the first of the names "a|b" that the row has; "a.b" is b in a."""
    for name in names.split("|"):
        content: Any = row
        for part in name.split("."):
            content = content.get(part) if isinstance(content, Mapping) else None
        if content is not None:
            return content
    raise UnusableError(f"the row has no field {names.replace('|', ' or ')}")


def text(row: Mapping[str, Any], names: str) -> str:
    """Returns a field that is a string."""
    content = value(row, names)
    if not isinstance(content, str):
        raise UnusableError(f"the field {names} is {type(content).__name__}, not text")
    return content


def choice(row: Mapping[str, Any], name: str, options: Iterable[str]) -> str:
    """Returns a field that is one of `options`."""
    content = text(row, name)
    if content not in (options := tuple(options)):
        raise UnusableError(f"the {name} is {content!r}, none of {', '.join(options)}")
    return content


def texts(row: Mapping[str, Any], names: str) -> list[str]:
    """Returns a field that is a list of strings."""
    content = value(row, names)
    if not isinstance(content, list) or not all(isinstance(item, str) for item in content):
        raise UnusableError(f"the field {names} is not a list of texts")
    return content
