"""Lines of a report about the scope of an evaluation: which prompts of the suites were answered, and which were not."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optiml_jax.common.tables import first_few
from optiml_jax.evaluation.prompts.ledger import Prompt


def notes(
    metadata: Iterable[Mapping[str, Any]], prompts: Sequence[Prompt], selected: Sequence[Prompt], shots: Any
) -> list[str]:
    """Lines about overlap with training, caps of the ledgers, tasks that SHOTS leaves without prompts, and missing
    demonstrations.

    Args:
      metadata: of the ledgers (`ledger.about`).
      prompts: of the ledgers.  selected: those that are evaluated.
      shots: the setting SHOTS.
    """
    lines = []
    if all(prompt.contaminated is None for prompt in selected):
        lines.append(
            "Overlap with training: not looked for; tools.find_overlap measures it, and its file marks the prompts"
        )
    for about in metadata:
        suite = about["suite"]
        if cap := about.get("prompts_per_task"):
            lines.append(
                f"{suite}: at most {cap:,} prompts per task and number of shots, drawn when its ledger was written"
            )
        if bare := about.get("without_demonstrations"):
            lines.append(f"{suite}: no records for demonstrations, so asked with 0 shots only: {_named(bare)}")
    evaluated_tasks = {prompt.task for prompt in selected}
    emptied = defaultdict(dict)
    for prompt in prompts:
        if prompt.task not in evaluated_tasks:
            emptied[prompt.suite][prompt.task] = None
    for suite, tasks in emptied.items():
        entire = all(prompt.task in tasks for prompt in prompts if prompt.suite == suite)
        what = f"suite {suite}, all {len(tasks):,} tasks" if entire else f"{suite}: {_named(list(tasks))}"
        lines.append(f"Not asked, no prompts with {shots} demonstrations (SHOTS): {what}")
    return lines


def _named(tasks: Sequence[str]) -> str:
    return f"{len(tasks):,} task{'s' * (len(tasks) > 1)} ({first_few(tasks)})"
