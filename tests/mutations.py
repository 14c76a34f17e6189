"""Tries the wrong changes of mutations.toml: `python -m tests.mutations [WORD ...]` applies those whose description has
one of the words, by default all, each to a copy of the repository, and prints which ones survive.

A mutation names the tests that are to kill it, so that trying it takes seconds. One whose text is no longer in the code
is reported: write it again.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

from optiml_jax.common.tables import table
from tests.conftest import ROOT


class Mutation(NamedTuple):
    """A wrong change.

    Attributes:
      what: describes it.
      before, after: a text of the file and what replaces it, everywhere.
      tests: arguments of pytest.
    """

    what: str
    file: str
    before: str
    after: str
    tests: str


def read() -> list[Mutation]:
    with Path(__file__).with_suffix(".toml").open("rb") as file:
        return [Mutation(**entry) for entry in tomllib.load(file)["mutation"]]


def copied(target: Path) -> Path:
    """A copy of the tracked files, with the sample data beside it as in the original."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    if (shared := ROOT.parent / "shared").exists():
        (target.parent / "shared").symlink_to(shared)
    return target


def outcome(mutation: Mutation, copy: Path) -> str:
    """Applies a mutation to a copy, runs its tests and takes it back: "killed", "SURVIVED", or why it was not tried."""
    file = copy / mutation.file
    text = file.read_text(encoding="utf-8")
    if mutation.before not in text:
        return "NOT IN THE CODE"
    file.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *_words(mutation.tests)]
    environment = os.environ | {"PYTHONPATH": str(copy), "JAX_PLATFORMS": "cpu"}
    try:
        code = subprocess.run(words, cwd=copy, env=environment, capture_output=True).returncode
    finally:
        file.write_text(text, encoding="utf-8")
    return {0: "SURVIVED", 1: "killed", 5: "NO SUCH TEST"}.get(code, f"pytest ended with {code}")


def _words(tests: str) -> list[str]:
    before, _, expression = tests.partition(" -k ")
    return [*before.split(), *(["-k", expression.strip("'")] if expression else [])]


def main(words: list[str]) -> None:
    chosen = [mutation for mutation in read() if not words or any(word in mutation.what for word in words)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder, "copy"))
        for mutation in chosen:
            start = time.perf_counter()
            result = outcome(mutation, copy)
            rows.append((mutation.what, mutation.file, result, f"{time.perf_counter() - start:.0f} s"))
            print(f"{result:16} {mutation.what}", flush=True)
    print(table(("mutation", "file", "result", "time"), rows))
    sys.exit(any(result != "killed" for *_, result, _ in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
