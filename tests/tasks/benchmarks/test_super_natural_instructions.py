"""The adapter on real task files of all three schemas (where they are at hand) and on files written here."""

import json
import re

import pytest

from optiml_jax.common.errors import DataError
from optiml_jax.data.specification import CacheOptions
from optiml_jax.tokenizer import join
from tasks import suites
from tasks.benchmarks import super_natural_instructions as ni
from tasks.catalog import registry
from tasks.example import Example, Record, Skipped
from tasks.prompting import demonstrations, prompts
from tasks.prompting.prompts import DELIMITERS
from tasks.prompting.subsampling import examples
from tests.tasks.conftest import NAME, write_splits, write_task

# files and instances of each schema, by jq: of the real samples, and of those written for the tests
FOLDERS = {
    "tasks": {(260, 23_573), (2, 8)},
    "tasks_reduced_schema": {(9, 690), (1, 4)},
    "tasks_2021_schema": {(24, 2_400), (1, 4)},
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_schema_gives_what_its_json_holds(raw_data, folder):
    """Against the raw JSON, read with nothing but the json module; counts by jq."""
    files = sorted((raw_data / NAME / folder).glob("*.json"))
    count = 0
    for file in files:
        raw = json.loads(file.read_text(encoding="utf-8"))
        definition = raw["Definition"] if isinstance(raw["Definition"], str) else raw["Definition"][0]
        records = list(ni.read(file))
        assert len(records) == len(raw["Instances"]) and len({r.id for r in records}) == len(records)
        for record, instance in zip(records, raw["Instances"]):
            outputs = instance["output"] if isinstance(instance["output"], list) else [instance["output"]]
            assert record.fields["definition"] == definition.strip()
            assert record.fields["input"] == instance["input"].strip()
            assert sorted(record.fields["outputs"]) == sorted({output.strip() for output in outputs})
            assert record.id == instance.get("id", record.id)
        count += len(records)
    assert (len(files), count) in FOLDERS[folder]


def test_every_source_is_definition_input_and_a_delimiter(raw_data):
    """On all 23,573 real instances: nothing is lost, repeated or reordered."""
    benchmark = registry.discover(NAME, raw_data)
    for task in benchmark.tasks.values():
        for record in ni.read(task.files[0]):
            example = task.render(record, task.templates[0])
            source = re.sub("^(Instructions|Task): ", "", example.source)
            definition, text = record.fields["definition"], record.fields["input"]
            assert source.startswith(definition)
            rest = source.removeprefix(definition).removeprefix("\n").removeprefix("Input: ")
            assert rest in [text + d for d in ("", *DELIMITERS)] and (rest != text or text.endswith(":"))
            assert example.target in example.references == record.fields["outputs"]


def test_the_real_record_of_figure_7_is_printed_as_in_the_paper(shared):
    paper = (shared / "paper" / "opt-iml.md").read_text(encoding="utf-8")
    printed = re.search(r"(Instructions: You are provided with an arithmetic.*?)\n\nFigure 7:", paper).group(1)
    task = registry.discover(NAME, shared / "data").tasks[f"{NAME}.task745_ai2_arithmetic_questions_arithmetic"]
    record = next(r for r in task.read("train") if r.fields["input"].startswith("Sam went to 14 football"))
    drawn = {
        "".join(join(e.source, e.target))
        for i in range(1500)
        for e in [task.render(Record(str(i), record.fields), *task.templates)]
    }
    letters = {
        re.sub(r"\s|['‘’]", "", text) for text in drawn
    }  # the file has "lastyear", the figure typographic quotes
    assert re.sub(r"\s|['‘’]", "", printed) in letters


def test_the_catalog_agrees_with_the_official_splits_and_the_files(shared):
    directory = shared / "data" / NAME
    catalog = registry.catalog(NAME)
    assert len(catalog) == 1613
    for role, count in {"train": 757, "test": 119, "excluded": 737}.items():
        names = (directory / "splits" / "default" / f"{role}_tasks.txt").read_text().split()
        assert len(names) == count
        assert {registry.task_name(NAME, name) for name in names} == {
            r.name for r in catalog.values() if r.split == role or (role, r.split) == ("excluded", "test_xlingual")
        }
    across = (directory / "splits" / "xlingual" / "test_tasks.txt").read_text().split()
    assert len(across) == 35  # by later names: the numbers are theirs
    numbers = {re.match(r"task\d+", name)[0] for name in across}
    assert numbers == {re.search(r"task\d+", r.name)[0] for r in catalog.values() if r.split == "test_xlingual"}
    for file in (directory / "tasks").glob("*.json"):
        raw, row = json.loads(file.read_text(encoding="utf-8")), catalog[registry.task_name(NAME, file.stem)]
        assert (row.category, row.source) == (registry.slug(raw["Categories"][0]), raw["Source"][0])


def test_the_real_folder_holds_these_tasks_and_levels(shared):
    benchmark = registry.discover(NAME, shared / "data")
    assert {role: len(benchmark.listed(role)) for role in ("train", "test", "excluded")} == {
        "train": 188,
        "test": 25,
        "excluded": 47,
    }
    # the official default split tests new categories only
    assert [part.level for part in suites.by_official_lists(benchmark)] == ["fully_held_out"] * 25
    assert {task.templates[0].metric.name for task in benchmark.tasks.values()} == {
        "rouge_l"
    } and not benchmark.left_out


def test_splits_roles_and_levels_follow_the_folders_lists(data_dir):
    benchmark = registry.discover(NAME, data_dir)
    levels = {part.task.name: part.level for part in suites.by_official_lists(benchmark)}
    about = {
        name.removeprefix(f"{NAME}."): (benchmark.rows[name].split, levels.get(name), task.category)
        for name, task in benchmark.tasks.items()
    }
    assert about == {
        "task1_one": ("train", None, "fill_in_the_blank"),
        "task2_two_too": ("train", None, "question_answering"),
        "task3_new": ("test", "fully_held_out", "title_generation"),
        "task4_known": ("test", "held_out_task", "question_answering"),
        "task5_out": ("excluded", None, "fill_in_the_blank"),
    }
    assert {task.splits for task in benchmark.tasks.values()} == {("train", "test")}
    assert [(item.where.rsplit("/", 1)[1], item.reason) for item in benchmark.left_out] == [
        ("task6_nowhere.json", "in no split")
    ]


def test_without_lists_the_catalog_gives_the_split(tmp_path):
    directory = tmp_path / NAME
    for name in ("task001_quoref_question_generation", "task1344_glue_entailment_classification", "task9_unknown"):
        write_task(directory, name)
    benchmark = registry.discover(NAME, tmp_path)
    assert {name.split(".")[1].split("_")[0]: benchmark.rows[name].split for name in benchmark.tasks} == {
        "task001": "train",
        "task1344": "test",
    }
    assert len(benchmark.left_out) == 1


def test_a_test_task_is_its_first_hundred_instances_in_file_order(data_dir):
    task = registry.discover(NAME, data_dir).tasks[f"{NAME}.task3_new"]
    assert [example.id for example in examples(task, "test")] == [f"two-{i}" for i in range(100)]


def test_a_test_task_that_is_trained_on_has_none_of_its_evaluated_inputs(tmp_path):
    """Also not under another id, as opt_iml and opt_iml_max train on test tasks."""
    instances = [{"id": f"n{i}", "input": f"Question {i}", "output": ["x"]} for i in range(130)]
    instances += [{"id": "again", "input": "Question 7", "output": ["y"]}]
    for name in ("task1_tested", "task2_trained"):
        write_task(tmp_path / NAME, name, instances)
    write_splits(tmp_path / NAME, test=["task1_tested"], train=["task2_trained"])
    tasks = registry.discover(NAME, tmp_path).tasks
    ids = {
        name: [e.id for e in examples(tasks[f"{NAME}.{name}"], "train")] for name in ("task1_tested", "task2_trained")
    }
    assert ids["task1_tested"] == [f"n{i}" for i in range(100, 130)] and len(ids["task2_trained"]) == 131


def test_held_out_instances_are_chosen_by_id_and_belong_to_one_split_only(data_dir):
    benchmark = registry.discover(NAME, data_dir, CacheOptions(held_out_instances=20))
    task = benchmark.tasks[f"{NAME}.task2_two_too"]
    train, validation = ([e.id for e in examples(task, split)] for split in ("train", "validation"))
    assert len(validation) == 20 and set(train) | set(validation) == {f"two-{i}" for i in range(150)}
    assert len(train) == 130
    levels = {part.task.name: (part.split, part.level) for part in suites.by_official_lists(benchmark)}
    assert levels[task.name] == ("validation", "held_out_instances")
    path = task.files[0]
    raw = json.loads(path.read_text())
    raw["Instances"] = raw["Instances"][::-1]
    path.write_text(json.dumps(raw))
    assert {e.id for e in examples(task, "validation")} == set(validation)  # whatever the order of the file


def test_an_input_that_comes_twice_is_never_held_out(tmp_path):
    same = [{"id": f"a{i}", "input": f"Question {i // 2}", "output": ["x"]} for i in range(20)]
    path = write_task(tmp_path, "task1", [*same, {"id": "alone", "input": "Only once", "output": ["x"]}])
    held_out = ni.read_split(path, "t", 5, False, "validation")
    assert [record.id for record in held_out] == ["alone"]


def test_missing_ids_are_made_of_the_content_and_repeated_ones_numbered(tmp_path):
    instances = [
        {"input": "a", "output": "x"},
        {"input": "a", "output": "x"},
        {"input": "b", "output": "x"},
        {"id": "n 1\n", "input": "c", "output": ["x"]},
        {"id": "n_1", "input": "c", "output": ["x"]},
    ]
    ids = [record.id for record in ni.read(write_task(tmp_path, "t", instances))]
    assert ids[1] == f"{ids[0]}#2" and ids[0] != ids[2] and ids[3:] == ["n_1", "n_1#2"]
    again = [record.id for record in ni.read(write_task(tmp_path, "t", instances[1:3]))]
    assert again == [ids[0], ids[2]]  # an id does not depend on the place in the file


def test_texts_are_stripped_and_references_come_once(tmp_path):
    instance = {"id": "1", "input": " in \n", "output": [" b", "a", "b ", "", "a"]}
    (record,) = ni.read(write_task(tmp_path, "t", [instance], Definition=" Do it.\n\n"))
    assert record == Record("1", {"definition": "Do it.", "input": "in", "outputs": ("b", "a")})


@pytest.mark.parametrize(
    "instance, reason",
    [
        ({"input": "a", "output": []}, "output is empty"),
        ({"input": "a", "output": [" "]}, "output is empty"),
        ({"input": "a", "output": None}, "output is neither text nor a list of texts"),
        ({"input": "a", "output": ["x", 3]}, "output is neither text nor a list of texts"),
        ({"input": 5, "output": ["x"]}, "input is int, not text"),
        ({"output": ["x"]}, "input is NoneType, not text"),
        ("a", "the instance is str, not an object"),
        ({"input": "\ud83d", "output": ["x"]}, "text with half a surrogate pair"),
    ],
)
def test_a_bad_record_is_skipped_with_its_place_and_reason(tmp_path, instance, reason):
    good = [{"id": str(i), "input": f"q{i}", "output": ["x"]} for i in range(2)]
    path = write_task(tmp_path, "t")
    task = {"Definition": "Do it.", "Instances": [good[0], instance, good[1]]}
    path.write_text(json.dumps(task))  # escapes the lone surrogate
    records = list(ni.read(path))
    assert [r.id for r in records if isinstance(r, Record)] == ["0", "1"]
    assert records[1] == Skipped(f"{path}#1", reason)


def one_bad_in(tmp_path, count, options=None):
    instances = [{"id": str(i), "input": f"q{i}", "output": ["x"] if i else []} for i in range(count)]
    write_task(tmp_path / NAME, "task1", instances)
    write_splits(tmp_path / NAME, train=["task1"])
    return registry.discover(NAME, tmp_path, options or CacheOptions()).tasks[f"{NAME}.task1"]


def test_one_bad_record_in_a_hundred_is_tolerated(tmp_path):
    result = list(examples(one_bad_in(tmp_path, 100), "train"))
    assert len(result) == 100 and isinstance(result[0], Skipped)


def test_more_than_one_bad_record_in_a_hundred_is_an_error_unless_allowed(tmp_path):
    with pytest.raises(DataError, match=r"task1.json#0: output is empty \(1 of 99 records\).*--allow_bad_records"):
        list(examples(one_bad_in(tmp_path, 99), "train"))
    assert len(list(examples(one_bad_in(tmp_path, 99, CacheOptions(allow_bad_records=True)), "train"))) == 99


def test_a_task_without_a_usable_record_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"train .*--allow_empty"):
        list(examples(one_bad_in(tmp_path, 1, CacheOptions(allow_bad_records=True)), "train"))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the file is empty; fetch the file again or remove it"),
        (b'{"Definition": ["Do it."], "Inst', r"not JSON \(.*line 1 column 28.*\); fetch the file again or remove it"),
        (b"[]", 'no list "Instances"; is this a Super-NaturalInstructions task'),
        (b'{"Definition": "Do it."}', 'no list "Instances"; is this a Super-NaturalInstructions task'),
        (b'{"Definition": [], "Instances": []}', 'no text "Definition"; is this'),
        (
            b'{"Definition": "Do it.", "Instances": []}',
            '"Instances" is empty; correct or remove the file, or pass --allow_empty_tasks',
        ),
        (b'{"Definition": "caf\xe9", "Instances": []}', "not UTF-8 at byte 19; fetch the file again"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it_and_the_way_out(tmp_path, content, message):
    path = tmp_path / "task012_x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: {message}") as error:
        list(ni.read(path))
    assert "\n" not in str(error.value)


