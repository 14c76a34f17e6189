"""The suites of the paper: which tasks stand in them at which level, and what they say where something is wrong."""

import collections
import dataclasses
import json
import re

import pytest

from optiml_jax.common.errors import DataError
from optiml_jax.evaluation.prompts.ledger import LEVELS, read_ledger
from tasks import suites
from tasks.catalog.registry import CATALOG, catalog, discover, listed
from tasks.suites import (
    Part,
    Suite,
    flan,
    ledger_job,
    promptsource,
    super_natural_instructions_held_out,
    unifiedskg,
    validation,
)
from tests.tasks.prompting.wordings import write

# --- levels


def test_the_validation_suite_is_table_15(shared):
    """Every row of the table with its tasks, category, level and metric; 35 tasks as in Table 1."""
    named = [f"{row.benchmark}.{task}" for row in validation.TABLE_15 for task in row.tasks]
    assert len(named) == len(set(named)) == 35
    every = {row["name"]: row for row in listed(CATALOG)}
    assert set(named) <= every.keys()
    levels = {"Fully Held-Out": LEVELS[0], "Partially Supervised": LEVELS[1], "Fully Supervised": LEVELS[2]}
    metrics = {"Rouge-L F1": "rouge_l", "Accuracy": "accuracy"}
    benchmarks = {"PromptSource": "promptsource", "SuperNatInst": "super_natural_instructions", "FLAN": "flan"}
    stated = collections.Counter(
        (
            benchmarks.get(row["suite"], "reasoning"),
            slug(row["category"]),
            levels[row["generalization_level"]],
            metrics[row["metric"]],
        )
        for row in listed(shared / "catalog" / "levels.tsv")
        if row["record_type"] == "validation_task" and row["suite"] != "MMLU"
    )
    ours = collections.Counter(
        (row.benchmark, row.category, row.level, validation.METRICS[row.output_type].name)
        for row in (*validation.TABLE_15, *validation.BESIDE)
    )
    assert ours == stated
    for row in (*validation.TABLE_15, *validation.BESIDE):
        for task in row.tasks:
            assert every[f"{row.benchmark}.{task}"]["level"] in (row.level, ""), task


def slug(text):
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def test_the_test_suites_are_the_tasks_of_tables_9_to_13():
    """14, 12, 15, 44 and 3 tasks; without Blended Skill Talk, which Table 15 has too, the 87 of Table 1."""
    super_ni = [
        row for row in catalog("super_natural_instructions").values() if super_natural_instructions_held_out.asks(row)
    ]
    counts = [
        len(catalog("opt_eval")),
        len(promptsource.TABLE_10) + len(promptsource.ROUNDS),
        len(flan.TABLE_11),
        len(super_ni),
        len(unifiedskg.TABLE_13),
    ]
    assert counts == [14, 12, 15, 44, 3] and sum(counts) - 1 == 87
    prompts = [f"promptsource.{task}" for task in promptsource.TABLE_10] + [f"flan.{task}" for task in flan.TABLE_11]
    every = {row["name"]: row for row in listed(CATALOG)}
    assert all(every[name]["level"] for name in prompts)


def test_raft_by_macro_f1_still_ranks_its_labels(tmp_path, monkeypatch):
    """Its authors' metric is a change of one column; the labels are ranked as before."""
    rows = catalog("raft")
    name = "raft.overruling"
    prompt = "Does it?\nPossible labels:\n1. no\n2. yes\n\nSentence: a\nLabel: yes\n"
    lines = "".join(f"{i},text {i},{1 + i % 2}\n" for i in range(50))
    write(
        tmp_path / "raft",
        **{"example_prompts/overruling.txt": prompt, "data/overruling/train.csv": f"ID,Sentence,Label\n{lines}"},
    )
    monkeypatch.setitem(rows, name, dataclasses.replace(rows[name], metric="macro_f1"))
    result = ledger_job.run(suites.suite("raft"), tmp_path, tmp_path / "cache", max_prompts=5)
    prompts = [prompt for prompt in read_ledger(result.path) if prompt.task == name]
    assert {str(prompt.metric) for prompt in prompts} == {"macro_f1"}
    assert {prompt.output_type for prompt in prompts} == {"rank"} and all(prompt.candidates for prompt in prompts)


