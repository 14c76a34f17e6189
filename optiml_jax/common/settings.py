"""Type and range checks of settings, applied where they are bound, before anything runs."""

import dataclasses
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from optiml_jax.common.errors import UserError

T = TypeVar("T")

Range = tuple[float, float]
LARGEST = 2**31 - 1  # of whole numbers that devices count with
WHOLE: Range = (1, LARGEST)  # default range of whole numbers
FROM_ZERO: Range = (0, LARGEST)
RATE: Range = (0, math.inf)


def check_fields(settings: Any, **ranges: Range) -> None:
    """Checks every field of a frozen dataclass against its annotation; 1e3 becomes 1000 for a whole number.

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
    kinds = _alternatives(kind)
    if value is None and types.NoneType in kinds:
        return None
    if any(map(typing.get_origin, kinds)) or len(set(kinds) - {types.NoneType}) > 1:
        return _check_composite(name, value, kind)
    if bool in kinds or str in kinds:
        expected, word = (bool, "True or False") if bool in kinds else (str, "a string in quotes")
        if not isinstance(value, expected):
            raise UserError(f"{name} is {value!r}; it must be {word}")
        return value
    if int not in kinds and float not in kinds:
        return _check_object(name, value, kind)
    whole = int in kinds
    low, high = limits or (WHOLE if whole else RATE)
    valid = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if valid and whole:
        valid = value == int(value)
    not_positive = not whole and limits is None and value == 0
    if not valid or not low <= value <= high or not_positive:
        least = "above 0" if not whole and limits is None else f"from {low:g}"
        most = "" if high == math.inf else f" to {high:,}" if whole else f" to {high:g}"
        raise UserError(f"{name} is {value!r}; it must be a {'whole ' if whole else ''}number {least}{most}")
    return int(value) if whole else value


def check_arguments(function: Callable[..., T], name: str) -> Callable[..., T]:
    """A function that checks the types of its keyword arguments, as `check` does, and then calls `function`, which
    checks its numbers itself, because it knows their ranges."""
    numbers_ = {int, float, types.NoneType}
    kinds = {key: kind for key, kind in typing.get_type_hints(function).items() if set(_alternatives(kind)) - numbers_}

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> T:
        values = {
            key: check(f"{name}.{key}", value, kinds[key]) if key in kinds else value for key, value in kwargs.items()
        }
        return function(*args, **values)

    return checked


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _check_composite(name: str, value: Any, kind: Any) -> Any:
    """Checks a setting that is a collection, or has one of several types."""
    if isinstance(value, float) and int in _alternatives(kind) and float not in _alternatives(kind):
        value = int(value) if value.is_integer() else value
    try:
        return (
            _check_object(name, value, kind) if any(map(_is_object, _alternatives(kind))) else _converted(value, kind)
        )
    except (msgspec.ValidationError, TypeError):
        raise UserError(f"{name} is {value!r}; it must be {_description(kind)}") from None


def _converted(value: Any, kind: Any) -> Any:
    """Checks a collection; it is returned as it is."""
    msgspec.convert(value, kind)
    return value


def _check_object(name: str, value: Any, kind: Any) -> Any:
    """Checks a setting that no literal can be, such as a mesh or a function."""
    classes = tuple(filter(inspect.isclass, kinds := _alternatives(kind)))
    checkable = len(classes) == len(kinds) and not any(getattr(each, "_is_protocol", False) for each in classes)
    literal = isinstance(value, str | numbers.Number | list | tuple | dict | set)
    if literal or (checkable and not isinstance(value, classes)):
        raise UserError(f"{name} is {value!r}; it must be {_description(kind)}")
    return value


def _is_object(kind: Any) -> bool:
    kind = typing.get_origin(kind) or kind
    return inspect.isclass(kind) and not issubclass(kind, str | numbers.Number | Sequence | Mapping | types.NoneType)


def _description(kind: Any) -> str:
    """Describes a type: "a list of strings, or None"."""
    words = {str: "a string", int: "a whole number", float: "a number", bool: "True or False", types.NoneType: "None"}
    plural = {str: "strings", int: "whole numbers", float: "numbers"}
    described = []
    for alternative in _alternatives(kind):
        origin, of = typing.get_origin(alternative), typing.get_args(alternative)
        if origin is None and alternative in words:
            described.append(words[alternative])
        elif origin is not None and issubclass(origin, Mapping):
            described.append(f"a dictionary of {plural.get(of[1], 'values')}, such as {{'flan': 1}}")
        elif origin is not None and issubclass(origin, Sequence):
            described.append(f"a list of {plural.get(of[0], 'values')}")
        elif origin is not None and issubclass(origin, Callable):
            described.append("a reference such as @evaluate")
        else:
            described.append(f"a reference such as @{alternative.__name__.removesuffix('Settings')}()")
    return " or ".join(described)
