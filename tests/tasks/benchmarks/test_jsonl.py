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


def chat(*turns, **last):
    """A conversation; `last`: further fields of its last message."""
    messages = [{"role": role, "content": text} for role, text in turns]
    messages[-1] |= last
    return {"messages": messages}


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
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "Bye.")]
    (example,) = first_task(tmp_path, chat(*turns))
    assert example.source == "Be brief.\nUser: Hi\nAssistant: Hello.\nUser: Bye\nAssistant:" and example.id == "1"
    assert example.turns() == [
        ("Be brief.\nUser: Hi\nAssistant:", " Hello."),
        ("\nUser: Bye\nAssistant:", " Bye."),
    ]
    shared = [{"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text} for role, text in turns]
    assert first_task(tmp_path, {"conversations": shared}) == [example]
    for name, value in (("weight", 0), ("weight", "0"), ("weight", 0.0), ("train", False), ("train", "false")):
        weighted = chat(*turns)
        weighted["messages"][2][name] = value
        (last_alone,) = first_task(tmp_path, weighted)
        assert (last_alone.source, last_alone.turns()) == (example.source, [(example.source, " Bye.")])
    for name, value in (("weight", None), ("weight", 1), ("weight", "1"), ("train", True), ("name", None)):
        weighted["messages"][2] = {"role": "assistant", "content": "Hello.", name: value}
        assert first_task(tmp_path, weighted) == [example]


def test_a_held_out_conversation_is_a_question_per_turn_and_no_part_of_it_is_trained_on(tmp_path):
    def talk(i: int) -> dict:
        return chat(("user", f"Hi {i}"), ("assistant", f"Hello {i}."), ("user", "Bye"), ("assistant", f"Bye {i}."))

    (task,) = discover(write(tmp_path / "own.jsonl", [talk(i) for i in range(40)]), held_out_instances=5).tasks.values()
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
        ({"instruction": {"a": 3}, "output": "x"}, "instruction is an object, not text"),
        ({"instruction": "x", "output": None}, "has instruction, which is none of"),
        ({"instruction": "x", "output": [["y"]]}, "output is neither text nor a list of texts"),
        ({"instruction": "x", "output": "  "}, "output is empty"),
        ({"instruction": " ", "input": "", "output": "x"}, "instruction is empty"),
        ({"text": " "}, "text is empty"),
        (
            {"prompt": "x", "chosen": "y", "rejected": "z"},
            "or set FIELDS, such as FIELDS='ask=prompt,reply=completion'",
        ),
        ({}, "has nothing, which is none of"),
        ({"messages": "x"}, "messages is text that is not JSON"),
        ({"messages": {"role": "user"}}, "messages is no list of objects"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 1 is role 'robot'; known: system"),
        ({"messages": [{"content": "x"}]}, "message 1 is without role or from"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no turn of the assistant"),
        ({"messages": [{"role": "user"}]}, "message 1 lacks content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message 1 contains 'image_url'"),
        (chat(("user", "x"), ("assistant", "y"), weight=0.5), "weight of message 2 is 0.5; it must be 0 or 1"),
        (chat(("user", "x"), ("assistant", "y"), train="maybe"), "train of message 2 is 'maybe'"),
        (ALPACA | {"history": [["a"]]}, "history is no list of pairs"),
        (ALPACA | {"candidates": ["red", "blue"]}, "candidates must be two or more, one of them the output"),
        (ALPACA | {"metric": "bleu"}, "unknown metric 'bleu'"),
        (ALPACA | {"metric": "exact_match"}, "metric exact_match (plain), but rouge_l (unicode) in the first record"),
        (ALPACA | {"category": ["x"]}, "category is a list, not text"),
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
    assert len(list(examples(small, "train"))) == 9 and small.splits == ("train",)
    (note,) = discover(tmp_path / "small.jsonl").notes
    assert note == "jsonl.small: nothing is held out for evaluation, because it has 9 questions, fewer than 10"
    assert not discover(tmp_path / "small.jsonl", held_out_instances=0).notes


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


def only(tmp_path, record, **options):
    """The single example of a record, as context and label."""
    (example,) = first_task(tmp_path, record, **options)
    assert not isinstance(example, Skipped), example
    return example


SIDES = "Q: 2\nA:", "4"


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": SIDES[0], "completion": SIDES[1]},
        {"prompt": SIDES[0], "response": SIDES[1]},
        {"input": SIDES[0], "output": SIDES[1], "instruction": None},
        {"prompt": SIDES[0], "completion": 4, "messages": None, "weight": None},
        {"prompt": SIDES[0], "completion": " 4\n", "candidates": [], "references": None},
        {"prompt": SIDES[0], "completion": "4", "messages": float("nan"), "category": None},
    ],
)
def test_pairs_under_other_names_and_null_fields(tmp_path, record):
    example = only(tmp_path, record)
    assert (example.source, example.target, example.candidates) == (*SIDES, None)


def test_fields_map_columns_of_other_names(tmp_path):
    record = {"ask": SIDES[0], "reply": SIDES[1], "kind": "sums"}
    path = write(tmp_path / "own.jsonl", [record] * 3)
    with pytest.raises(DataError, match="has ask, kind, reply, which is none of"):
        discover(path)
    benchmark = discover(path, fields="ask=prompt, reply=completion,kind=category")
    assert benchmark.tasks.keys() == {"jsonl.own.sums"}
    example = next(examples(benchmark.tasks["jsonl.own.sums"], "train"))
    assert (example.source, example.target) == SIDES
    for wrong in ("ask", "ask=promt", "=prompt"):
        with pytest.raises(UserError, match=r"FIELDS: .* is not column=field; fields are instruction"):
            discover(path, fields=wrong)


@pytest.mark.parametrize(
    "completion, label",
    [
        ("    return x\n", "    return x"),
        ("\n    return x", "\n    return x"),
        ("\treturn x", "\treturn x"),
        (" return x", " return x"),
        ("return x", " return x"),
        (True, " true"),
        (3.5, " 3.5"),
    ],
)
def test_indentation_and_line_breaks_at_the_start_of_an_answer_remain(tmp_path, completion, label):
    assert only(tmp_path, {"prompt": "def f(x):", "completion": completion}).turns() == [("def f(x):", label)]
    (turn,) = only(
        tmp_path, chat(("user", "Go on"), ("assistant", completion if isinstance(completion, str) else label))
    ).turns()
    assert turn == ("User: Go on\nAssistant:", label)
    example = only(tmp_path, {"instruction": "Complete", "input": "    x = 1", "output": completion})
    assert example.turns()[0][1] == label and "x = 1" in example.source


def test_an_instruction_with_a_history_or_a_system_message_is_a_conversation(tmp_path):
    pairs = {"history": [["Hi", "Hello."], ["How?", "Well."]], "system": "Be brief."}
    example = only(tmp_path, {"instruction": "Name it.", "input": "grass", "output": "green", **pairs})
    assert example.turns() == [
        ("Be brief.\nUser: Hi\nAssistant:", " Hello."),
        ("\nUser: How?\nAssistant:", " Well."),
        ("\nUser: Name it.\ngrass\nAssistant:", " green"),
    ]
    empty = only(tmp_path, ALPACA | {"history": [], "system": ""})
    assert empty == only(tmp_path, ALPACA)
    shared = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "system": "Sing."}
    assert only(tmp_path, shared).source == "Sing.\nUser: Hi\nAssistant:"


def test_conversations_in_other_forms(tmp_path):
    want = only(tmp_path, chat(("user", "Hi"), ("assistant", "Ho")))
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    replies = [{"role": "assistant", "text": text, "rank": rank} for text, rank in (("No", 1), ("Ho", 0), ("Hm", None))]
    for record in (
        chat(("human", "Hi"), ("ChatGPT", "Ho")),
        chat(("prompter", "Hi"), ("assistant", "Ho")),
        chat(("user", parts), ("assistant", [{"type": "text", "text": "Ho"}])),
        {"thread": [{"role": "prompter", "text": "Hi"}, {"role": "assistant", "text": "Ho", "weight": None}]},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}]},
        {"messages": json.dumps(chat(("user", "Hi"), ("assistant", "Ho"))["messages"]), "id": "7"},
        {"prompt": {"role": "prompter", "text": "Hi", "replies": replies}},
    ):
        assert only(tmp_path, record) == want
    earlier = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    example = only(tmp_path, {"prompt": earlier, "completion": [{"role": "assistant", "content": "d"}]})
    assert example.turns() == [("User: a\nAssistant: b\nUser: c\nAssistant:", " d")]  # TRL learns completions only


