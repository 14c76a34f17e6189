"""Type and range checks of settings, applied where they are bound, before anything runs."""

import dataclasses
import math
import numbers
import types
import typing
from typing import Any

from optiml_jax.common.errors import UserError

Range = tuple[float, float]
WHOLE: Range = (1, math.inf)  # default range of whole numbers
RATE: Range = (0, math.inf)


def check_fields(settings: Any, **ranges: Range) -> None:
    """Checks every string, number and boolean of a frozen dataclass against its annotation; 1e3 becomes 1000.

    Args:
      ranges: inclusive ranges of fields that differ from the defaults, which are from 1 for whole numbers and above 0
        for others.

    Raises:
      UserError: names the field, its value and the valid values.
    """
    owner = type(settings).__name__
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        checked = check(f"{owner}.{field.name}", value, field.type, ranges.get(field.name))
        if checked is not value:
            object.__setattr__(settings, field.name, checked)


def check(name: str, value: Any, kind: Any, limits: Range | None = None) -> Any:
    """Checks one setting and returns it converted to `kind`; `name` is for messages. See `check_fields`."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and types.NoneType in kinds:
        return None
    if len(set(kinds) - {types.NoneType}) > 1:  # its owner checks a setting of several types
        return value
    if bool in kinds or str in kinds:
        expected, word = (bool, "True or False") if bool in kinds else (str, "a string in quotes")
        if not isinstance(value, expected):
            raise UserError(f"{name} is {value!r}; it must be {word}")
        return value
    if int not in kinds and float not in kinds:
        return value
    whole = int in kinds
    low, high = limits or (WHOLE if whole else RATE)
    valid = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if valid and whole:
        valid = value == int(value)
    not_positive = not whole and limits is None and value == 0
    if not valid or not low <= value <= high or not_positive:
        least = "above 0" if not whole and limits is None else f"from {low:g}"
        most = "" if high == math.inf else f" to {high:g}"
        raise UserError(f"{name} is {value!r}; it must be a {'whole ' if whole else ''}number {least}{most}")
    return int(value) if whole else value
