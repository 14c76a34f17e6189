"""The suites of the paper: which tasks stand in them at which level, and what they say where something is wrong."""

import collections
import contextlib
import dataclasses
import json
import re

import pytest

from optiml_jax.common.errors import DataError
from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.prompts.ledger import LEVELS, read_ledger
from optiml_jax.tokenizer import Tokenizer
from tasks import suites
from tasks.benchmarks.samples import TOKENIZER
from tasks.catalog import mixtures, review
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
from tests.stores import opened
from tests.tasks.conftest import write_task
from tests.tasks.prompting.wordings import write
from tools import cache_tasks

LEFT_OUT = CacheOptions(missing_benchmarks="leave_out")

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


# --- the validation suite (paper 4.1, A.1, Table 15)


def prompts_of(suite, data, cache, max_prompts=0):
    return read_ledger(ledger_job.run(suites.suite(suite), str(data), cache, LEFT_OUT, max_prompts).path)


def test_validation_draws_250_prompts_of_the_pool_of_a_task(tmp_path):
    """Also of Super-NaturalInstructions, whose own evaluations stop at the first hundred instances; those that serve as
    demonstrations are not among them. Their score is pooled."""
    instances = [{"id": f"n{i}", "input": f"Question {i}", "output": ["yes"]} for i in range(400)]
    shown = [{"input": f"shown {i}", "output": "yes", "explanation": ""} for i in range(3)]
    folder = tmp_path / "super_natural_instructions"
    for name in ("task391_causal_relationship", "task1720_civil_comments_toxicity_classification"):
        write_task(folder, name, instances, **{"Positive Examples": shown})
    made = prompts_of("validation", tmp_path, tmp_path / "cache")
    counts = collections.Counter((prompt.task.split(".")[1], prompt.shots) for prompt in made)
    assert set(counts.values()) == {250} and len(counts) == 4
    assert all(prompt.pooled and prompt.split == "whole" for prompt in made)
    example_ids = {prompt.example_id for prompt in made}
    assert max(int(name[1:]) for name in example_ids) > 300 and {len(p.demonstration_ids) for p in made} == {0, 5}
    assert not example_ids & {name for prompt in made for name in prompt.demonstration_ids}
    held_out = prompts_of("super_natural_instructions", tmp_path, tmp_path / "cache")
    assert not any(prompt.pooled for prompt in held_out)


def test_validation_leaves_out_templates_that_do_not_apply_to_all_examples(shared, tmp_path):
    """COPA asks for a cause or for an effect, and two templates only of one of them. A row that fits no template
    decides nothing."""
    (tmp_path / "promptsource").mkdir()
    (tmp_path / "promptsource/templates").symlink_to(shared / "data/promptsource/templates")
    source = shared / "data/promptsource/rows/super_glue/copa/validation.jsonl"
    lines = source.read_text().splitlines()
    write(tmp_path, **{"promptsource/rows/super_glue/copa/validation.jsonl": "\n".join(lines)})
    made = prompts_of("validation", tmp_path, tmp_path / "cache")
    names = {prompt.template for prompt in made}
    (task,) = discover("promptsource", str(tmp_path)).tasks.values()
    left_out = {template.id for template in task.templates} - names
    assert len(names) == 8 and left_out == {
        "…As a result, C1 or C2?",
        "…What could happen next, C1 or C2?",
        "…which may be caused by",
        "…why? C1 or C2",
    }
    unfit = json.loads(lines[0]) | {"label": -1, "question": "neither"}
    write(tmp_path, **{"promptsource/rows/super_glue/copa/validation.jsonl": "\n".join([json.dumps(unfit), *lines])})
    assert {prompt.template for prompt in prompts_of("validation", tmp_path, tmp_path / "cache")} == names


