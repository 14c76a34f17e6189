"""Helpers shared by the commands: aligned tables, and flags whose errors take one line."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from optiml_jax.common import files, paths
from optiml_jax.common.errors import UserError

BUCKETS = ("gs://", "s3://", "az://", "abfs://", "hdfs://")  # other addresses are what some flags take


class Parser(argparse.ArgumentParser):
    """Argument parser without abbreviations that reports a wrong flag as a one-line `UserError`."""

    def __init__(self, prog: str, description: str) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, formatter_class=raw, allow_abbrev=False)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Expands paths in the values of flags, which shells leave alone after "=" (`paths.local`)."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args(list(map(_expanded, words)), namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def counted(number: int, noun: str) -> str:
    """Returns "1 task" or "2,000 tasks"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def output_file(text: str) -> str:
    """The type of a flag that names a file to write: refuses what cannot be written before any work is done."""
    files.check_output(text)
    return text


def output_folder(text: str) -> str:
    """The type of a flag that names a folder to write; see `output_file`."""
    files.check_output(text, folders=("",))
    return text


def _expanded(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if not value or flag.startswith("--gin."):
        return word
    is_path = value.startswith(("~", "$", *BUCKETS))
    return f"{flag}{equals}{paths.local(flag or 'path', value)}" if is_path else word


def cell(value: object) -> str:
    """Formats a value for people: 12,345 and 0.0123, yes and no, - for None."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.4f}" if value < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Formats a table with columns as wide as their widest cell; numbers are right-aligned."""
    right = [any(_is_number(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join(aligned([header, *([cell(value) for value in row] for row in rows)], right))


def first_few(names: Sequence[str], count: int = 5) -> str:
    """The first names of a list, separated by commas, with an ellipsis if there are more."""
    return ", ".join(names[:count]) + ", ..." * (len(names) > count)


def aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Lines of columns as wide as their widest text; `right` says which columns are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(right))]
    lines = (
        "  ".join(text.rjust(w) if number else text.ljust(w) for text, w, number in zip(row, widths, right))
        for row in rows
    )
    return [line.rstrip() for line in lines]
