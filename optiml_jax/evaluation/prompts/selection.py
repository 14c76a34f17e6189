"""Selection of ledgers and prompts for an evaluation."""

import dataclasses
import hashlib
import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from optiml_jax.common.errors import UserError, check_known
from optiml_jax.data.cache_paths import ledger_path, manifests
from optiml_jax.data.manifest import SEPARATOR, Manifest
from optiml_jax.evaluation.prompts.ledger import Prompt

TEST = "test"
TEMPLATES = ("suite", "pooled", "averaged")


def ledgers(
    ledger: str | None, suite: str | None, mixture: str | None, cache_dir: str, recorded: Mapping[str, str] = {}
) -> list[str]:
    """Paths of the ledgers: `ledger` itself, or those of `suite` (several, separated by commas), else of `mixture`.

    A suite's ledger is the one that was written last. If the cached mixtures have different ledgers of it, such as for
    two files of a user's own data, it is that of the run.

    Args:
      recorded: `Manifest.ledgers` of the run whose weights are evaluated.

    Raises:
      UserError: none is given, or both a ledger and a suite; or a suite has several ledgers to choose from.
    """
    if ledger is not None and suite is not None:
        raise UserError(f"SUITE={suite} and LEDGER={ledger} both select prompts; give one of them")
    if ledger is None and suite is None and mixture is None:
        raise UserError("LEDGER is not set; give one with --gin.LEDGER=\"'cache/ledgers/samples.jsonl'\", or a SUITE")
    if ledger is not None:
        return [ledger]
    if suite is None:
        return [str(_of_mixture(name, cache_dir, recorded)) for name in mixture.split(SEPARATOR)]
    names = [name.strip() for name in suite.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"SUITE={suite!r}: names a suite twice, or has an empty name; give each once: 'mmlu,bbh'")
    return [str(_of_suite(name, cache_dir, recorded)) for name in names]


def _of_mixture(benchmark: str, cache_dir: str, recorded: Mapping[str, str]) -> Path:
    """The ledger of a benchmark in the mixture of a run: the recorded one, if this CACHE_DIR holds it."""
    path = Path(cache_dir, recorded[benchmark]) if benchmark in recorded else None
    return path if path is not None and path.exists() else _of_suite(benchmark, cache_dir, recorded)


def _of_suite(name: str, cache_dir: str, recorded: Mapping[str, str]) -> Path:
    """The ledger of a suite, see `ledgers`."""
    stored = {path for manifest in map(Manifest.read, manifests(cache_dir)) if (path := manifest.ledgers.get(name))}
    if len(stored) < 2:
        return ledger_path(cache_dir, name)
    if recorded.get(name) in stored:
        return Path(cache_dir, recorded[name])
    paths = ", ".join(sorted(str(Path(cache_dir, path)) for path in stored))
    raise UserError(f"{cache_dir}: suite {name} has the prompts of several mixtures; choose with LEDGER: {paths}")


def of_split(prompts: Sequence[Prompt], validating: bool) -> list[Prompt]:
    """The prompts of an evaluation, or of a validation during training. Where a task has a test split and another one,
    the former is evaluated and the latter validated; all prompts of other tasks serve both."""
    splits = defaultdict(set)
    for prompt in prompts:
        splits[prompt.task].add(prompt.split)
    both = {task for task, names in splits.items() if TEST in names and len(names) > 1}
    return [prompt for prompt in prompts if prompt.task not in both or (prompt.split == TEST) != validating]


def set_pooling(prompts: Sequence[Prompt], templates: str) -> list[Prompt]:
    """Returns the prompts with `Prompt.pooled` as one of `TEMPLATES` says.

    Args:
      templates: "suite" leaves it as the suite has it; "pooled": the score of a task is the mean over the prompts of
        all its templates (paper 4.1); "averaged": the mean of the templates' means (Tables 10 and 11).

    Raises:
      UserError: `templates` is none of these.
    """
    check_known("TEMPLATES", templates, TEMPLATES)
    if templates == TEMPLATES[0]:
        return list(prompts)
    return [dataclasses.replace(prompt, pooled=templates == "pooled") for prompt in prompts]


def select(prompts: Sequence[Prompt], shots: int | Sequence[int] | None, limit: int) -> list[Prompt]:
    """Selects prompts by their number of demonstrations, and up to `limit` questions per task and number (0: all).

    Subsets are nested in `limit`; prompts that share `part_of` are kept or dropped together.

    Raises:
      UserError: no prompt has that many demonstrations.
    """
    if not isinstance(shots, int | None) and not shots:
        raise UserError("SHOTS is an empty list; name numbers of demonstrations, such as [0, 5], or None for all")
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
