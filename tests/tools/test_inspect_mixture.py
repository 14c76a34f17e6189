"""The mixture's table against arithmetic on the raw counts, and the prompts against the tasks."""

import json

import pytest

from optiml_jax.tokenizer import Tokenizer, join
from tasks import registry
from tasks.benchmarks.samples import TOKENIZER
from tasks.pool import examples
from tasks.store import build
from tasks.store.element import Job
from tests.tasks.conftest import NAME, write_splits, write_task
from tools import inspect_mixture

SIZES = {
    "task1": (5000, "Question Answering"),
    "task2": (100, "Title Generation"),
    "task3": (2000, "Question Answering"),
}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("inspect")
    for name, (size, category) in SIZES.items():
        instances = [{"id": f"{name}-{i}", "input": f"q{i}", "output": ["x"]} for i in range(size)]
        write_task(directory / "data" / NAME, name, instances, Categories=[category])
    write_splits(directory / "data" / NAME, train=list(SIZES))
    build.run(Job(NAME, str(directory / "data"), str(directory / "cache")), Tokenizer.load(TOKENIZER))
    return directory / "cache"


def run(cache_dir, *flags: str) -> None:
    inspect_mixture.main([f"--mixture={NAME}", f"--cache_dir={cache_dir}", *(f"--{flag}" for flag in flags)])


def test_the_json_holds_the_contract_and_the_numbers_follow_by_hand(cache_dir, tmp_path):
    run(cache_dir, f"json={tmp_path / 'new' / 'mix.json'}", "train_tokens=1e6")
    mix = json.loads((tmp_path / "new" / "mix.json").read_text())
    capped = {"task1": 4096, "task2": 100, "task3": 2000}
    tokens = {path.parent.name: json.loads(path.read_text())["tokens"] for path in cache_dir.glob("tasks/*/train.json")}
    positions = sum(
        capped[name] / 6196 * (tokens[f"{NAME}.{name}"] / size + 1) for name, (size, _) in SIZES.items()
    )  # of one draw: its tokens and one </s>
    for task, (name, (size, category)) in zip(mix["tasks"], SIZES.items(), strict=True):
        p = capped[name] / 6196
        assert task == {
            "name": f"{NAME}.{name}",
            "benchmark": NAME,
            "category": registry.slug(category),
            "examples": size,
            "capped_examples": capped[name],
            "probability": pytest.approx(p, abs=1e-9),
            "tokens": tokens[f"{NAME}.{name}"],
            "expected_epochs": pytest.approx(1e6 / positions * p / size, rel=1e-9),
        }
    assert mix["benchmarks"] == {NAME: pytest.approx(1, abs=1e-9)}
    assert mix["categories"] == {
        "question_answering": pytest.approx(6096 / 6196, abs=1e-9),
        "title_generation": pytest.approx(100 / 6196, abs=1e-9),
    }


def test_another_cap_changes_the_capped_sizes(cache_dir, tmp_path):
    run(cache_dir, f"json={tmp_path / 'mix.json'}", "eps=100")
    tasks = json.loads((tmp_path / "mix.json").read_text())["tasks"]
    assert [task["capped_examples"] for task in tasks] == [100] * 3
    assert [task["probability"] for task in tasks] == [pytest.approx(1 / 3)] * 3


def test_the_printed_table_is_aligned(cache_dir, capsys):
    run(cache_dir)
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].split("  ")[0] == "name" and lines[0].endswith("expected epochs")
    ends = {len(line) for line in lines[:4]}
    assert len(ends) == 1 and f"{NAME}.task1" in lines[1] and "5,000" in lines[1] and "4,096" in lines[1]
    assert "question_answering      2       0.9839" in "\n".join(lines)


def test_prompts_are_shown_with_source_and_target_apart(cache_dir, capsys):
    data_dir = cache_dir.parent / "data"
    example = next(examples(registry.discover(NAME, data_dir).tasks[f"{NAME}.task2"], "train"))
    run(cache_dir, f"show={NAME}.task2", "examples=1", "row_length=64")
    out = capsys.readouterr().out
    source, target = join(example.source, example.target)
    shown = [line[4:] for line in out.split("\n") if line.startswith("  | ")]
    assert "\n".join(shown) == source and f"  > {target}\n" in out
    assert "100 examples pack into" in out and "rows of 64 tokens" in out


@pytest.mark.parametrize(
    "flags, message",
    [
        ([f"show={NAME}.tsk2"], f"did you mean {NAME}.task2"),
        (["show=sk3"], f"did you mean {NAME}.task3?"),
        (["gin_file=nowhere.gin"], "nowhere.gin is not in"),
        (["cache_dir=/nowhere"], "/nowhere/store.json: no token store here; write one with"),
        (["mixture=super_natural"], "no such mixture in this cache; did you mean super_natural_instructions?"),
        (["eps=0"], "eps is 0"),
        (["html=x"], "unrecognized arguments: --html=x; see --help"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(cache_dir, capsys, flags, message):
    with pytest.raises(SystemExit) as error:
        run(cache_dir, *flags)
    captured = capsys.readouterr().err
    assert error.value.code == 2 and captured.count("\n") == 1 and message in captured, captured


def test_a_task_may_be_named_as_reports_print_it_and_the_table_is_written_all_the_same(cache_dir, tmp_path, capsys):
    run(cache_dir, "show=task2", "examples=1", f"json={tmp_path / 'mix.json'}")
    assert f"{NAME}.task2 train" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "mix.json").read_text())["tasks"]) == 3


def test_a_gin_file_says_which_run_the_epochs_are_of(cache_dir, tmp_path, capsys):
    """Steps x rows x positions, and the run's cap, which is the mixture's own unless the file says otherwise."""
    tables = []
    for number, flags in enumerate(
        (
            ["--gin.TRAIN_STEPS=10", "--gin.BATCH_ROWS=4", "--gin.ROW_LENGTH=250"],
            ["--gin.TRAIN_STEPS=10", "--gin.BATCH_ROWS=4", "--gin.ROW_LENGTH=250", "--gin.EPS=100"],
        )
    ):
        out = tmp_path / f"{number}.json"
        file = "--gin_file=opt125m_super_natural_instructions.gin"
        inspect_mixture.main([file, *flags, f"--gin.CACHE_DIR={cache_dir}", f"--json={out}"])
        assert "those of a run of 10,000 tokens" in capsys.readouterr().out
        tables.append({task["name"]: task for task in json.loads(out.read_text())["tasks"]})
    run(cache_dir, f"json={tmp_path / 'by_flags.json'}", "train_tokens=10000")
    by_flags = json.loads((tmp_path / "by_flags.json").read_text())["tasks"]
    assert list(tables[0].values()) == by_flags
    assert {task["capped_examples"] for task in tables[1].values()} == {100}