def test_calls_of_tools_are_text(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "no", "tool_call_id": "1"},
        {"role": "assistant", "content": "No."},
    ]
    example = only(tmp_path, {"messages": messages})
    assert example.turns() == [
        ("User: Rain?\nAssistant:", ' {"name": "weather", "arguments": {"city": "Zürich"}}'),
        ("\nTool: no\nAssistant:", " No."),
    ]


def test_a_text_alone_is_learned_whole_and_never_held_out(tmp_path):
    assert only(tmp_path, {"text": "Once upon\na time. "}).turns() == [("", "Once upon\na time.")]
    path = write(tmp_path / "own.jsonl", [{"text": f"Story {i}"} for i in range(50)])
    benchmark = discover(path)
    (task,) = benchmark.tasks.values()
    assert task.splits == ("train",) and len(list(examples(task, "train"))) == 50
    assert benchmark.notes == (
        "jsonl.own: nothing is held out for evaluation, because it has texts without a question",
    )


def test_fields_that_nothing_reads_are_named_once_with_their_number(tmp_path):
    shared = [chat(("user", f"Hi {i}"), ("assistant", "Ho"), name="x") | {"id": i, "tools": "[]"} for i in range(20)]
    path = write(tmp_path / "own.jsonl", [*shared, ALPACA | {"id": 3}])
    (note,) = discover(path).notes
    assert (
        note == f"{path}: fields that are not used: id (21 records), messages of name (20 records), tools (20 records)"
    )


