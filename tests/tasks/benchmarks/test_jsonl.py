"""A user's own data: every form, every split, and what is wrong with a record."""

import itertools
import json

import pytest

from optiml_jax.common.errors import DataError, UserError
from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import read_ledger
from optiml_jax.evaluation.prompts.selection import of_split
from tasks import suites
from tasks.catalog import mixtures, registry
from tasks.example import Example, Skipped
from tasks.prompting import demonstrations
from tasks.prompting.subsampling import examples
from tasks.suites import ledger_job

ALPACA = {"instruction": "Name the colour.", "input": "grass", "output": "green"}


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def records(count, **fields):
    return [ALPACA | {"input": f"thing {i}"} | fields for i in range(count)]


def discover(path, **options):
    return registry.discover("jsonl", path, CacheOptions(**options))


def first_task(tmp_path, record, **options):
    """The examples of a file of one record."""
    (task,) = discover(write(tmp_path / "own.jsonl", [record]), allow_bad_records=True, **options).tasks.values()
    return list(examples(task, "train"))


def test_alpaca_and_dolly_are_instruction_and_input(tmp_path):
    (example,) = first_task(tmp_path, ALPACA)
    assert "Name the colour.\n" in example.source and "grass" in example.source and example.target == "green"
    dolly = {"instruction": "Name the colour.", "context": "grass", "response": "green"}
    assert first_task(tmp_path, dolly) == [example]
    (alone,) = first_task(tmp_path, {"instruction": "Sing.", "input": "", "output": "La."})
    assert alone.source.removeprefix("Task: ").removeprefix("Instructions: ").startswith("Sing.")


def test_prompt_and_completion_are_taken_as_they_are(tmp_path):
    (example,) = first_task(tmp_path, {"prompt": "Q: 1 + 1\nA:", "completion": " 2"})
    assert (example.source, example.target, example.separator) == ("Q: 1 + 1\nA:", "2", " ")


