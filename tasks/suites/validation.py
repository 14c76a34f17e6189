"""The validation suite: 35 tasks of 7 categories, MMLU, reasoning, and fully supervised tasks (paper 2.3, Table 15).

Of all pairs of an example and a template at most 250 prompts per task, which are scored together (4.1), 0 and 5 shots:
also of each of MMLU's 57 subjects, which have fewer (1,531 in all). Examples are those of the releases' validation
sets, or else of their test sets; those of Super-NaturalInstructions, which has none, are all instances. Templates of
PromptSource that do not apply to all of them are left out (A.1). The same data set in several benchmarks is a group:
its sub-tasks are averaged, then the benchmarks (4.1). Table 15 does not count sub-tasks; the 35 of Table 1 are reached
with all three tasks of COD3S and RACE's two halves (`race/all` repeats the questions of both), or with two and all
three.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import GENERATE, LEVELS, RANK
from tasks.benchmarks import flan, promptsource, reasoning
from tasks.benchmarks import super_natural_instructions as super_ni
from tasks.catalog.registry import Benchmark
from tasks.suites import Part, Suite, first_split, mmlu, named
from tasks.task import Task

MOST = 250
BOTH, ZERO = (0, 5), (0,)
FULLY, TASK, INSTANCES = LEVELS
METRICS = {RANK: Metric("accuracy"), GENERATE: Metric("rouge_l")}


class Table15Row(NamedTuple):
    """A row of Table 15. `output_type`: ranked answers are scored by accuracy, generated ones by ROUGE-L. `shots`:
    summarization has no demonstrations (but in Table 20: `validation_table_20.py`)."""

    group: str
    category: str
    level: str
    output_type: str
    benchmark: str
    tasks: tuple[str, ...]
    shots: tuple[int, ...] = BOTH


NI, PS, FLAN, COT = super_ni.NAME, promptsource.NAME, flan.NAME, reasoning.NAME
BIAS, CAUSE, TOXIC, QA = (
    "stereotype_detection",
    "cause_effect_classification",
    "toxic_language_detection",
    "question_answering",
)
WINOBIAS = tuple(f"wino_bias__{kind}" for kind in ("type1_anti", "type1_pro", "type2_anti", "type2_pro"))
BARD = (
    "task1152_bard_analogical_reasoning_causation",
    "task1153_bard_analogical_reasoning_affordance",
    "task1154_bard_analogical_reasoning_travel",
    "task1155_bard_analogical_reasoning_trash_or_treasure",
    "task1156_bard_analogical_reasoning_tools",
    "task1157_bard_analogical_reasoning_rooms_for_containers",
    "task1158_bard_analogical_reasoning_manipulating_items",
    "task1159_bard_analogical_reasoning_containers",
)
COD3S = ("task391_causal_relationship", "task392_inverse_causal_relationship", "task393_plausible_result_generation")
CIVIL = (
    "task1720_civil_comments_toxicity_classification",
    "task1721_civil_comments_obscenity_classification",
    "task1722_civil_comments_threat_classification",
    "task1723_civil_comments_sexuallyexplicit_classification",
    "task1724_civil_comments_insult_classification",
    "task1725_civil_comments_severtoxicity_classification",
)
COPA_COMMONSENSE = ("task827_copa_commonsense_reasoning", "task828_copa_commonsense_cause_effect")
RACE = ("task309_race_answer_generation", "task310_race_classification")
TABLE_15 = (
    Table15Row("winobias", BIAS, FULLY, GENERATE, PS, WINOBIAS),
    Table15Row("winobias", BIAS, FULLY, GENERATE, NI, ("task1664_winobias_text_generation",)),
    Table15Row("bard", "word_analogy", FULLY, GENERATE, NI, BARD),
    Table15Row("cod3s", CAUSE, FULLY, GENERATE, NI, COD3S),
    Table15Row("copa", CAUSE, FULLY, RANK, PS, ("super_glue__copa",)),
    Table15Row("copa", CAUSE, FULLY, GENERATE, NI, ("task1393_superglue_copa_text_completion",)),
    Table15Row("copa", CAUSE, FULLY, RANK, FLAN, ("copa",)),
    Table15Row("copa_commonsense", CAUSE, FULLY, GENERATE, NI, COPA_COMMONSENSE),
    Table15Row("glucose", CAUSE, FULLY, GENERATE, NI, ("task614_glucose_cause_event_detection",)),
    Table15Row("jfleg", "grammar_error_correction", FULLY, GENERATE, NI, ("task1557_jfleg_answer_generation",)),
    Table15Row("civil_comments", TOXIC, TASK, GENERATE, NI, CIVIL),
    Table15Row("jigsaw", TOXIC, TASK, GENERATE, PS, ("jigsaw_unintended_bias",)),
    Table15Row("newsroom", "summarization", TASK, GENERATE, FLAN, ("newsroom",), ZERO),
    Table15Row("race", QA, TASK, RANK, PS, ("race__high", "race__middle")),
    Table15Row("race", QA, TASK, GENERATE, NI, RACE),
)
BESIDE = (  # evaluated in addition to the paper's 35; MMLU is added in footnote 3
    Table15Row("strategyqa", "reasoning", TASK, GENERATE, COT, ("strategyqa",)),
    Table15Row("gsm8k", "reasoning", TASK, GENERATE, COT, ("gsm8k",)),
    Table15Row("squad_v1", QA, INSTANCES, GENERATE, FLAN, ("squad_v1",)),
    Table15Row("squad_v1", QA, INSTANCES, GENERATE, PS, ("squad",)),
    Table15Row("blended_skill_talk", "dialogue_generation", INSTANCES, GENERATE, PS, ("blended_skill_talk",)),
    Table15Row("cnn_dailymail", "summarization", INSTANCES, GENERATE, PS, ("cnn_dailymail__3.0.0",), ZERO),
)


def evaluated(task: Task) -> tuple[Task, str] | None:
    """The task and the split of it that is evaluated; None if it has none."""
    name = task.name.removeprefix(f"{task.benchmark}.")
    if task.benchmark == NI:
        return dataclasses.replace(task, splits=(super_ni.WHOLE,)), super_ni.WHOLE
    splits = flan.released(name) if task.benchmark == FLAN else ("validation", "test")
    split = first_split(task, splits)
    return (task, split) if split else None


def parts(discovered: Benchmark) -> Iterator[Part]:
    """The rows of the table, and MMLU."""
    for row in (*TABLE_15, *BESIDE):
        for task, split in filter(None, map(evaluated, named(discovered, row.benchmark, *row.tasks))):
            yield Part(
                dataclasses.replace(task, category=row.category),  # Table 15 changes one category: task1664's
                split,
                row.level,
                METRICS[row.output_type],
                row.output_type,
                templates=promptsource.applicable(task, split) if task.benchmark == PS else None,
                shots=row.shots,
                group=row.group,
                most=MOST,
                pooled=True,
            )
    for part in mmlu.parts(discovered, "validation"):
        yield dataclasses.replace(part, most=MOST, pooled=True)


SUITE = Suite("validation", (PS, NI, FLAN, COT, mmlu.NAME), parts)
