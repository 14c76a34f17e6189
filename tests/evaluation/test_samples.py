"""Samples that survive an interruption at any byte."""

import json

import pytest

from optiml_jax.errors import UserError
from optiml_jax.evaluation.samples import SampleWriter, score_sample
from tests.evaluation.prompts import prompt

PROMPTS = [prompt(i) for i in range(4)]
SETTINGS = {"weights": "abc", "bos": True}


def _answer(p):
    return score_sample(p, ("yes", "no", "天気\u2028", "yes")[int(p.example_id)], scores=[-0.1, -1 / 3])


def _uninterrupted(directory) -> bytes:
    with SampleWriter(directory, PROMPTS, SETTINGS) as writer:
        for p in reversed(PROMPTS):  # the engine sorts by length: any order may come
            writer.write(_answer(p))
        writer.finish()
    return (directory / "samples.jsonl").read_bytes()


def test_a_sample_holds_the_answer_its_score_and_where_it_counts():
    made = score_sample(PROMPTS[0], "no", scores=(-2.0, -1.0), prompt_cut=True)
    assert (made["score"], made["correct"], made["truncated"], made["prompt_cut"]) == (0.0, False, False, True)
    assert made["candidates"] == ["yes", "no"] and made["scores"] == [-2.0, -1.0]
    assert (made["level"], made["category"], made["shots"]) == ("held_out_instances", "weather", 0)
    assert score_sample(prompt(metric="rouge_l", candidates=None, references=("a b",)), "a")["score"] == 2 / 3


@pytest.mark.parametrize("score", [float("nan"), float("-inf")])
def test_a_score_that_cannot_be_ranked_is_an_error_naming_the_prompt(score):
    with pytest.raises(UserError, match=r"prompt suite/bench.sky/plain/0/0/0: candidate scores"):
        score_sample(PROMPTS[0], "yes", scores=[-1.0, score])


def test_samples_are_written_in_ledger_order_and_the_partial_file_goes(tmp_path):
    lines = _uninterrupted(tmp_path).splitlines()
    assert [json.loads(line)["id"] for line in lines] == [p.id for p in PROMPTS]
    assert [file.name for file in tmp_path.iterdir()] == ["samples.jsonl"]


def test_a_run_torn_at_any_byte_ends_in_the_same_file(tmp_path):
    expected = _uninterrupted(tmp_path / "whole")
    with SampleWriter(tmp_path / "torn", PROMPTS, SETTINGS) as writer:
        for p in PROMPTS[:2]:
            writer.write(_answer(p))
    partial = tmp_path / "torn" / "samples.partial.jsonl"
    written = partial.read_bytes()
    ends = [i + 1 for i, byte in enumerate(written) if byte == ord("\n")]
    for cut in {0, 1, len(written), *range(0, len(written), 37), *(end + by for end in ends for by in (-1, 0, 1))}:
        partial.write_bytes(written[:cut])
        with SampleWriter(tmp_path / "torn", PROMPTS, SETTINGS) as writer:
            whole = max(sum(end <= cut for end in ends) - 1, 0)
            assert len(writer.done) == whole and [p.id for p in writer.remaining] == [p.id for p in PROMPTS[whole:]]
            for p in writer.remaining:
                writer.write(_answer(p))
            writer.finish()
        assert (tmp_path / "torn" / "samples.jsonl").read_bytes() == expected


def test_a_run_interrupted_twice_appends_after_the_torn_line(tmp_path):
    for done in (1, 2, 3):
        with SampleWriter(tmp_path, PROMPTS, SETTINGS) as writer:
            assert len(writer.done) == done - 1
            writer.write(_answer(writer.remaining[0]))
        with (tmp_path / "samples.partial.jsonl").open("ab") as file:
            file.write(b'{"id": "torn')
    assert SampleWriter(tmp_path, PROMPTS, SETTINGS).message.endswith("going on after 3 of 4 prompts")


@pytest.mark.parametrize(
    ("prompts", "settings", "reason"),
    [
        (PROMPTS, SETTINGS | {"weights": "xyz"}, "other weights"),
        (PROMPTS, SETTINGS | {"max_new_tokens": 256}, "other max_new_tokens"),
        (PROMPTS[:3], SETTINGS, "other prompts"),
    ],
)
def test_samples_of_another_evaluation_are_replaced_and_said_to_be(tmp_path, prompts, settings, reason):
    with SampleWriter(tmp_path, PROMPTS, SETTINGS) as writer:
        writer.write(_answer(PROMPTS[0]))
    with SampleWriter(tmp_path, prompts, settings) as writer:
        assert not writer.done and reason in writer.message and "starting anew" in writer.message
        writer.write(_answer(prompts[1]))
    assert SampleWriter(tmp_path, prompts, settings).done.keys() == {prompts[1].id}


def test_finishing_early_is_refused(tmp_path):
    with (
        SampleWriter(tmp_path, PROMPTS, SETTINGS) as writer,
        pytest.raises(ValueError, match="4 prompts have no sample"),
    ):
        writer.finish()
    assert not (tmp_path / "samples.jsonl").exists()
