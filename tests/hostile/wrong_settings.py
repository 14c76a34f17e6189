"""Reads every shipped gin file with a value of no setting's type in each of its macros.

Run by itself it prints a JSON list of [file, macro, outcome]: the `UserError`, the traceback of another exception, or
null where the value was accepted. With the argument "once", each macro is tried in one file.
"""

import json
import sys
import traceback
from collections.abc import Iterator

import gin

from optiml_jax import gin_cli
from optiml_jax.common.errors import UserError

WRONG = {"x": [None]}
MODULE = "tests"


def macros(file: str) -> list[str]:
    """The macros of a gin file, with those that it includes."""
    gin_cli.read_settings([f"--gin_file={file}"], MODULE)
    names = (line.split(" ")[0] for line in gin.config_str(max_line_length=10_000).splitlines() if " = " in line)
    return [name for name in names if "." not in name]


def read(file: str, macro: str) -> str | None:
    """Reads a gin file for training and for evaluation with the wrong value of a macro."""
    arguments = [f"--gin_file={file}", f"--gin.{macro}={WRONG!r}"]
    try:
        for command in ("train", "evaluate"):
            gin_cli.read_settings(arguments, MODULE, command)
    except UserError as error:
        return f"error: {str(error).splitlines()[0]}"
    except Exception:
        return traceback.format_exc()
    return None


def outcomes(once: bool) -> Iterator[tuple[str, str, str | None]]:
    """Yields [file, macro, outcome] for each macro of each file; with `once`, for each macro in the first file only."""
    tried = set()
    for path in sorted(gin_cli.SEARCH_PATH.glob("*.gin")):
        if path.name not in ("train.gin", "evaluate.gin"):  # included by the others
            for macro in macros(path.name):
                if not (once and macro in tried):
                    tried.add(macro)
                    yield path.name, macro, read(path.name, macro)


if __name__ == "__main__":
    print("\n" + json.dumps(list(outcomes("once" in sys.argv))))
