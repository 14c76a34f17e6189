"""Selection of ledgers and prompts for an evaluation."""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Sequence

from optiml_jax.common.errors import UserError
from optiml_jax.data.cache_paths import ledger_path
from optiml_jax.evaluation.prompts.ledger import Prompt


def ledgers(ledger: str | None, suite: str | None, mixture: str | None, cache_dir: str) -> list[str]:
    """Paths of the ledgers: `ledger` itself, or those of `suite` (several, separated by commas), else of `mixture`.

    Raises:
      UserError: none is given, or both a ledger and a suite.
    """
    if ledger is not None and suite is not None:
        raise UserError(f"SUITE={suite} and LEDGER={ledger} both select prompts; give one of them")
    if ledger is None and suite is None and mixture is None:
        raise UserError("LEDGER is not set; give one with --gin.LEDGER=\"'cache/ledgers/samples.jsonl'\", or a SUITE")
    suites = [name.strip() for name in (suite or mixture or "").split(",")]
    return [ledger] if ledger is not None else [str(ledger_path(cache_dir, name)) for name in suites]


def select(prompts: Sequence[Prompt], shots: int | Sequence[int] | None, limit: int) -> list[Prompt]:
    """Selects prompts by their number of demonstrations, and up to `limit` questions per task and number (0: all).

    Subsets are nested in `limit`; prompts that share `part_of` are kept or dropped together.

    Raises:
      UserError: no prompt has that many demonstrations.
    """
    numbers = {shots} if isinstance(shots, int) else shots and set(shots)
    selected = [prompt for prompt in prompts if not numbers or prompt.shots in numbers]
    if not selected:
        available = ", ".join(map(str, sorted({prompt.shots for prompt in prompts})))
        raise UserError(f"SHOTS={shots}: the ledger has prompts with {available} demonstrations")
    if not limit:
        return selected
    questions: dict[tuple[str, int], set[tuple]] = defaultdict(set)
    for prompt in selected:
        questions[prompt.task, prompt.shots].add(_question(prompt))
    drawn = {key: set(heapq.nsmallest(limit, names, key=_hash)) for key, names in questions.items()}
    return [prompt for prompt in selected if _question(prompt) in drawn[prompt.task, prompt.shots]]


def _question(prompt: Prompt) -> tuple:
    return prompt.template, prompt.seed, prompt.part_of or prompt.example_id


def _hash(question: tuple) -> bytes:
    return hashlib.sha256(repr(question).encode()).digest()
