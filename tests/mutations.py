"""Wrong changes to the code that a test must notice: `python -m tests.mutations [WORD ...]` tries those whose
description has one of the words, by default all, each in a copy of the repository, and prints which ones survive.

A mutation names the tests that are to kill it, so that trying it takes seconds. One whose text is no longer in the code
is reported: write it again.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
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


MUTATIONS = (
    Mutation(
        "the residual stream between blocks is not split over positions",
        "optiml_jax/model/block.py",
        '"BTD", sharding.RESIDUAL)\n',
        '"BTD")\n',
        "tests/model/test_block.py",
    ),
    Mutation(
        "gradients are clipped before they are divided by the loss scale",
        "optiml_jax/training/step.py",
        "lambda g: g / total, grads)",
        "lambda g: g / total * scale, grads)",
        "tests/training/test_step.py -k clips",
    ),
    Mutation(
        "microbatches share one dropout key",
        "optiml_jax/training/step.py",
        "jax.random.fold_in(dropout_key, index)",
        "dropout_key",
        "tests/training/test_step.py -k microbatch",
    ),
    Mutation(
        "an answer that a stop text ended is said to be truncated",
        "optiml_jax/inference/requests.py",
        "end is None and len(self.generated) == self.limit",
        "end is None",
        "tests/inference/test_model.py -k truncated",
    ),
    Mutation(
        "an answer that a stop text ended at its limit is said to be truncated",
        "optiml_jax/inference/model.py",
        "answer.truncated and end is None",
        "answer.truncated",
        "tests/inference/test_model.py -k truncated",
    ),
    Mutation(
        "a continuation is greedy if any of its tokens is",
        "optiml_jax/inference/ranking.py",
        "== best_BT[row, positions]).all()",
        "== best_BT[row, positions]).any()",
        "tests/inference/test_model.py -k continuation",
    ),
    Mutation(
        "of equal candidates the last wins",
        "optiml_jax/evaluation/answers/answering.py",
        "max(range(len(candidate_scores)), key=candidate_scores.__getitem__)",
        "max(reversed(range(len(candidate_scores))), key=candidate_scores.__getitem__)",
        "tests/evaluation/answers",
    ),
    Mutation(
        "a changed state of the optimizer is restored",
        "optiml_jax/checkpoints/orbax.py",
        '        self._check(step, "optimizer", (state.optimizer, state.scale), meta)\n',
        "",
        "tests/checkpoints -k arrays",
    ),
    Mutation(
        "changed metadata of a checkpoint are believed",
        "optiml_jax/checkpoints/orbax.py",
        'if meta.pop("checksum", None) != _checksum(meta):',
        'if meta.pop("checksum", None) is None:',
        "tests/checkpoints",
    ),
    Mutation(
        "later checkpoints are not deleted",
        "optiml_jax/checkpoints/orbax.py",
        "            if later > step:\n",
        "            if later < step:\n",
        "tests/checkpoints",
    ),
    Mutation(
        "an export writes NaN",
        "optiml_jax/weights/save.py",
        "        if not finite:\n",
        "        if False:\n",
        "tests/weights/test_bad_input.py -k dtype",
    ),
    Mutation(
        "collectives send half of their bytes",
        "optiml_jax/planning/collectives.py",
        'sums[instruction.kind]["bytes"] += instruction.count * instruction.sent_bytes',
        'sums[instruction.kind]["bytes"] += instruction.count * instruction.sent_bytes // 2',
        "tests/planning/test_plan.py -k hand",
    ),
    Mutation(
        "computing takes no time",
        "optiml_jax/planning/compiled.py",
        '"compute": flops / devices',
        '"compute": 0 * flops / devices',
        "tests/planning/test_plan.py -k hand",
    ),
    Mutation(
        "an answer of BBH goes on with the next question",
        "tasks/benchmarks/bbh.py",
        '"stop": STOP, ',
        "",
        "tests/tasks/suites/test_suite_prompts.py",
    ),
    Mutation(
        "RAFT is asked with four demonstrations",
        "tasks/suites/raft.py",
        "shots=(0, 5)",
        "shots=(0, 4)",
        "tests/tasks/suites/test_suite_prompts.py",
    ),
    Mutation(
        "a label of exactly the limit is skipped",
        "tasks/caching/shard.py",
        "if (longest := max(row.label_lengths)) > limit:",
        "if (longest := max(row.label_lengths)) >= limit:",
        "tests/tasks/caching/test_build.py",
    ),
    Mutation(
        "a row that is as long as a label's limit is left out",
        "tasks/caching/shard.py",
        "if max(row.label_lengths) <= limit]",
        "if max(row.label_lengths) < limit]",
        "tests/tasks/caching/test_build.py",
    ),
    Mutation(
        "an example that is too long only with its </s> is not counted as truncated",
        "tasks/caching/shard.py",
        'int((index["length"] + 1 > ROW_LENGTH).sum())',
        'int((index["length"] > ROW_LENGTH).sum())',
        "tests/tasks/caching/test_build.py",
    ),
    Mutation(
        "a plan of the cache has twice the tokens",
        "tasks/caching/estimate.py",
        "share * tokens, size",
        "2 * share * tokens, size",
        "tests/tasks/caching",
    ),
    Mutation(
        "a stop that is a text, not a list, has no effect in the harness",
        "optiml_jax/harness/model.py",
        'for text in options["until"] if text]',
        'for text in options["until"] if text and isinstance(request.args[1].get("until"), list)]',
        "tests/harness/test_model.py -k 'stop or texts'",
    ),
)


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
    chosen = [mutation for mutation in MUTATIONS if not words or any(word in mutation.what for word in words)]
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
