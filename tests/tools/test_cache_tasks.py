"""The command line: what it prints, and one line and exit code 2 for everything a user can get wrong."""

import json
import re

import pytest

from optiml_jax.errors import UserError
from tasks.benchmarks.samples import TOKENIZER
from tests.tasks.conftest import NAME, data_dir, write_splits, write_task  # noqa: F401 (a fixture)
from tools import cache_tasks


def run(*flags: str) -> None:
    cache_tasks.main([f"--{flag}" for flag in flags])


def test_the_samples_need_no_flag_but_the_cache(tmp_path, capsys):
    run("mixture=samples", f"cache_dir={tmp_path}")
    planned, *lines = capsys.readouterr().out.split("\n")
    assert planned.startswith("planned: 27 splits, 5,100 examples, ")
    assert lines[0].split() == ["task", "split", "examples", "tokens", "label", "tokens", "skipped"]
    cells = [line.split() for line in lines[1:28]]
    assert all(cell[0].startswith("samples.") and len(cell) == 6 for cell in cells)
    stats = {(c[0], c[1]): [int(number.replace(",", "")) for number in c[2:]] for c in cells}
    for (task, split), (examples, tokens, label_tokens, skipped) in stats.items():
        want = json.loads((tmp_path / "tasks" / task / f"{split}.json").read_text())
        assert [want[key] for key in ("examples", "tokens", "label_tokens", "skipped_count")] == [
            examples, tokens, label_tokens, skipped,
        ]  # fmt: skip
    total = [sum(column) for column in zip(*stats.values())]
    assert lines[28].split()[3:] == ["all", *(f"{number:,}" for number in total)]
    assert "skipped: nothing" in lines and any(line.startswith("longest label: 9 tokens, samples.") for line in lines)
    run("mixture=samples", f"cache_dir={tmp_path}")
    assert "all 27 splits were there" in capsys.readouterr().out


def test_many_tasks_fold_to_totals_and_the_largest(tmp_path, capsys):
    names = [f"task{i}" for i in range(50)]
    for i, name in enumerate(names):
        write_task(tmp_path / "data" / NAME, name, [{"id": "1", "input": "word " * 20 * (i + 1), "output": ["x"]}])
    write_splits(tmp_path / "data" / NAME, train=names)
    cache = tmp_path / "cache"
    run(f"mixture={NAME}", f"data_dir={tmp_path / 'data'}", f"cache_dir={cache}", f"tokenizer={TOKENIZER}")
    _, *lines = capsys.readouterr().out.split("\n")
    assert [line.split()[0].split(".")[1] for line in lines[1:21]] == [f"task{i}" for i in range(49, 29, -1)]
    whole = cache / "mixtures" / f"{NAME}.txt"
    assert lines[22] == f"the 20 largest of 50 splits; all of them: {whole}"
    assert len(whole.read_text().splitlines()) == 52 and f"{NAME} (50 tasks)" in lines[21]


def test_every_skipped_record_is_listed_with_its_reason(data_dir, tmp_path, capsys):  # noqa: F811
    bad = [{"id": str(i), "input": "q", "output": []} for i in range(30)]
    good = [{"id": f"good{i}", "input": f"q{i}", "output": ["x"]} for i in range(30)]
    path = write_task(data_dir / NAME, "task1_one", bad + good)
    flags = [f"mixture={NAME}", f"data_dir={data_dir}", f"cache_dir={tmp_path / 'c'}", f"tokenizer={TOKENIZER}"]
    with pytest.raises(SystemExit) as error:
        run(*flags)
    assert error.value.code == 2
    assert (
        f"error: {path}#0: output is empty (30 of 60 records); mend them or pass --allow_bad" in capsys.readouterr().err
    )
    run(*flags, "allow_bad_records")
    printed = capsys.readouterr().out
    lists = (tmp_path / "c" / "mixtures" / f"{NAME}.skipped.txt").read_text().splitlines()
    assert lists == [f"{path}#{i}: output is empty" for i in range(30)] + [
        f"{data_dir / NAME / 'tasks' / 'task6_nowhere.json'}: in no split"
    ]
    assert "skipped: 30 records; 1 tasks left out" in printed and printed.count("output is empty") == 20
    assert re.search(r"\.\.\. all of them: .*skipped.txt", printed)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["mixture=sample"], "no mixture sample; did you mean samples?"),
        (["mixture=super_natural_instruction"], "did you mean super_natural_instructions?"),
        ([f"mixture={NAME}", "data_dir=."], f"--tokenizer is needed for {NAME}: vocab.json + merges.txt, or facebook/"),
        ([f"mixture={NAME}", f"tokenizer={TOKENIZER}"], "DATA_DIR: super_natural_instructions needs a folder"),
        ([f"mixture={NAME}", f"tokenizer={TOKENIZER}", "data_dir=nowhere"], "DATA_DIR: nowhere is not a folder"),
        (["mixture=samples", "tokenizer=/nowhere"], "TOKENIZER: /nowhere is neither a directory nor a hub name"),
        (
            ["mixture=samples", "max_label_token=3"],
            "--max_label_token: neither a flag of this tool nor of Beam; did you mean",
        ),
        (["mixture=samples", "max_label_tokens=x"], "argument --max_label_tokens: invalid int value: 'x'; see --help"),
        (["mixture=samples", "held_out_instances=-1"], "--held_out_instances=-1: must not be negative"),
        (["mixture=samples", "held_out_instances=400"], "samples.sample001_hotel_review_sentiment"),
        ([], "the following arguments are required: --mixture; see --help"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.delenv("OPTIML_DATA_DIR", raising=False)
    monkeypatch.delenv("OPTIML_TOKENIZER", raising=False)
    with pytest.raises(SystemExit) as error:
        run(*flags, f"cache_dir={tmp_path}/cache")
    assert error.value.code == 2
    last = [line for line in capsys.readouterr().err.split("\n") if line and not line.startswith("\rcaching")]
    assert len(last) == 1 and last[0].startswith("error: ") and message in last[0], last


def test_flags_of_beam_pass_through():
    flags, beam = cache_tasks.parse(["--mixture=samples", "--cache_dir=c", "--runner=FlinkRunner", "--parallelism=8"])
    assert flags.mixture == "samples" and beam == ["--runner=FlinkRunner", "--parallelism=8"]
    with pytest.raises(UserError, match="--paralelism: neither"):
        cache_tasks.parse(["--mixture=samples", "--cache_dir=c", "--runner=FlinkRunner", "--paralelism=8"])
