"""Dialogues of ParlAI's forms, and text to go on pre-training with."""

import json

import pytest

from optiml_jax.common.errors import DataError
from tasks.catalog import registry
from tasks.catalog.registry import MissingError
from tests.tasks.prompting.wordings import examples, write

SNAPSHOT = """acts:
- - episode_done: false
    id: convai2
    labels: [you must be very fast .]
    text: 'your persona: i like to go hunting.

      partner''s persona: i eat exclusively meat.

      hi , how are you doing ?'
- - {episode_done: true, id: convai2, labels: [i also remodel homes .], text: i am !}
- - {episode_done: false, id: convai2, eval_labels: [fine], text: how are you ?}
"""
TALK = "hi , how are you doing ?\nyou must be very fast .\ni am !\ni also remodel homes ."


def test_a_snapshot_of_acts_is_turns_without_personas_and_its_last_episode_may_be_cut_off(tmp_path):
    folder = tmp_path / "dialogue" / "parlai" / "convai2"
    write(folder, **{"convai2_train.yml": SNAPSHOT, "convai2_none_train.yml": SNAPSHOT})
    read, skipped = examples("dialogue", tmp_path, "convai2")
    assert [example.target for example in read] == [TALK, "how are you ?\nfine"] and not skipped
    assert {example.source for example in read} == {""}
    [left] = registry.discover("dialogue", tmp_path).left_out
    assert left.where.endswith("convai2_none_train.yml") and "another form" in left.reason


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "train_none.txt",
            "1 your persona: i like to go hunting.\n2 hi , how are you doing ?\tyou must be very fast .\t\tone|two\n"
            "3 i am !\ti also remodel homes .\n1 how are you ?\tfine\n",
        ),
        (
            "train.txt",
            "text:hi , how are you doing ?\tlabels:you must be very fast .\n"
            "text:i am !\tlabels:i also remodel homes .\tepisode_done:True\n"
            "text:your persona: i fly\\nhow are you ?\tlabels:fine\tepisode_done:True\n",
        ),
        (
            "train.jsonl",
            json.dumps({"dialog": [{"text": turn} for turn in TALK.split("\n")]})
            + "\n"
            + json.dumps({"dialog": [[{"text": "how are you ?"}, {"text": "fine"}]]}),
        ),
        (
            "train.json",
            json.dumps(
                [{"dialog": [[0, turn] for turn in TALK.split("\n")]}, {"dialog": [[0, "how are you ?"], [1, "fine"]]}]
            ),
        ),
    ],
)
def test_all_forms_of_a_dialogue_are_the_same_turns(tmp_path, name, content):
    write(tmp_path / "dialogue" / "convai2", **{name: content})
    read, skipped = examples("dialogue", tmp_path, "convai2")
    assert [example.target for example in read] == [TALK, "how are you ?\nfine"] and not skipped


def test_the_scenes_of_light_are_dropped_and_a_turn_said_again_is_said_once(tmp_path):
    acts = [
        {"text": "_task_speech\n_setting_name A tower\n_partner_say Who goes there?", "labels": ["A friend."]},
        {"text": "_self_say A friend.\n_partner_say Then come in.\n", "labels": ["Thank you."], "episode_done": True},
    ]
    snapshot = json.dumps({"acts": [[act] for act in acts]})  # JSON is YAML
    write(tmp_path / "dialogue" / "light_dialog_wild", **{"light_dialog_wild_train.yml": snapshot})
    [read], _ = examples("dialogue", tmp_path, "light_plus_wild")
    assert read.target == "Who goes there?\nA friend.\nThen come in.\nThank you."


def test_a_dialogue_that_two_files_have_is_read_once(tmp_path):
    folder = tmp_path / "dialogue" / "msc"
    write(folder, **{"session_1/train.txt": '{"dialog": [{"text": "a"}, {"text": "b"}]}'})
    lines = "text:a\tlabels:b\tepisode_done:True\ntext:c\tlabels:d\tepisode_done:True\n"
    write(folder, **{"session_2/train.txt": lines})
    read, skipped = examples("dialogue", tmp_path, "msc")
    assert [example.target for example in read] == ["a\nb", "c\nd"] and not skipped


def test_what_is_no_dialogue_is_skipped_by_name(tmp_path):
    folder = tmp_path / "dialogue" / "convai2"
    write(folder, **{"train.txt": "text:alone\tepisode_done:True\nhello there\n1 two\tturns\n"})
    read, skipped = examples("dialogue", tmp_path, "convai2")
    assert [example.target for example in read] == ["two\nturns"]
    assert [example.reason for example in skipped] == [
        "a dialogue without turns",
        'neither "text:...", nor a numbered line',
    ]
    assert [example.where.rsplit(":", 1)[1] for example in skipped] == ["1", "2"]
    write(folder, **{"convai2_train.yml": "acts: [[{text: never ends"})
    with pytest.raises(DataError, match=r"convai2_train.yml: not ParlAI's YAML"):
        examples("dialogue", tmp_path, "convai2")


def test_the_snapshots_of_parlai_are_read_and_nothing_is_dropped_without_a_reason(shared):
    benchmark = registry.discover("dialogue", shared / "data")
    assert len(benchmark.tasks) == 5, "all six but Wizard of the Internet, which has no snapshot"
    for name in benchmark.tasks:
        read, skipped = examples("dialogue", shared / "data", name.removeprefix("dialogue."))
        assert read and not skipped
        assert all("persona:" not in example.target and len(example.target.split("\n")) > 1 for example in read)
    files = {str(path) for path in (shared / "data" / "dialogue").rglob("*") if path.is_file()}
    source_files = {str(path) for task in benchmark.tasks.values() for path in task.files}
    assert files == source_files | {example.where for example in benchmark.left_out if example.reason}


# --- pre-training text


def test_documents_have_no_source_and_files_of_text_are_one_each(tmp_path):
    folder = tmp_path / "pretrain_text"
    write(folder, **{"a.jsonl": '{"text": "One."}\n{"text": " "}\n{"body": "x"}\n', "b.txt": "Two.\n\nStill two.\n"})
    read, skipped = examples("pretrain_text", tmp_path, "documents")
    assert [(example.source, example.target) for example in read] == [("", "One."), ("", "Two.\n\nStill two.")]
    assert len(skipped) == 2
    assert registry.discover("pretrain_text", tmp_path).tasks["pretrain_text.documents"].longer == "chunk"


def test_an_empty_folder_is_refused_by_name(tmp_path):
    for name in ("dialogue", "pretrain_text"):
        (tmp_path / name).mkdir()
        with pytest.raises(MissingError, match=rf"{name}: no file of a known task.*docs/benchmark.md"):
            registry.discover(name, tmp_path)