# --- what is wrong is named


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"opt_eval/piqa/valid.jsonl": '{"goal": "a", "sol1": "b", "sol2": "c"}\n'},
            "its labels, valid-labels.lst, are not",
        ),
        (
            {
                "opt_eval/piqa/valid.jsonl": '{"goal": "a", "sol1": "b", "sol2": "c"}\n',
                "opt_eval/piqa/valid-labels.lst": "0\n1\n",
            },
            "2 labels for the 1 records of valid.jsonl",
        ),
        (
            {
                "opt_eval/piqa/valid.jsonl": '{"goal": "a", "sol1": "b", "sol2": "c"}\n',
                "opt_eval/piqa/valid-labels.lst": "2\n",
            },
            "valid.jsonl:1: the label is '2', neither 0 nor 1, and no other record",
        ),
        (
            {"opt_eval/superglue/CB/val.jsonl": '{"premise": "a", "hypothesis": "b"}\n'},
            "CB/val.jsonl:1: the row has no field label",
        ),
        (
            {
                "opt_eval/arc/ARC-Challenge-Test.jsonl": json.dumps(
                    {"question": {"stem": "a", "choices": [{"label": "A", "text": "x"}]}, "answerKey": "E"}
                )
            },
            "ARC-Challenge-Test.jsonl:1: the answer 'E' is none of the choices A",
        ),
        ({"mmlu/test/anatomy_test.csv": "q,a,b,c,d,E\n"}, "anatomy_test.csv:1: the answer is 'E', none of A, B, C, D"),
        ({"bbh/bbh/snarks.json": '{"examples": []}'}, "cot-prompts/snarks.txt: cannot be read"),
        ({"raft/data/overruling/train.csv": "ID,Sentence,Label\n"}, "overruling.txt: cannot be read"),
        ({"mmlu/readme.txt": "nothing"}, "no file of a known task"),
        (
            {"unifiedskg/sparc/dev.json": "[]"},
            "of no task of suite unifiedskg",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, files, message):
    write(tmp_path / "data", **files)
    suite = suites.suite(next(iter(files)).split("/")[0])
    with pytest.raises(DataError, match=re.escape(message)):
        ledger_job.run(suite, str(tmp_path / "data"), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("ledgers/**/*.jsonl"))


def test_a_task_at_two_levels_is_refused(tmp_path):
    write(tmp_path, **{"mmlu/test/anatomy_test.csv": "q,a,b,c,d,A\n"})

    def parts(result):
        for task in result.tasks.values():
            yield Part(task, "test", LEVELS[0])
            yield Part(task, "test", LEVELS[1])

    with pytest.raises(DataError, match=r"mmlu\.anatomy .*fully_held_out and held_out_task"):
        ledger_job.run(Suite("two", ("mmlu",), parts), str(tmp_path), tmp_path / "cache")


def test_what_is_shown_is_never_what_is_asked(tmp_path):
    """The first of five solved examples was left out where the example that is asked has the same number."""
    lines = "".join(f"shown {i},a,b,c,d,A\n" for i in range(5))
    write(tmp_path, **{"mmlu/dev/anatomy_dev.csv": lines, "mmlu/test/anatomy_test.csv": "asked,a,b,c,d,B\n"})
    (task,) = discover("mmlu", str(tmp_path)).tasks.values()
    result = ledger_job.run(suites.suite("mmlu"), str(tmp_path), tmp_path / "cache")
    (five,) = (prompt for prompt in read_ledger(result.path) if prompt.shots)
    assert len(five.demonstration_ids) == 5 and [f"shown {i}" in five.prompt for i in range(5)] == [True] * 5
    assert task.demonstrations == "shown"
