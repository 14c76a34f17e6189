"""The paper's Table 1 for data that were written here, counted by hand."""

import csv
import json

import numpy as np
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.tokenizer import Tokenizer, join
from tasks.benchmarks.samples import TOKENIZER
from tests.tasks.prompting.wordings import examples, write
from tools import dataset_statistics


@pytest.fixture
def data_dir(tmp_path):
    lines = "".join(f"question {i}?\tanswer {i}\n" for i in range(30))
    write(
        tmp_path / "data" / "crossfit", **{"search_qa_train.tsv": lines + "cut off\n", "kilt_nq_dev.tsv": "q\ta\tb\n"}
    )
    write(tmp_path / "data" / "pretrain_text", **{"a.txt": "Some text.\n", "b.bin": "?"})
    return tmp_path / "data"


def arguments(data_dir, *more):
    return [f"--data_dir={data_dir}", f"--tokenizer={TOKENIZER}", *more]


def test_every_split_is_counted_and_what_is_skipped_has_its_reason(data_dir, tmp_path, capsys):
    listed, numbers = tmp_path / "skipped.txt", tmp_path / "stats.json"
    dataset_statistics.main(arguments(data_dir, f"--skipped={listed}", f"--json={numbers}"))
    output = capsys.readouterr().out
    result = {(row["benchmark"], row["split"]): row for row in json.loads(numbers.read_text())["splits"]}
    tokenizer = Tokenizer.load(TOKENIZER)
    read, _ = examples("crossfit", data_dir, "search_qa")
    pairs = [[len(tokenizer.encode(text)) for text in join(example.source, example.target)] for example in read]
    row = result["crossfit", "train"]
    assert (row["tasks"], row["templates"], row["examples"], row["skipped"]) == (1, 1, 30, 1)
    assert row["tokens"] == np.sum(pairs) and row["of them targets"] == np.sum(pairs, axis=0)[1]
    assert result["crossfit", "validation"]["examples"] == 1 and result["pretrain_text", "train"]["examples"] == 1
    mean, deviation = np.mean(pairs, axis=0)[0], np.std(pairs, axis=0)[0]
    [line] = [line for line in output.splitlines() if line.startswith("crossfit ") and "±" in line]
    assert f"{mean:.0f} ± {deviation:.0f}" in line and "7.1 M" in line and "117 ± 258" in line and " 159 " in line
    text = listed.read_text()
    assert "search_qa_train.tsv:31: 1 columns, not 2 or more" in text and "b.bin: not one of" in text
    assert all(f"{name}: " in text for name in ("flan", "t5", "exmix", "dialogue"))
    assert "1 columns, not 2 or more (first: " in output and "OPT-IML Bench (train)" in output and "1,545" in output


def test_dialogues_are_counted_beside_those_of_the_paper(shared, capsys):
    """4.7: 320,543 unique dialogues; here of the samples."""
    flags = [f"--data_dir={shared / 'data'}", f"--tokenizer={shared / 'tokenizer'}", "--benchmarks=dialogue"]
    dataset_statistics.main(flags)
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("dialogue "))
    assert row[:7] == ["dialogue", "1", "-", "5", "-", "5", "320,543"]


def test_of_a_large_split_some_prompts_stand_for_all(data_dir, capsys):
    dataset_statistics.main(arguments(data_dir, "--benchmarks=crossfit", "--prompts=7"))
    [line] = [
        line for line in map(str.split, capsys.readouterr().out.splitlines()) if line[:2] == ["crossfit", "train"]
    ]
    assert line[4] == "30" and 30 * 8 < int(line[5].replace(",", "")) < 30 * 60


def test_table_1_is_the_papers(shared):
    with (shared / "catalog" / "paper_tables" / "table01.tsv").open(encoding="utf-8") as file:
        rows = {registered(row["benchmark"]): row for row in csv.DictReader(file, delimiter="\t")}
    for name, paper in dataset_statistics.TABLE_1.items():
        row = rows[registered(name)]
        number, unit = float(row["total_examples"][:-1]), {"M": 1e6, "K": 1e3}[row["total_examples"][-1]]
        stated = (row["n_clusters"], row["n_tasks"].replace(",", ""), number * unit, row["avg_prompts_per_task"])
        assert tuple(map(float, stated)) == pytest.approx(paper[:4])
        assert (int(row["prompt_length_mean"]), int(row["prompt_length_std"])) == paper[4:]


def registered(name):
    return name.lower().replace("-", "").replace("_", "")


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--benchmarks=flam", "flan"), ("--prompts=-1", "must not be negative"), ("--tokenizer=/nowhere", "/nowhere")],
)
def test_a_wrong_flag_takes_one_line(data_dir, flag, message, capsys):
    with pytest.raises((UserError, SystemExit)):
        dataset_statistics.main(arguments(data_dir, flag))
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