def test_an_empty_task_may_be_allowed(tmp_path):
    assert list(ni.read(write_task(tmp_path, "t", []), allow_empty=True)) == []


def test_two_files_of_one_task_and_a_task_in_two_splits_are_errors(data_dir):
    write_task(data_dir / NAME, "task2_two_too")
    with pytest.raises(DataError, match=r"task2_two_too\.json: .*task2_two-too\.json"):
        registry.discover(NAME, data_dir)
    (data_dir / NAME / "tasks" / "task2_two_too.json").unlink()
    write_splits(data_dir / NAME, train=["task1_one"], test=["task1_one"])
    with pytest.raises(DataError, match=r"task1_one is in train_tasks.txt too"):
        registry.discover(NAME, data_dir)


def test_a_folder_without_known_tasks_is_an_error(tmp_path):
    (tmp_path / NAME / "tasks").mkdir(parents=True)
    with pytest.raises(DataError, match="no file of a known task in tasks/"):
        registry.discover(NAME, tmp_path)


def test_the_schema_of_release_1_is_read(tmp_path):
    """Its names lead to the catalog's, its definition is in three parts of which "-" says nothing."""
    fields = {
        "Title": "",
        "Prompt": "Answer.",
        "Things to Avoid": "Do not guess.",
        "Emphasis & Caution": " - ",
        "Examples": {"Positive Examples": [{"input": "q", "output": "a", "reason": "why"}], "Negative Examples": []},
    }
    del (raw := json.loads(write_task(tmp_path, "subtask010_mctaco_answer_generation_event_ordering").read_text()))[
        "Positive Examples"
    ]
    path = tmp_path / "tasks" / "subtask010_mctaco_answer_generation_event_ordering.json"
    path.write_text(json.dumps(raw | fields | {"Definition": "Order the events. "}))
    (task,) = ni.discover(tmp_path, CacheOptions()).tasks.values()
    assert task.name == f"{NAME}.task010_mctaco_answer_generation_event_ordering"
    assert task.category == registry.catalog(NAME)[task.name].category
    record = next(task.read("train"))
    assert record.fields["definition"] == "Order the events. Do not guess."
    shown = next(task.read("shown"))
    assert (shown.fields["input"], shown.fields["outputs"]) == ("q", ("a",))