def test_a_conversation_is_one_example_with_a_label_per_turn_of_the_assistant(tmp_path):
    chat = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "Bye.")]
    (example,) = first_task(tmp_path, {"messages": [{"role": role, "content": text} for role, text in chat]})
    assert example.source == "Be brief.\nUser: Hi\nAssistant: Hello.\nUser: Bye\nAssistant:" and example.id == "1"
    assert example.turns() == [
        ("Be brief.\nUser: Hi\nAssistant:", " Hello."),
        ("\nUser: Bye\nAssistant:", " Bye."),
    ]
    shared = [{"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text} for role, text in chat]
    assert first_task(tmp_path, {"conversations": shared}) == [example]
    weighted = [{"role": role, "content": text} for role, text in chat]
    weighted[2]["weight"] = 0
    (last_alone,) = first_task(tmp_path, {"messages": weighted})
    assert (last_alone.source, last_alone.turns()) == (example.source, [(example.source, " Bye.")])


def test_a_held_out_conversation_is_a_question_per_turn_and_no_part_of_it_is_trained_on(tmp_path):
    def chat(i: int) -> dict:
        turns = [("user", f"Hi {i}"), ("assistant", f"Hello {i}."), ("user", "Bye"), ("assistant", f"Bye {i}.")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    (task,) = discover(write(tmp_path / "own.jsonl", [chat(i) for i in range(40)]), held_out_instances=5).tasks.values()
    trained, held_out = list(examples(task, "train")), list(examples(task, "validation"))
    assert len(trained) == 35 and all(len(example.turns()) == 2 for example in trained)
    assert len(held_out) == 10 and all(len(example.turns()) == 1 for example in held_out)
    assert [example.id.split(".")[1] for example in held_out] == ["1", "2"] * 5
    assert [example.references for example in held_out[:2]] == [(held_out[0].target,), (held_out[1].target,)]
    assert not {example.id for example in trained} & {example.id.split(".")[0] for example in held_out}


def test_candidates_references_and_metric(tmp_path):
    (example,) = first_task(tmp_path, ALPACA | {"candidates": ["red", "green"], "references": ["lime"]})
    assert example.candidates == ("red", "green") and set(example.references) == {"green", "lime"}
    path = tmp_path / "own.jsonl"
    assert discover(path).tasks["jsonl.own"].templates[0].metric == Metric("accuracy")
    write(path, [ALPACA | {"metric": {"name": "exact_match", "normalization": "squad"}}])
    assert str(discover(path).tasks["jsonl.own"].templates[0].metric) == "exact_match (squad)"


@pytest.mark.parametrize(
    "record, reason",
    [
        ({"instruction": 3, "output": "x"}, "instruction is int, not text"),
        ({"instruction": "x", "output": None}, "output is neither text nor a list of texts"),
        ({"instruction": "x", "output": "  "}, "output is empty"),
        ({"instruction": " ", "input": "", "output": "x"}, "instruction is empty"),
        ({"text": "x"}, "has text, which is none of"),
        ({}, "has nothing, which is none of"),
        ({"messages": "x"}, "messages is no list of objects"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "a message of role 'robot'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no turn of the assistant"),
        ({"messages": [{"role": "user"}]}, "lacks content"),
        (ALPACA | {"candidates": ["red", "blue"]}, "candidates must be two or more, one of them the output"),
        (ALPACA | {"metric": "bleu"}, "unknown metric 'bleu'"),
        (ALPACA | {"metric": "exact_match"}, "metric exact_match, but rouge_l in the first record"),
        (ALPACA | {"category": 7}, "category is int, not text"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_with_file_line_and_reason(tmp_path, record, reason):
    path = write(tmp_path / "own.jsonl", [*records(150), record, *records(150)])
    (task,) = discover(path).tasks.values()
    result = list(examples(task, "train"))
    (skipped,) = [item for item in result if isinstance(item, Skipped)]
    assert reason in skipped.reason and skipped.where == f"{path}:151"
    assert sum(isinstance(item, Example) for item in result) == 2 * 150 - 2 * 15


def test_a_file_whose_records_change_type_midway_is_refused_and_named(tmp_path):
    path = write(tmp_path / "own.jsonl", [*records(100), *[{"other": 1}] * 100])
    (task,) = discover(path).tasks.values()
    with pytest.raises(DataError, match=r"own\.jsonl:101: has other.*100 of 190 records.*--allow_bad_records"):
        list(examples(task, "train"))


def test_a_tenth_is_held_out_and_no_question_is_on_both_sides(tmp_path):
    path = write(tmp_path / "own.jsonl", records(200) + records(50))  # fifty come twice
    (task,) = discover(path).tasks.values()
    sides = {split: [example.source for example in examples(task, split)] for split in ("train", "validation")}
    assert sum(map(len, sides.values())) == 250 and 20 <= len(sides["validation"]) <= 50
    requests = {split: {source.split("thing ")[1].split()[0] for source in result} for split, result in sides.items()}
    assert not requests["train"] & requests["validation"]
    assert len(requests["validation"]) == 20
    for count in (0, 7):
        (task,) = discover(path, held_out_instances=count).tasks.values()
        present = list(examples(task, "validation")) if "validation" in task.splits else []
        assert len({example.source.split("thing ")[1].split()[0] for example in present}) == count
    (small,) = discover(write(tmp_path / "small.jsonl", records(9))).tasks.values()
    assert len(list(examples(small, "train"))) == 9 and not list(examples(small, "validation"))


def test_a_folder_with_splits_is_one_task_and_keeps_them(tmp_path):
    for split, count in {"train": 30, "validation": 5, "test": 4}.items():
        write(tmp_path / "data" / "colours" / f"{split}.jsonl", records(count))
    write(tmp_path / "data" / "only_test" / "test.jsonl", records(3, category="New"))
    write(tmp_path / "data" / "more.jsonl", records(20))
    benchmark = discover(tmp_path / "data")
    assert benchmark.tasks.keys() == {"jsonl.colours", "jsonl.only_test.new", "jsonl.more"}
    assert len(list(examples(benchmark.tasks["jsonl.colours"], "train"))) == 30
    requests = {(part.task.name, part.split, part.level) for part in suites.suite("jsonl").parts(benchmark)}
    assert requests == {
        ("jsonl.colours", "validation", "held_out_instances"),
        ("jsonl.colours", "test", "held_out_instances"),
        ("jsonl.more", "validation", "held_out_instances"),
        ("jsonl.only_test.new", "test", "fully_held_out"),
    }
    assert {task.name for task in mixtures.mixture("jsonl").tasks(benchmark)} == {"jsonl.colours", "jsonl.more"}


def test_a_folder_with_splits_is_evaluated_on_test_and_validated_on_validation(tmp_path):
    """Records of equal numbers in the two files are two questions, and their scores are never pooled."""
    for split, first, count in (("train", 0, 40), ("validation", 100, 5), ("test", 200, 4)):
        write(tmp_path / "data" / f"{split}.jsonl", records(first + count)[first:])
    result = ledger_job.run(suites.suite("jsonl"), str(tmp_path / "data"), tmp_path / "cache", may_be_empty=True)
    prompts = read_ledger(result.path)
    assert len({item.id for item in prompts}) == len(prompts) == 9
    for validating, count, split in ((True, 5, "validation"), (False, 4, "test")):
        chosen = of_split(prompts, validating)
        assert len(chosen) == count and {item.split for item in chosen} == {split}
    (tmp_path / "data" / "test.jsonl").unlink()
    result = ledger_job.run(suites.suite("jsonl"), str(tmp_path / "data"), tmp_path / "cache", may_be_empty=True)
    prompts = read_ledger(result.path)
    assert of_split(prompts, True) == of_split(prompts, False) == prompts and len(prompts) == 5


def test_categories_make_tasks(tmp_path):
    kinds = ["Open QA", "Summarization", "Open QA", "Summarization"]
    path = write(
        tmp_path / "dolly.jsonl", [ALPACA | {"input": str(i), "category": kind} for i, kind in enumerate(kinds)]
    )
    benchmark = discover(path, held_out_instances=0)
    assert {name: task.category for name, task in benchmark.tasks.items()} == {
        "jsonl.dolly.open_qa": "open_qa",
        "jsonl.dolly.summarization": "summarization",
    }
    assert [example.id for example in examples(benchmark.tasks["jsonl.dolly.summarization"], "train")] == ["2", "4"]
    write(path, [ALPACA | {"category": f"kind {i}"} for i in range(1200)])
    with pytest.raises(DataError, match=r"dolly\.jsonl: .*1,000 categories"):
        discover(path)


def test_demonstrations_follow_a_shared_instruction_and_precede_others(tmp_path):
    (task,) = discover(write(tmp_path / "own.jsonl", records(10))).tasks.values()
    first, second, third, *_ = task.read("train")
    example, ids = demonstrations.render(task, third, task.templates[0], (first, second))
    plain = task.render(third, task.templates[0])
    assert example.source.count("Name the colour.") == 1 and ids == (first.id, second.id)
    assert example.source.startswith(plain.source[: plain.input_start]) and example.source.count("\n\n\n") == 2
    without = "".join(part for i, part in enumerate(_split(example)) if i % 2 == 0)
    assert without == plain.source
    write(tmp_path / "own.jsonl", [{"prompt": f"{i}?", "completion": str(i)} for i in range(10)])
    (task,) = discover(tmp_path / "own.jsonl").tasks.values()
    first, second, *_ = task.read("train")
    example, _ = demonstrations.render(task, second, task.templates[0], (first,), "\n--\n")
    number = first.fields["prompt"][:-1]
    assert example.source == f"{number}? {number}\n--\n{second.fields['prompt']}"


def _split(example):
    ends = [0, *(end for span in example.demonstration_spans for end in span), len(example.source)]
    return [example.source[start:stop] for start, stop in itertools.pairwise(ends)]


def test_what_is_no_data_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        discover(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no records of the form"):
        discover(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt: not one of \.jsonl"):
        discover(tmp_path / "notes.txt")
    write(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl: the file is empty"):
        discover(tmp_path / "empty.jsonl")
    assert str(mixtures.mixture("jsonl+samples").benchmarks) == "('jsonl', 'samples')"
    with pytest.raises(UserError, match="sampels; did you mean samples"):
        mixtures.mixture("jsonl+sampels")