@pytest.mark.parametrize(
    "categories, names",
    [
        (["数学", "历史", "地理"], {"数学", "历史", "地理"}),
        (["C", "C++", "C#", "c"], {"c", "c_plus_plus", "c_sharp"}),
        ([None, "Sums", "Sums"], {"unknown", "sums"}),
        (["Наука", "наука", "🙂"], {"наука", "u1f642"}),
        (["Open QA", "open-qa", 7], {"open_qa", "7"}),
    ],
)
def test_a_task_per_category_in_every_script(tmp_path, categories, names):
    records = [ALPACA | {"category": category, "input": str(i)} for i, category in enumerate(categories)]
    benchmark = discover(write(tmp_path / "own.jsonl", records))
    assert benchmark.tasks.keys() == {f"jsonl.own.{name}" for name in names}
    assert sum(len(list(examples(task, "train"))) for task in benchmark.tasks.values()) == len(records)


def test_splits_by_their_usual_names_and_files_beside_them(tmp_path):
    for name in ("train", "dev", "val", "test", "extra"):
        write(tmp_path / "own" / f"{name}.jsonl", [ALPACA | {"input": f"{name} {i}"} for i in range(4)])
    benchmark = discover(tmp_path / "own")
    (task,) = benchmark.tasks.values()
    assert task.splits == ("train", "validation", "test")
    assert [len(list(examples(task, split))) for split in task.splits] == [4, 8, 4]
    (left_out,) = benchmark.left_out
    assert left_out.where.endswith("extra.jsonl") and left_out.reason.startswith(
        "beside a train split, files are splits"
    )
    (tmp_path / "own" / "train.jsonl").unlink()  # then every file is a data set of its own
    assert discover(tmp_path / "own").tasks.keys() == {f"jsonl.{name}" for name in ("dev", "val", "test", "extra")}


def test_a_table_and_a_list_under_a_name_are_files_of_records(tmp_path):
    (tmp_path / "own.csv").write_text("prompt,completion\n2 + 2 =,4\n1 + 1 =,2\n")
    (tmp_path / "list.json").write_text(json.dumps({"data": records(3)}, indent=2))
    benchmark = discover(tmp_path)
    assert {name: len(list(examples(task, "train"))) for name, task in benchmark.tasks.items()} == {
        "jsonl.list": 3,
        "jsonl.own": 2,
    }


def test_a_file_of_three_records_is_trained_on_and_its_ledger_is_empty(tmp_path):
    path = write(tmp_path / "three.jsonl", records(3))
    result = ledger_job.run(suites.suite("jsonl"), str(path), tmp_path / "cache", may_be_empty=True)
    assert result.count == 0 and not result.skipped


def test_the_reviews_files_are_read_as_they_are_meant(shared):
    inputs = shared / "review" / "inputs"
    counts = {}
    with pytest.raises(DataError, match=r"weight_str\.jsonl:1: weight of message 4 is 0\.5; it must be 0 or 1"):
        discover(inputs / "weight_str.jsonl")
    paths = {*inputs.glob("*.jsonl"), *inputs.glob("*.parquet"), inputs / "split", inputs / "val"}
    for path in sorted(paths - {inputs / "weight_str.jsonl"}):
        tasks = discover(path, held_out_instances=0, allow_bad_records=True).tasks
        items = [item for task in tasks.values() for item in examples(task, "train")]
        counts[path.name] = len(tasks), len(items), sum(isinstance(item, Skipped) for item in items)
    tasks = dict.fromkeys(("cat_case.jsonl", "cat_late.jsonl", "cat_zh.jsonl"), 3)
    assert {name: count for name, (count, _, _) in counts.items() if count > 1} == tasks
    assert {name: bad for name, (_, _, bad) in counts.items() if bad} == {"onebad.jsonl": 1}
    twelve = ("chat_code.jsonl", "code.jsonl", "instr_code.jsonl", "weightnull.jsonl", "weights.parquet")
    sizes = {"cat_case.jsonl": 30, "cat_zh.jsonl": 30, "onebad.jsonl": 21, "three.jsonl": 3, "zh.jsonl": 30}
    sizes |= {"zh2.jsonl": 200, **dict.fromkeys(twelve, 12)}
    assert {name: count for name, (_, count, _) in counts.items()} == dict.fromkeys(counts, 20) | sizes
