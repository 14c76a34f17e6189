"""Answers that survive an interruption at any byte, and serve whoever asks the same."""

import shutil
from pathlib import Path

import pytest

import optiml_jax
from optiml_jax.evaluation.answers import cache
from optiml_jax.evaluation.answers.cache import AnswerStore
from optiml_jax.evaluation.pipeline import ANSWERING
from tests.evaluation.example_prompts import prompt


def key(made, max_new_tokens: int = 256, ranked_by: str = "sum") -> str:
    return cache.key(made, max_new_tokens, ranked_by)


def answer_file(directory):
    """The only file of answers in a folder."""
    (path,) = directory.glob("answers-*.jsonl")
    return path


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
    return answer_file(directory).read_bytes()


def test_a_run_torn_at_any_byte_keeps_whole_groups_and_every_byte(tmp_path):
    """A file only grows: a torn line stays, is not read, and the groups that follow are."""
    written = _whole(tmp_path / "whole")
    path = tmp_path / "torn" / answer_file(tmp_path / "whole").name
    path.parent.mkdir()
    answers = {k: answer for group in GROUPS for k, answer in group.items()}
    ends = [i + 1 for i, byte in enumerate(written) if byte == ord("\n")]
    for cut in {0, 1, len(written), *range(0, len(written), 37), *(end + by for end in ends for by in (-1, 0, 1))}:
        path.write_bytes(written[:cut])
        with AnswerStore(path.parent, KEYS, SETTINGS) as store:
            groups = max(sum(end <= cut for end in ends) - 1, 0)
            assert store.answers == {k: answer for group in GROUPS[:groups] for k, answer in group.items()}
            for group in GROUPS[groups:]:
                store.write(group)
        assert path.read_bytes().startswith(written[:cut])
        with AnswerStore(path.parent, KEYS, SETTINGS) as store:
            assert store.answers == answers
        path.unlink()


def test_an_answer_is_known_by_what_was_asked():
    same = prompt(0, suite="other", example_id="9", references=("no",), metric="exact_match", category="c", level=None)
    assert key(same) == key(PROMPTS[0])
    for change in (
        {"prompt": "Is it?"},
        {"candidates": ("yes", "never")},
        {"candidates": None},
        {"separator": "\n"},
        {"given": (1, 1)},
    ):
        assert key(prompt(0, **change)) != key(PROMPTS[0])
    assert key(same, ranked_by="per_token") != key(same) == key(same, max_new_tokens=3)
    written = prompt(0, candidates=None)
    for change in ({"stop": ("\n",)}, {"max_new_tokens": 3}, {"prompt": "Is it?"}):
        assert key(prompt(0, **{"candidates": None} | change)) != key(written)
    assert key(written, 3) == key(prompt(0, candidates=None, max_new_tokens=3)) != key(written)
    assert key(written, ranked_by="per_token") == key(written), "it is not ranked"


def test_a_bigger_ledger_finds_what_is_answered(tmp_path):
    _whole(tmp_path)
    with AnswerStore(tmp_path, [key(prompt(7)), *KEYS, key(prompt(8))], SETTINGS) as store:
        assert "answers-" in store.message and "6 of 8 prompts" in store.message


@pytest.mark.parametrize(
    "settings, reason",
    [
        (SETTINGS | {"weights": "def"}, "another weights"),
        (SETTINGS | {"bos": False, "more": 1}, "another bos, more"),
    ],
)
def test_answers_of_other_weights_are_kept_beside_and_said_to_be(tmp_path, settings, reason):
    written = _whole(tmp_path)
    first = answer_file(tmp_path)
    with AnswerStore(tmp_path, KEYS, settings) as store:
        assert reason in store.message and str(first) in store.message and not store.answers
        store.write(GROUPS[0])
    assert first.read_bytes() == written and len(list(tmp_path.glob("answers-*.jsonl"))) == 2
    with AnswerStore(tmp_path, KEYS, SETTINGS) as store:
        assert len(store.answers) == len(PROMPTS)


def test_lines_of_something_else_are_not_answers(tmp_path):
    _whole(tmp_path)
    path = answer_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b"\xff not this\n", *lines[:2], b"[]\n", *lines[2:]]))
    with AnswerStore(tmp_path, KEYS, SETTINGS) as store:
        assert len(store.answers) == len(PROMPTS)


def test_only_the_code_that_decides_answers_counts(tmp_path, monkeypatch):
    """A comment in a report's file changes the version of the package, and not the key of the answers."""
    package = tmp_path / "optiml_jax"
    shutil.copytree(Path(optiml_jax.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(optiml_jax, "__file__", str(package / "__init__.py"))
    version = optiml_jax.code_version.__wrapped__
    entire, answering = version(), version(*ANSWERING)
    for name, decides in (("evaluation/reports/tables.py", False), ("inference/decoding.py", True)):
        with (package / name).open("a") as file:
            file.write("# a comment\n")
        assert version() != entire
        assert (version(*ANSWERING) != answering) == decides
