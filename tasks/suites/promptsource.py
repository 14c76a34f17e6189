"""PromptSource: 12 tasks by all their original-task templates, 0 and 5 shots (paper 5.2, Table 10)."""

import dataclasses
from collections.abc import Iterator

from tasks.benchmarks.promptsource import NAME, applicable
from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, first_split, named, stated

TABLE_10 = ("super_glue__cb", "super_glue__rte", "story_cloze__2016", "super_glue__wsc.fixed", "super_glue__wic")
TABLE_10 += ("winogrande__winogrande_xl", "blended_skill_talk", "super_glue__axg", "crows_pairs")
NOTHING_TO_SHOW = ("super_glue__axg", "crows_pairs")  # only a test split: Table 10 has the same figures at 5 shots
ROUNDS = ("r1", "r2", "r3")  # rounds of ANLI, each a task of Table 10


def parts(discovered: Benchmark) -> Iterator[Part]:
    """Yields the 12 tasks on their validation splits, whose labels are public, with templates that fit all of them."""
    selected = [(task, ("validation", "test")) for task in named(discovered, NAME, *TABLE_10)]
    for task in named(discovered, NAME, "anli"):
        selected += [(dataclasses.replace(task, name=f"{task.name}_{part}"), (f"dev_{part}",)) for part in ROUNDS]
    for task, splits in selected:
        split = first_split(task, splits)
        if split and (templates := applicable(task, split)):
            of_lists = task if task.name in discovered.rows else discovered.tasks[f"{NAME}.anli"]
            shots = (0,) if task.name.removeprefix(f"{NAME}.") in NOTHING_TO_SHOW else (0, 5)
            yield Part(task, split, stated(of_lists, discovered), templates=templates, shots=shots)


SUITE = Suite(NAME, (NAME,), parts)
