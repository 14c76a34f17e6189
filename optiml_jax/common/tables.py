"""What the commands share: aligned tables, and flags whose errors take one line."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from optiml_jax.common.errors import UserError


class Parser(argparse.ArgumentParser):
    """Flags are written out, and a wrong one is a `UserError` of one line."""

    def __init__(self, prog: str, description: str) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, formatter_class=raw, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def cell(value: object) -> str:
    """Values as people read them: 12,345 and 0.0123, yes and no, - for None."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.4f}" if value < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; numbers to the right, everything else to the left."""
    right = [any(_is_number(row[i]) for row in rows) for i in range(len(header))]
    texts = [list(header), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    aligned = (
        (text.rjust(width) if number else text.ljust(width) for text, width, number in zip(row, widths, right))
        for row in texts
    )
    return "\n".join("  ".join(row).rstrip() for row in aligned)