def test_real_files_of_release_1_are_read(shared, tmp_path):
    directory = shared / "data" / "natural_instructions_v1"
    benchmark = ni.discover(directory, CacheOptions())
    assert len(benchmark.tasks) == 8 and not benchmark.left_out
    for task in benchmark.tasks.values():
        assert all(isinstance(example, Example) for example in examples(task, "train"))
        assert len(list(task.read("shown"))) >= ni.SHOWN or len(list(task.read("train"))) <= ni.TEST_INSTANCES


def test_positive_examples_are_shown_in_their_order_and_filled_up_with_what_is_never_asked(tmp_path):
    positive = [{"input": f"shown {i}", "output": f"out {i}", "explanation": ""} for i in range(2)]
    instances = [{"id": f"i{i}", "input": f"Input {i}", "output": [f"out {i}"]} for i in range(130)]
    write_task(tmp_path, "task1_a", instances, **{"Positive Examples": positive, "Definition": ["Do it."]})
    write_splits(tmp_path, test=["task1_a"])
    (task,) = ni.discover(tmp_path, CacheOptions()).tasks.values()
    shown = list(task.read("shown"))
    assert [record.id for record in shown] == ["positive0", "positive1", "i100", "i101", "i102"]
    chosen = [demonstrations.choose(shown, task.name, "i3", count, 0, drawn=False) for count in (2, 5)]
    assert chosen[0] == tuple(shown[:2]) and chosen[1] == tuple(shown)
    example, ids = demonstrations.render(task, next(task.read("test")), task.templates[0], chosen[0])
    opener, marker, delimiter = _wording(task, "i0")
    shot = "{marker}shown {i}{delimiter} out {i}\n\n\n"
    solved = "".join(shot.format(marker=marker, i=i, delimiter=delimiter) for i in range(2))
    assert example.source == f"{opener}Do it.\n{solved}{marker}Input 0{delimiter}" and ids == ("positive0", "positive1")


def _wording(task, name):
    return (
        prompts.pick("opener", task.name, name, prompts.OPENERS),
        prompts.pick("marker", task.name, name, prompts.MARKERS),
        prompts.pick("delimiter", task.name, name, prompts.DELIMITERS),
    )


def test_the_cross_lingual_track_is_a_suite(tmp_path):
    for name in ("task1_a", "task2_b", "task3_c"):
        write_task(tmp_path, name)
    write_splits(tmp_path, train=["task1_a"], excluded=["task2_b", "task3_c"])
    (tmp_path / "splits" / "xlingual").mkdir()
    (tmp_path / "splits" / "xlingual" / "test_tasks.txt").write_text("task2_b\n")
    benchmark = ni.discover(tmp_path, CacheOptions())
    (part,) = suites.suite(f"{NAME}_xlingual").parts(benchmark)
    assert (part.task.name, part.level, part.shots) == (f"{NAME}.task2_b", "held_out_task", (0, 2))
    assert part.task.templates[0].metric("да", ["да"]) == 1.0  # rouge-score alone would give 0
