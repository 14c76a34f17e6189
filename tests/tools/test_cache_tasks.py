"""The command line: what it prints, and one line and exit code 2 for everything a user can get wrong."""

import re

import pytest

from optiml_jax.common.errors import UserError
from tasks.benchmarks.samples import TOKENIZER
from tests.stores import counted, only_manifest
from tests.tasks.conftest import NAME, data_dir, write_splits, write_task  # noqa: F401 (a fixture)
from tools import cache_tasks


def run(*flags: str) -> None:
    cache_tasks.main([f"--{flag}" for flag in flags])


def test_the_samples_need_no_flag_but_the_cache(tmp_path, capsys):
    run("mixture=samples", f"cache_dir={tmp_path}")
    planned, *lines = capsys.readouterr().out.split("\n")
    assert planned.startswith("planned: 12 tasks, 4,416 examples, ")
    assert lines[0].split() == ["task", "examples", "tokens", "label", "tokens", "skipped"]
    cells = [line.split() for line in lines[1:13]]
    assert all(cell[0].startswith("samples.") and len(cell) == 5 for cell in cells)
    stats = {task: [int(number.replace(",", "")) for number in numbers] for task, *numbers in cells}
    for task, (examples, tokens, label_tokens, skipped) in stats.items():
        want = counted(tmp_path, task)
        assert [want[key] for key in ("examples", "tokens", "label_tokens", "skipped_count")] == [
            examples, tokens, label_tokens, skipped,
        ]  # fmt: skip
    total = [sum(column) for column in zip(*stats.values())]
    assert lines[13].split()[3:] == [f"{number:,}" for number in total]
    ledger = tmp_path / "ledgers" / "samples.jsonl"
    assert any(line.startswith(f"ledger: {ledger}, 684 prompts of 15 tasks, written in ") for line in lines)
    assert "skipped: nothing" in lines and any(line.startswith("longest label: 9 tokens, samples.") for line in lines)
    run("mixture=samples", f"cache_dir={tmp_path}")
    again = capsys.readouterr().out
    assert (
        "all 12 tasks were already cached" in again and "684 prompts of 15 tasks, already written, checked in" in again
    )


def test_a_suite_needs_no_tokenizer_and_is_counted(data_dir, tmp_path, capsys):  # noqa: F811
    cache = tmp_path / "cache"
    run(f"suite={NAME}", f"data_dir={data_dir}", f"cache_dir={cache}", "max_prompts_per_task=30")
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].split() == ["task", "split", "level", "prompts"]
    assert lines[1].split() == [f"{NAME}.task3_new", "test", "fully_held_out", "90"]  # 0, 2 and 5 shots
    assert lines[2].split() == [f"{NAME}.task4_known", "test", "held_out_task", "5"]
    assert lines[3].split() == [NAME, "all", "all", "95"] and "95 prompts of 2 tasks, written in" in lines[-2]
    assert f"  {NAME}.task4_known: no usable record in shown for demonstrations; only 0-shot prompts" in lines
    assert sorted(path.name for path in cache.iterdir()) == [".lock", "ledgers"]


def test_many_tasks_fold_to_totals_and_the_largest(tmp_path, capsys):
    names = [f"task{i}" for i in range(50)]
    for i, name in enumerate(names):
        write_task(tmp_path / "data" / NAME, name, [{"id": "1", "input": "word " * 20 * (i + 1), "output": ["x"]}])
    write_splits(tmp_path / "data" / NAME, train=names)
    cache = tmp_path / "cache"
    run(f"mixture={NAME}", f"data_dir={tmp_path / 'data'}", f"cache_dir={cache}", f"tokenizer={TOKENIZER}")
    _, *lines = capsys.readouterr().out.split("\n")
    assert [line.split()[0].split(".")[1] for line in lines[1:21]] == [f"task{i}" for i in range(49, 29, -1)]
    whole = only_manifest(cache).with_suffix(".txt")
    assert lines[22] == f"the 20 largest of 50 tasks; all of them: {whole}"
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
        f"error: {path}#0: output is empty (30 of 60 records); correct them or pass --allow_bad"
        in capsys.readouterr().err
    )
    run(*flags, "allow_bad_records")
    printed = capsys.readouterr().out
    lists = only_manifest(tmp_path / "c").with_suffix(".skipped.txt").read_text().splitlines()
    assert lists == [f"{path}#{i}: output is empty" for i in range(30)] + [
        f"{data_dir / NAME / 'tasks' / 'task6_nowhere.json'}: in no split"
    ]
    assert "skipped: 30 records; 1 task left out" in printed and printed.count("output is empty") == 20
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
        (["mixture=samples", "held_out_instances=-1"], "--held_out_instances is -1; it must be a whole number from 0"),
        (["mixture=samples", "held_out_instances=400"], "samples.sample001_hotel_review_sentiment"),
        ([], "give one of --mixture and --suite; see --help"),
        (["mixture=samples", "suite=samples"], "give one of --mixture and --suite; see --help"),
        (["suite=sample"], "no suite sample; did you mean samples?"),
        ([f"suite={NAME}"], "DATA_DIR: super_natural_instructions needs a folder"),
        (["mixture=samples", "row_length=1"], "--row_length is 1; it must be a whole number from 2"),
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
