"""The benchmark of the data plane: what its rows hold, measured small, and its arithmetic, on answers given here."""

import argparse
import importlib.util
import json

import numpy as np
import pytest

from optiml_jax.data.store import TokenStore
from optiml_jax.data.verify import check_store
from tools.speed import plane, synthetic

FLAGS = {"scratch": None, "quick": True, "rounds": 1, "no_peer": True, "full_peer": False, "peer_tasks": 4}


def flags(**options) -> argparse.Namespace:
    return argparse.Namespace(**(FLAGS | options))


@pytest.fixture
def few_tasks(monkeypatch):
    tasks = synthetic.named([40, 700, 100, 900] * 3), "the test"
    for name in ("task_sizes", "opt_iml_max"):
        monkeypatch.setattr(synthetic, name, lambda: tasks)


def test_the_synthetic_store_is_a_whole_store_of_the_lengths_it_is_said_to_have(tmp_path, few_tasks):
    whole, output = synthetic.write_store(tmp_path, synthetic.task_sizes())
    assert not list(check_store(tmp_path))
    store = TokenStore.open(whole)
    lengths = np.concatenate([store.lengths(f"{synthetic.NAME}.task{i:04d}", "train") for i in range(12)])
    assert len(lengths) == 5220 and f"12 tasks, 5,220 examples, {lengths.sum():,} tokens" in output
    assert np.median(lengths) == pytest.approx(199, rel=0.05) and lengths.mean() == pytest.approx(296, rel=0.05)
    some = json.loads(synthetic.some_tasks(whole, 4).read_text())["tasks"]
    assert [task["name"][-4:] for task in some] == ["0000", "0003", "0006", "0009"]


def test_ours_is_measured_alone(few_tasks):
    rows, notes = plane.compare(flags(parts="start,pack"))
    by_name = {row["name"]: row for row in rows}
    shown = [row for row in rows if "demonstrations" in row["name"]]
    alone = [row for row in rows if row not in shown]
    assert len(alone) == 6 and all(row["peer"] is None and row["ratio"] is None for row in alone)
    assert len(shown) == 4 and all(row["ratio"] > 0 and row["row_fill"] > 0.97 and row["same_bytes"] for row in shown)
    assert 0.1 < by_name["opt_iml_max, 12 tasks, process start to first batch"]["ours"] < 30
    assert 30 < by_name["opt_iml_max, 12 tasks, process start to first batch: memory"]["ours"] < 300
    assert 0.99 < by_name["row fill"]["ours"] < 1
    assert by_name["packing, planned"]["ours"] > by_name["packing, read and emitted"]["ours"] > 1e5
    assert by_name["restore at step 1,000,000"]["same_bytes"] is True
    assert notes[0].startswith("12 tasks, 2,220 examples, ") and "at most 300 per task" in notes[0]


@pytest.mark.slow
def test_seqio_fills_as_much_of_a_row_as_its_packer_is_known_to(tmp_path, few_tasks):
    """86-87% for these lengths (it closes a row at the first example that does not fit)."""
    if importlib.util.find_spec("seqio") is None:
        pytest.skip("needs seqio")
    whole, _ = synthetic.write_store(tmp_path, synthetic.task_sizes())
    result = plane.child("seqio_pack", whole, 2000)
    assert 0.8 < result["row_fill"] < 0.9 and result["packed_per_second"] > 1e4


def test_medians_ratios_and_extrapolation(monkeypatch, tmp_path, few_tasks):
    """Answers of three rounds given by hand: 4 tasks take 10, 11, 30 s and one task 5 s, so 12 take 11 + 8 * 2."""
    answers = {
        "our_start": [{"seconds": 2.0, "megabytes": 100.0}, {"seconds": 1.0, "megabytes": 110.0}] * 2,
        "1": [{"seconds": 5.0, "megabytes": 500.0}] * 3,
        "4": [{"seconds": s, "megabytes": 800.0} for s in (10.0, 11.0, 30.0)],
    }

    def child(what, manifest):
        return answers[what if what == "our_start" else str(manifest)[len(str(tmp_path)) :]].pop(0)

    monkeypatch.setattr(plane, "child", child)
    monkeypatch.setattr(synthetic, "some_tasks", lambda whole, count: f"{tmp_path}{count}")
    seconds, memory = plane._start(flags(no_peer=False, rounds=3), tmp_path, True)[0]
    assert (seconds["ours"], seconds["peer"], seconds["ratio"]) == (2.0, 27.0, 13.5)
    assert (memory["ours"], memory["peer"], memory["ratio"]) == (100.0, 1600.0, 16.0)
    assert seconds["peer_extrapolated"] and seconds["runs"] == [2.0, 1.0, 2.0]


def test_without_seqio_the_peer_columns_are_empty_with_a_note(monkeypatch, few_tasks):
    monkeypatch.setattr(plane.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(plane, "_pack", lambda flags, folder, peer: ([{"peer": peer}], []))
    rows, notes = plane.compare(flags(no_peer=False, parts="pack,cache"))
    assert rows == [{"peer": False}]
    assert notes[0] == "seqio is not installed (pip install '.[tasks]'): no peer"
    assert notes[-1].startswith("caching is not measured: needs apache_beam")
