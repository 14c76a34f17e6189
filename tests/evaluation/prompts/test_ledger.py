"""Reading prompt ledgers, and what is said about bad ones."""

import pytest

from optiml_jax.common.errors import DataError
from optiml_jax.data.manifest import coverage_text
from optiml_jax.evaluation.prompts.ledger import about, about_file, read_ledger, write_ledger
from tests.evaluation.example_prompts import ledger_line, prompt


def test_prompts_come_back_as_they_were_written(tmp_path):
    prompts = [
        prompt(0, group="skies", demonstration_ids=("7", "9"), shots=2, seed=3, given=(1, 0), contaminated=True),
        prompt(1, task="bench.sea", candidates=None, metric="rouge_l", references=("a b", "c\u2028d"), level=None),
        prompt(
            2,
            task="bench.boolean_expressions",
            candidates=None,
            metric={"name": "exact_match", "normalization": "bbh"},
            separator="\n",
            stop=("\n\n", "Q:"),
            max_new_tokens=32,
            part_of="q",
        ),
    ]
    file = tmp_path / "dev.jsonl"
    assert write_ledger(file, iter(prompts), {}) == 3
    assert read_ledger(file) == prompts
    about_file(file).unlink()
    file.write_text("\n".join(map(ledger_line, prompts)) + "\n\n", encoding="utf-8")  # as by hand
    assert read_ledger(file) == prompts
    assert read_ledger(str(tmp_path)) == prompts  # the only ledger of the directory


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        (
            ledger_line(prompt(1), format=1),
            "not a line of ledger format 2, which this version reads",
        ),
        (ledger_line(prompt(1), metric="rouge"), "unknown metric 'rouge'; did you mean rouge_l"),
        (ledger_line(prompt(1), metric={"name": "accuracy", "stem": 1}), "metric accuracy has no parameter 'stem'"),
        (ledger_line(prompt(1), metric="rouge_l"), "task bench.sky has metric rouge_l here and accuracy in line 1"),
        (ledger_line(prompt(1), level=None), "task bench.sky has level None here and held_out_instances in line 1"),
        (ledger_line(prompt(1), group="skies"), "task bench.sky has group skies here and None in line 1"),
        (ledger_line(prompt(1), stop="Q:"), "stop: expected array, got str"),
        (ledger_line(prompt(1), max_new_tokens=-1), "max_new_tokens: expected int >= 0"),
        (ledger_line(prompt(1), level="held_out_tasks"), "unknown level 'held_out_tasks'"),
        (ledger_line(prompt(1), references=[]), "prompt suite/bench.sky/plain/1/0/0: no references"),
        (ledger_line(prompt(1), references="yes"), "references: expected array, got str"),
        (ledger_line(prompt(1), candidates=[]), "prompt suite/bench.sky/plain/1/0/0: empty candidate list"),
        (ledger_line(prompt(1), candidates=["no"]), "prompt suite/bench.sky/plain/1/0/0: no candidate is a reference"),
        (ledger_line(prompt(1), given=[1]), "prompt suite/bench.sky/plain/1/0/0: given"),
        (ledger_line(prompt(1), given=[3, 1]), "prompt suite/bench.sky/plain/1/0/0: given"),
        (ledger_line(prompt(1), given=["a", 1]), "given[0]: expected int, got str"),
        (ledger_line(prompt(1), contaminated=1), "contaminated: expected bool | null, got int"),
        (ledger_line(prompt(1), shots="5"), "shots: expected int, got str"),
        (ledger_line(prompt(1), prompt=None), "prompt: expected str, got null"),
        (ledger_line(prompt(1), refs=[]), 'unknown field "refs"; did you mean references'),
        ('{"format": 2, "task": "x"}', "lacks benchmark, candidates"),
        (ledger_line(prompt(0)), "prompt suite/bench.sky/plain/0/0/0 is already in line 1"),
        (b"\xff\n", "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_reason(tmp_path, line, message):
    file = tmp_path / "dev.jsonl"
    file.write_bytes(ledger_line(prompt(0)).encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(DataError) as error:
        read_ledger(file)
    assert str(error.value).startswith(f"{file}:2: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_ambiguous_and_empty_ledgers_are_named(tmp_path):
    with pytest.raises(DataError, match="no such ledger"):
        read_ledger(tmp_path / "dev.jsonl")
    with pytest.raises(DataError, match=r"holds no \.jsonl ledger"):
        read_ledger(tmp_path)
    (tmp_path / "dev.jsonl").touch()
    with pytest.raises(DataError, match=r"dve\.jsonl: no such ledger; .*; did you mean dev\?"):
        read_ledger(tmp_path / "dve.jsonl")
    with pytest.raises(DataError, match="the ledger is empty"):
        read_ledger(tmp_path)
    (tmp_path / "test.jsonl").touch()
    with pytest.raises(DataError, match=r"holds dev\.jsonl, test\.jsonl"):
        read_ledger(tmp_path)


def test_a_changed_ledger_is_refused_unless_it_has_no_checksum(tmp_path):
    path = tmp_path / "suite.jsonl"
    write_ledger(path, [prompt()], {"coverage": {"bench": {"test": [25, 119], "train": [188, 757]}}})
    assert coverage_text(about(path)["coverage"]) == "bench: 188 of 757 train and 25 of 119 test tasks have files"
    assert read_ledger(tmp_path) == [prompt()]
    path.write_text(path.read_text().replace("blue", "glue"))
    with pytest.raises(DataError, match=r"suite.jsonl: .*checksum.* remove .*about.json"):
        read_ledger(path)
    about_file(path).unlink()
    assert about(path) == {}
    assert read_ledger(path)[0].prompt == "Is sky 0 glue?\nAnswer:"


def test_a_text_that_utf_8_cannot_write_is_named_and_leaves_no_ledger(tmp_path):
    with pytest.raises(DataError, match=r"prompt suite/bench\.sky/plain/1/0/0: text with half a surrogate pair"):
        write_ledger(tmp_path / "suite.jsonl", [prompt(0), prompt(1, prompt="\ud83d")], {})
    assert not list(tmp_path.iterdir())


def test_changed_metadata_are_refused(tmp_path):
    path = tmp_path / "suite.jsonl"
    write_ledger(path, [prompt()], {"coverage": {"bench": {"test": [25, 119]}}})
    file = about_file(path)
    file.write_text(file.read_text().replace("119", "118"))
    with pytest.raises(DataError, match=r"suite\.about\.json: its checksum differs"):
        about(path)
