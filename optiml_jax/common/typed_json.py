"""Reading JSON: with a type for the files that this project writes, and without one for those of others.

A type is a `TypedDict`, whose further fields are kept, or a dataclass. What does not match it is an error that names
file, line and field.
"""

import hashlib
import json
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from optiml_jax.common.errors import DataError

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0)]


def decode(content: bytes | str) -> Any:
    """Parses standard JSON, which has neither NaN nor half a surrogate pair.

    Raises:
      ValueError: says what is wrong, in a line.
    """
    try:
        return msgspec.json.decode(content)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        try:
            json.loads(content)
        except (ValueError, RecursionError):
            raise ValueError(f"not JSON ({error})") from None
        raise ValueError("NaN, an infinite number or half a surrogate pair, which JSON does not have") from None


def checksum(content: Any) -> str:
    """A hash of the content of a JSON document as it is read from a file, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def loads(text: str | bytes) -> Any:
    """`json.loads` that raises `ValueError` for every malformed input, also for one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read(path: str | os.PathLike, kind: type[T], remedy: str) -> T:
    """Reads a JSON document.

    Args:
      kind: the type of its content.
      remedy: what to do if the file is damaged, such as "cache the mixture again".

    Raises:
      FileNotFoundError: there is no such file.
      DataError: the file cannot be read, or its content is not of this type.
    """
    return parse(_bytes(Path(path), remedy), kind, str(path), remedy)


def read_lines(
    path: str | os.PathLike, kind: type[T], remedy: str, only_whole: bool = False
) -> Iterator[tuple[int, T]]:
    """Yields the number and the content of each line of a file of JSON lines; empty lines are skipped.

    Other arguments, and errors, as in `read`.

    Args:
      only_whole: whether a last line without a line break is skipped too.
    """
    for number, line in enumerate(_bytes(Path(path), remedy).splitlines(keepends=True), start=1):
        if line.strip() and (line.endswith(b"\n") or not only_whole):
            yield number, parse(line, kind, f"{path}:{number}", remedy)


def parse(content: bytes | str, kind: type[T], where: str, remedy: str) -> T:
    """Parses a JSON document, as `read` does; `where` names it in messages."""
    try:
        value = decode(content)
    except ValueError as error:
        raise DataError(f"{where}: {error}; {remedy}") from None
    return convert(value, kind, where, remedy)


def convert(value: Any, kind: type[T], where: str, remedy: str) -> T:
    """Converts the content of a JSON document to a type; arguments and errors as in `parse`."""
    try:
        converted = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"{where}: {reason(error)}; {remedy}") from None
    return value if typing.is_typeddict(kind) else converted


def reason(error: msgspec.ValidationError) -> str:
    """Describes a value of another type, as in "examples: expected int, got str"."""
    message, _, place = str(error).replace("`", "").partition(" - at $")
    message = message[:1].lower() + message[1:]
    return f"{place.removeprefix('.')}: {message}" if place else message


def _bytes(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
