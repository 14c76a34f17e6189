"""PromptSource: 12 tasks by all their original-task templates, 0 and 5 shots (paper 5.2, Table 10)."""

import dataclasses
from collections.abc import Iterator

from tasks.benchmarks.promptsource import NAME, applicable
from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, named, stated

TABLE_10 = ("super_glue__cb", "super_glue__rte", "story_cloze__2016", "super_glue__wsc.fixed", "super_glue__wic")
TABLE_10 += ("winogrande__winogrande_xl", "blended_skill_talk", "super_glue__axg", "crows_pairs")
ROUNDS = ("r1", "r2", "r3")  # of ANLI, each a task of Table 10


def parts(found: Benchmark) -> Iterator[Part]:
    """The 12, on their validation splits, whose labels are public, and by templates that fit all of them."""
    asked = [(task, ("validation", "test")) for task in named(found, NAME, *TABLE_10)]
    for task in named(found, NAME, "anli"):
        asked += [(dataclasses.replace(task, name=f"{task.name}_{one}"), (f"dev_{one}",)) for one in ROUNDS]
    for task, splits in asked:
        split = next((split for split in splits if split in task.splits), None)
        if split and (templates := applicable(task, split)):
            of_lists = task if task.name in found.rows else found.tasks[f"{NAME}.anli"]
            yield Part(task, split, stated(of_lists, found), templates=templates, shots=(0, 5))


SUITE = Suite(NAME, (NAME,), parts)