def test_validation_asks_nothing_that_opt_iml_draws(shared, tmp_path):
    """FLAN's SQuAD and COPA ask the rows of the release's validation set: FLAN's own validation split are rows of the
    train set, on which PromptSource's tasks are trained."""
    squad = [json.loads(line) for line in (shared / "data/promptsource/rows/squad/validation.jsonl").open()]
    contexts = list(dict.fromkeys(row["context"] for row in squad))
    train, validation_rows = (
        [row for row in squad if (contexts.index(row["context"]) < len(contexts) // 2) == first]
        for first in (True, False)
    )
    folder = shared / "data/promptsource/rows/super_glue/copa"
    files = {
        f"promptsource/rows/squad/{name}.jsonl": train if name == "train" else validation_rows
        for name in ("train", "validation")
    }
    patterns = {"squad_v1": [("{context}\n\n{question}", "{answer}")], "copa": [("{premise}\n{options_}", "{answer}")]}
    write(tmp_path, **{path: "\n".join(map(json.dumps, lines)) for path, lines in files.items()})
    write(tmp_path, **{"flan/flan/templates.py": f"PATTERNS = {patterns!r}\n"})
    (tmp_path / "promptsource/templates").symlink_to(shared / "data/promptsource/templates")
    (tmp_path / "promptsource/rows/super_glue").mkdir()
    (tmp_path / "promptsource/rows/super_glue/copa").symlink_to(folder)
    flags = [f"--data_dir={tmp_path}", f"--cache_dir={tmp_path / 'cache'}", "--missing_benchmarks=leave_out"]
    with contextlib.redirect_stdout(None):
        cache_tasks.main(["--mixture=opt_iml", *flags, f"--tokenizer={TOKENIZER}", "--allow_bad_records"])
    store, tokenizer = opened(tmp_path / "cache"), Tokenizer.load(TOKENIZER)
    drawn = {task.name: task.examples for task in store.manifest.tasks}
    assert {"flan.squad_v1", "promptsource.squad"} == drawn.keys()
    trained = "\n\n".join(
        tokenizer.decode(store.read(name, "train", i)[0]) for name, count in drawn.items() for i in range(count)
    )
    made = prompts_of("validation", tmp_path, tmp_path / "cache")
    assert {prompt.task for prompt in made} == {*drawn, "flan.copa", "promptsource.super_glue__copa"}
    assert collections.Counter(prompt.split for prompt in made if prompt.benchmark == "flan").keys() == {"test"}
    assert any(row["question"] in trained for row in train)
    for prompt in made:
        if "squad" in prompt.task and not prompt.shots:
            assert any(row["question"] in prompt.prompt for row in validation_rows)
            assert not any(row["context"] in prompt.prompt for row in train)
    assert not any(row["context"] in trained for row in validation_rows)


def test_table_20_also_shows_summaries(tmp_path):
    rows = "\n".join(json.dumps({"text": f"text {i}", "title": "t", "summary": f"sum {i}"}) for i in range(9))
    patterns = {"newsroom": [("{text}", "{summary}")]}
    files = {f"flan/rows/newsroom/{name}.jsonl": rows for name in ("train", "validation", "test")}
    write(tmp_path, **files, **{"flan/flan/templates.py": f"PATTERNS = {patterns!r}\n"})
    made = {name: prompts_of(name, tmp_path, tmp_path / "cache") for name in ("validation", "validation_table_20")}
    assert {prompt.shots for prompt in made["validation"]} == {0} and made["validation"][0].split == "validation"
    five = [prompt for prompt in made["validation_table_20"] if prompt.shots == 5]
    assert len(five) == 9 and all(prompt.prompt.count("\n\ntext ") == 5 for prompt in five)


def test_what_has_only_a_test_split_is_asked_without_demonstrations(shared, tmp_path):
    """WinoGender and CrowS-Pairs: Table 10 has the same figures for 0 and 5 shots."""
    row = {"premise": "A nurse met a man because he was late.", "hypothesis": "The man was late.", "label": 0, "idx": 0}
    write(tmp_path, **{"promptsource/rows/super_glue/axg/test.jsonl": "\n".join([json.dumps(row)] * 9)})
    (tmp_path / "promptsource/templates").symlink_to(shared / "data/promptsource/templates")
    made = prompts_of("promptsource", tmp_path, tmp_path / "cache")
    assert made and {prompt.shots for prompt in made} == {0} and not any(prompt.pooled for prompt in made)


def test_opt_iml_max_has_seen_what_mmlu_asks():
    """Each of the 57 subjects is a task of Super-NaturalInstructions too, which opt_iml leaves out: a report on a run
    on opt_iml_max has them as held-out instances."""
    subjects = set(catalog("mmlu"))
    seen = {name: set(tasks) for name, tasks in review.trained_as(subjects, None).items()}
    drawn = {name: {row.name for row in mixtures.mixture(name).listed()} for name in ("opt_iml", "opt_iml_max")}
    assert seen.keys() == subjects and len(subjects) == 57
    assert all(tasks <= drawn["opt_iml_max"] and not tasks & drawn["opt_iml"] for tasks in seen.values())
