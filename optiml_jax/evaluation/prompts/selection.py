"""What an evaluation asks: which ledgers, and which of their prompts."""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Sequence

from optiml_jax.common.errors import UserError
from optiml_jax.data.cache_paths import ledger_path
from optiml_jax.evaluation.prompts.ledger import Prompt


def ledgers(ledger: str | None, suite: str | None, mixture: str | None, cache_dir: str) -> list[str]:
    """The files: `ledger` itself, or those of `suite` (several with commas between them), else of `mixture`.

    Raises:
      UserError: none is named, or both a ledger and a suite.
    """
    if ledger is not None and suite is not None:
        raise UserError(f"SUITE={suite} and LEDGER={ledger} both say what is asked; give one of them")
    if ledger is None and suite is None and mixture is None:
        raise UserError("LEDGER is not set; name one with --gin.LEDGER=\"'cache/ledgers/samples.jsonl'\", or a SUITE")
    suites = [name.strip() for name in (suite or mixture or "").split(",")]
    return [ledger] if ledger is not None else [str(ledger_path(cache_dir, name)) for name in suites]


def chosen(prompts: Sequence[Prompt], shots: int | Sequence[int] | None, limit: int) -> list[Prompt]:
    """A part of a ledger. A larger `limit` asks what a smaller one asks, and more; all parts of a question, or none.

    Raises:
      UserError: no prompt has so many demonstrations.
    """
    wanted = {shots} if isinstance(shots, int) else shots and set(shots)
    found = [prompt for prompt in prompts if not wanted or prompt.shots in wanted]
    if not found:
        there = ", ".join(map(str, sorted({prompt.shots for prompt in prompts})))
        raise UserError(f"SHOTS={shots}: the ledger has prompts of {there} demonstrations")
    if not limit:
        return found
    questions: dict[tuple[str, int], set[tuple]] = defaultdict(set)
    for prompt in found:
        questions[prompt.task, prompt.shots].add(_question(prompt))
    drawn = {of: set(heapq.nsmallest(limit, names, key=_draw)) for of, names in questions.items()}
    return [prompt for prompt in found if _question(prompt) in drawn[prompt.task, prompt.shots]]


def _question(prompt: Prompt) -> tuple:
    return prompt.template, prompt.seed, prompt.part_of or prompt.example_id


def _draw(question: tuple) -> bytes:
    return hashlib.sha256(repr(question).encode()).digest()
