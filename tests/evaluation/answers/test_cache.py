"""Answers that survive an interruption at any byte, and serve whoever asks the same."""

import json

import pytest

from optiml_jax.evaluation.answers.cache import AnswerStore, key
from tests.evaluation.example_prompts import prompt

PROMPTS = [prompt(i) for i in range(6)]
KEYS = [key(p) for p in PROMPTS]
SETTINGS = {"weights": "abc", "bos": True}
GROUPS = [
    {key(p): {"prediction": ("yes", "天気\u2028")[int(p.example_id) % 2], "scores": [-0.1, -1 / 3]} for p in group}
    for group in (PROMPTS[:2], PROMPTS[2:5], PROMPTS[5:])
]


def _whole(directory) -> bytes:
    with AnswerStore(directory, KEYS, SETTINGS) as store:
        for group in GROUPS:
            store.write(group)
    return (directory / "answers.jsonl").read_bytes()


def test_a_run_torn_at_any_byte_keeps_whole_groups_and_ends_in_the_same_file(tmp_path):
    written = _whole(tmp_path / "whole")
    path = tmp_path / "torn" / "answers.jsonl"
    path.parent.mkdir()
    ends = [i + 1 for i, byte in enumerate(written) if byte == ord("\n")]
    for cut in {0, 1, len(written), *range(0, len(written), 37), *(end + by for end in ends for by in (-1, 0, 1))}:
        path.write_bytes(written[:cut])
        with AnswerStore(path.parent, KEYS, SETTINGS) as store:
            groups = max(sum(end <= cut for end in ends) - 1, 0)
            assert store.answers == {k: answer for group in GROUPS[:groups] for k, answer in group.items()}
            for group in GROUPS[groups:]:
                store.write(group)
        assert path.read_bytes() == written


def test_an_answer_is_known_by_what_was_asked():
    same = prompt(0, suite="other", example_id="9", references=("no",), metric="exact_match", category="c", level=None)
    assert key(same) == key(PROMPTS[0])
    for change in (
        {"prompt": "Is it?"},
        {"candidates": ("yes", "never")},
        {"candidates": None},
        {"separator": "\n"},
        {"stop": ("\n",)},
        {"max_new_tokens": 3},
        {"given": (1, 1)},
    ):
        assert key(prompt(0, **change)) != key(PROMPTS[0])


def test_a_bigger_ledger_finds_what_is_answered(tmp_path):
    _whole(tmp_path)
    with AnswerStore(tmp_path, [key(prompt(7)), *KEYS, key(prompt(8))], SETTINGS) as store:
        assert "answers.jsonl" in store.message and "6 of 8 prompts" in store.message


@pytest.mark.parametrize(
    "settings, reason",
    [
        (SETTINGS | {"weights": "def"}, "other weights"),
        (SETTINGS | {"bos": False, "more": 1}, "other bos, more"),
    ],
)
def test_answers_of_other_weights_are_replaced_and_said_to_be(tmp_path, settings, reason):
    _whole(tmp_path)
    with AnswerStore(tmp_path, KEYS, settings) as store:
        assert f"an evaluation with {reason};" in store.message and not store.answers
    header = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])
    assert header["settings"] == settings


def test_a_file_of_something_else_is_replaced(tmp_path):
    (tmp_path / "answers.jsonl").write_bytes(b"\xff not this\n")
    with AnswerStore(tmp_path, KEYS, SETTINGS) as store:
        assert "an unreadable header" in store.message and not store.answers
