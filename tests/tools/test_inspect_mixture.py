"""The mixture's table against arithmetic on the raw counts, and the prompts against the tasks."""

import dataclasses
import json
import re

import numpy as np
import pytest

from optiml_jax.data.demonstrations import separator_ids
from optiml_jax.data.loader import Loader
from optiml_jax.data.settings import Data
from optiml_jax.tokenizer import Tokenizer, join
from tasks.benchmarks.samples import TOKENIZER
from tasks.caching import build
from tasks.caching.work_item import Job
from tasks.catalog import registry
from tasks.prompting.subsampling import examples
from tests.browser import colours, dom
from tests.stores import opened
from tests.tasks.conftest import NAME, write_splits, write_task
from tools import cache_tasks, inspect_mixture, mixture_page
from tools.mixture_prompts import Prompts

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
    counts = cache_dir.glob("tasks/*/*/train.json")
    tokens = {path.parents[1].name: json.loads(path.read_text())["tokens"] for path in counts}
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
    run(cache_dir, "show=sk2", "examples=1", "row_length=64")  # a part of one name alone
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    "flags, message",
    [
        ([f"show={NAME}.tsk2"], f"did you mean {NAME}.task2"),
        (["show=task"], "training tasks match in the mixture of"),
        (["gin_file=nowhere.gin"], "nowhere.gin is not in"),
        (["cache_dir=/nowhere"], "/nowhere/store.json: no token store here; write one with"),
        (["mixture=super_natural"], "holds no mixture super_natural; did you mean super_natural_instructions?"),
        (["eps=0"], "eps is 0"),
        (["page=x"], "unrecognized arguments: --page=x; see --help"),
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


def test_the_page_shows_the_rows_that_the_run_of_a_gin_file_trains_on(cache_dir, tmp_path):
    """With settings that change rows: drawn together, without a first `</s>`, at most three documents a row."""
    settings = {
        "ROW_LENGTH": 128,
        "Data.block_draws": 300,
        "Data.leading_eos": False,
        "Data.max_segments": 3,
        "SEED": 5,
    }
    flags = [f"--gin.{name}={value}" for name, value in (settings | {"CACHE_DIR": f"{str(cache_dir)!r}"}).items()]
    out = tmp_path / "rows.html"
    inspect_mixture.main(["--gin_file=opt125m_super_natural_instructions.gin", *flags, f"--html={out}"])
    shown = [[(item["name"], item["id"], item["length"]) for item in row] for row in content(out)["rows"]]
    store = opened(cache_dir)
    fields = {"row_length": 128, "block_draws": 300, "leading_eos": False, "max_segments": 3, "seed": 5}
    with Loader(store, store.manifest, Data(NAME, str(cache_dir), **fields), pad_id=1, eos_id=2) as loader:
        plan = loader.plan(0)
    want = [
        [(d.task, store.example_id(d.task, "train", d.example), d.length) for d in plan.documents(row)]
        for row in range(len(shown))
    ]
    assert shown == want and len(shown) == 12 and max(map(len, shown)) <= 3


@pytest.mark.parametrize("objective", ["label", "suffix", "document"])
def test_demonstrations_and_what_has_the_loss_are_shown(cache_dir, tmp_path, capsys, objective):
    """On the page, in its rows and prompts, and on the terminal; as the run reads them."""
    settings = {"ROW_LENGTH": 256, "SEED": 5, "CACHE_DIR": str(cache_dir), "Data.block_draws": 300}
    settings |= {"DEMONSTRATIONS": 0.5, "MAX_DEMONSTRATIONS": 3, "OBJECTIVE": objective}
    flags = ["--gin_file=opt125m_super_natural_instructions.gin"]
    flags += [f"--gin.{name}={value!r}" for name, value in settings.items()]
    inspect_mixture.main([*flags, f"--html={tmp_path / 'page.html'}", f"--json={tmp_path / 'mix.json'}"])
    printed = capsys.readouterr().out
    assert "demonstrations: none for 35.9% of the examples, 1 for 25.4%, 2 for 20.7%, 3 for 18.0%" in printed
    mix = json.loads((tmp_path / "mix.json").read_text())
    assert (mix["demonstrations"]["few"], mix["demonstrations"]["without"]) == ([], [])
    assert len(mix["demonstrations"]["shares"]) == 4 and mix["demonstrations"]["dropped"] == 0
    caps = {cap["eps"]: cap["tasks"] for cap in mix["caps"]}
    assert caps == {128: 2, 256: 2, 512: 2, 1024: 2, 2048: 1, 4096: 1, 8192: 0, 16384: 0, 10**6: 0}
    store = opened(cache_dir)
    data = Data(NAME, str(cache_dir), row_length=256, seed=5, block_draws=300, batch_rows=1, prefetch=0)
    data = dataclasses.replace(data, demonstrations=0.5, max_demonstrations=3, objective=objective)
    tokenizer = Tokenizer.load(TOKENIZER)
    separators = separator_ids(data, tokenizer.encode)
    page_content, shown = content(tmp_path / "page.html"), 0
    with Loader(store, store.manifest, data, pad_id=1, eos_id=2, separators=separators) as loader:
        for row, batch in zip(page_content["rows"], loader):
            segments, labels = batch.arrays["segment_ids_BT"][0], batch.arrays["label_mask_BT"][0]
            for number, document in enumerate(row, 1):
                inside = segments == number
                assert document["length"] == inside.sum() and document["label"] == labels[inside].sum()
                ids = batch.arrays["tokens_BT"][0][inside][1:]
                assert "".join(part[1] for part in document["parts"]) == tokenizer.decode(ids)
                learned = "".join(part[1] for part in document["parts"] if len(part) > 2)
                assert learned == tokenizer.decode(ids[labels[inside][:-1]])
                shown += any(part[0] == "demonstration" for part in document["parts"])
    assert shown > 5
    inspect_mixture.main([*flags, "--show=task2", "--examples=20"])
    printed = capsys.readouterr().out
    marked = {"label": "  : ", "suffix": "  :> ", "document": "  |> "}[objective]
    assert marked in printed and "> after a mark: has the loss, too" in printed and ", after task2-" in printed
    assert ("  :> " in printed) == (objective != "label")


TAKE = "document.title = 'taken'"
HOSTILE = f'</script><script>{TAKE}</script><img src=x onerror="{TAKE}"> __SCRIPT__ \u2028'


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a mixture of two tasks, one of whose prompts mean harm; with an evaluation of two shots."""
    directory = tmp_path_factory.mktemp("page")
    hostile = [{"id": f"h{i}", "input": f"{HOSTILE} {i}", "output": [HOSTILE]} for i in range(60)]
    plain = [{"id": f"p{i}", "input": "word " * (i + 1), "output": ["yes"]} for i in range(150)]
    positive = [{"input": "shown", "output": "solved", "explanation": ""}] * 2
    write_task(directory / "data" / NAME, "task1_hostile", hostile, Categories=["<b>Bold</b>"])
    write_task(directory / "data" / NAME, "task2_plain", plain)
    write_task(directory / "data" / NAME, "task3_asked", plain, **{"Positive Examples": positive})
    write_splits(directory / "data" / NAME, train=["task1_hostile", "task2_plain"], test=["task3_asked"])
    words = [f"--data_dir={directory / 'data'}", f"--cache_dir={directory / 'cache'}", f"--tokenizer={TOKENIZER}"]
    cache_tasks.main([f"--mixture={NAME}", *words])
    run(directory / "cache", f"html={directory / 'mixture.html'}", "row_length=256")
    return directory / "mixture.html"


def content(page) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])


def test_the_page_holds_the_mixture_in_one_file(page):
    page_content, text = content(page), page.read_text(encoding="utf-8")
    assert [(row[0], row[3]) for row in page_content["tasks"]] == [
        (f"{NAME}.task1_hostile", 60),
        (f"{NAME}.task2_plain", 150),
    ]
    assert [row[5] for row in page_content["tasks"]] == [pytest.approx(60 / 210), pytest.approx(150 / 210)]
    assert page_content["benchmarks"] == [[NAME, 2, 1.0, pytest.approx(1)]] and len(page_content["categories"]) == 2
    kinds = [[kind for kind, *_ in prompt["parts"]] for prompt in page_content["prompts"]]
    assert kinds.count(["source", "target"]) == 3 + 3 + 1  # three of each task, and a zero-shot question
    assert sorted(kind.count("demonstration") for kind in kinds)[-3:] == [0, 2, 5]  # filled up to five
    for row in page_content["rows"]:
        assert sum(document["length"] for document in row) <= page_content["row_length"] == 256
        assert all(0 < document["label"] <= document["length"] for document in row)
    assert (
        sum(share for _, share, _ in page_content["lengths"])
        == pytest.approx(1)
        == sum(d for *_, d in page_content["lengths"])
    )
    assert not re.search(r"(src|href)=\"?http|@import|url\(", text)


def test_text_of_the_data_stays_text(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 2 and text.count("</script>") == 2 and "<img" not in text and "\u2028" not in text
    assert any(HOSTILE in part[1] for prompt in content(page)["prompts"] for part in prompt["parts"])
    assert "default-src 'none'" in text and "unsafe" not in text


@pytest.mark.parametrize("size", [(1300, 1600), (420, 1600)])
def test_the_page_in_a_browser(page, size):
    """Its script runs under its own policy and draws everything; what the data holds of scripts does not run."""
    page_content = dom(page)
    assert (
        f"<title>Mixture {NAME}</title>" in page_content
        and "2 of 2 tasks" in page_content
        and "prompts</span>" in page_content
    )
    assert (
        "&lt;/script&gt;&lt;script&gt;document.title" in page_content
        and "<img" not in page_content
        and "<b>Bold" not in page_content
    )
    drawn = [(0x3B, 0x6F, 0xD4), (0xC3, 0xD3, 0xF1), (0xD3, 0xF0, 0xDF)]  # both kinds of bars, the target of a prompt
    pixels = colours(page, *size)
    assert all(pixels.get(colour, 0) > 200 for colour in drawn)


def test_a_page_of_2000_tasks_stays_below_5_megabytes(page):
    class Store:
        directory = "cache"

        def load_tokenizer(self):
            return Tokenizer.load(TOKENIZER)

        def read_many(self, split, examples):
            return [self.read(task, split, i) for task, i in examples]

        def lengths(self, task, split):
            return np.full(50, 300)

        def earlier_labels(self, task, split):
            return None

        def parts(self, task, split, i):
            ids, start = self.read(task, split, i)
            return [("source", ids[:start]), ("target", ids[start:])]

        def chunk_flags(self, task, split):
            return None

        def read(self, task, split, i):
            return np.full(300, 100, np.uint16), 250

        def example_id(self, task, split, i):
            return f"{task}-{i}/some template of it"

    tasks = [
        {
            "name": f"super_natural_instructions.task{i}_some_quite_long_name_of_a_task_classification",
            "benchmark": f"benchmark{i % 8}",
            "category": f"category_{i % 100}",
            "examples": 50,
            "capped_examples": 50,
            "probability": 1 / 2000,
            "tokens": 15_000,
            "expected_epochs": 1.0,
        }
        for i in range(2000)
    ]
    result = {
        "tasks": tasks,
        "benchmarks": {f"benchmark{i}": 0.125 for i in range(8)},
        "categories": {"category_0": 1.0},
        "caps": [],
    }
    text = mixture_page.page(result, Prompts(Store(), Data("m", "cache"), []), 1e9, 3)
    assert 500_000 < len(text.encode()) < 5_000_000
