"""The benchmark compares like with like: the same rows, weights, losses and updates on both sides."""

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from optiml_jax.common import xla_flags
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import write_ledger
from optiml_jax.inference import decoding
from optiml_jax.inference.model import load_model
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.step import Computation
from tests.evaluation.small_model import prompt
from tools import benchmark
from tools.speed import evaluate, everything, machine, peer, profile, rows
from tools.speed.models import MODELS
from tools.speed.ours import Ours
from tools.speed.rows import ROOT

TINY = ["train", "--model=tiny", "--rows=2", "--row_length=96", "--rounds=1", "--steps=1", "--dropout=0"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "new" / "train.json"
    benchmark.main([*TINY, f"--json={path}"])
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def batches():
    flags = argparse.Namespace(rows=2, row_length=96, label_share=0.15, cache_dir=None, mixture=None, seed=3, steps=4)
    return rows.batches(flags, MODELS["tiny"].vocab_size)


def test_the_json_holds_the_contract(report):
    assert {"machine", "versions", "rows"} <= report.keys()
    assert {"cpu", "cores", "memory_gib", "accelerator"} <= report["machine"].keys()
    assert report["versions"]["torch"].startswith("2.13.0") and report["versions"]["jax"]
    assert len(report["rows"]) == len(peer.LAYOUTS)
    for row in report["rows"]:
        assert {"name", "ours", "peer", "ratio", "unit"} <= row.keys()
        assert row["ours"] > 0 and row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert row["ours"] == pytest.approx(row["real_tokens"] / np.median(row["ours_seconds"]))
    ratios = [row["ratio"] for row in report["rows"]]
    assert ratios == sorted(ratios), "the fastest peer comes first"


def test_both_sides_see_the_same_tokens_and_labels(report):
    for row in report["rows"]:
        assert row["peer_real_tokens"] == row["real_tokens"] < row["positions"]  # some padding
        assert row["peer_label_tokens"] == row["label_tokens"] > 0.1 * row["real_tokens"]
        assert (row["peer_positions"] > row["real_tokens"]) == ("padding-free" not in row["name"])
        assert row["peer_positions"] >= row["real_tokens"] > 0.5 * row["positions"]


def test_first_losses_are_equal_where_the_peer_is_exact_and_differ_where_documents_leak(report):
    for row in report["rows"]:
        difference = np.abs(np.subtract(row["peer_losses"], row["ours_losses"])).max()
        assert (difference < 1e-4) == row["exact"], (row["name"], row["peer_losses"], row["ours_losses"])
    assert [row["exact"] for row in report["rows"]].count(True) == 3


def test_attention_is_compared_with_exact_and_with_leaking_ways(tmp_path):
    path = tmp_path / "attention.json"
    flags = ["--model=tiny", "--rows=2", "--row_length=96", "--rounds=1", "--steps=2", f"--json={path}"]
    benchmark.main(["attention", *flags])
    by_name = {row["name"].partition(": ")[2]: row for row in json.loads(path.read_text())["rows"]}
    assert {name: row["exact"] for name, row in by_name.items()} == {
        "torch SDPA, 4-D mask": True,
        "torch SDPA, causal only": False,
        "torch SDPA per document": True,
    }
    assert by_name["torch SDPA, 4-D mask"]["difference"] < 1e-5
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"]) for row in by_name.values())


@pytest.mark.slow
def test_evaluation_is_measured_by_kind_of_prompt(tmp_path):
    path = tmp_path / "evaluate.json"
    flags = ["--model=tiny", "--no_peer", "--prompts=3", "--rounds=1", "--new=2", f"--json={path}"]
    benchmark.main(["evaluate", *flags])
    by_name = {row["name"].partition(": ")[2]: row for row in json.loads(path.read_text())["rows"]}
    assert list(by_name) == ["64 rows", *evaluate.KINDS, *evaluate.WRITTEN] and all(
        row["ours"] > 0 and row["peer"] is None for row in by_name.values()
    )
    step = by_name["64 rows"]
    assert step["step_seconds"] == pytest.approx(64 / step["ours"]) and step["floor_seconds"] is None


def test_a_whole_evaluation_of_a_ledger_is_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", dataclasses.replace(MODELS["tiny"], vocab_size=1536))  # the samples' words
    generated = {"candidates": None, "metric": Metric("rouge_l"), "references": ("one", "two")}
    prompts = [prompt(n) for n in range(3)] + [prompt(n, task="written", **generated) for n in range(3, 5)]
    write_ledger(tmp_path / "asked.jsonl", prompts, {"suite": "suite"})
    flags = ["--model=tiny", "--no_peer", f"--ledger={tmp_path / 'asked.jsonl'}", "--rounds=1", "--new=2"]
    benchmark.main(["evaluate", *flags, "--kinds=none", f"--json={tmp_path / 'speed.json'}"])
    rows = {row["name"]: row for row in json.loads((tmp_path / "speed.json").read_text())["rows"]}
    assert list(rows) == [
        "rank tiny: asked, candidates",
        "generate tiny: asked, answers",
        "evaluate tiny: asked, end to end",
    ]
    assert all(row["ours"] > 0 for row in rows.values())


@pytest.mark.slow
def test_vllm_is_asked_for_greedy_answers_of_the_same_lengths(tmp_path, monkeypatch):
    """With an engine that answers as this project does, in the forms of vLLM's interface."""

    class Engine:
        def __init__(self, model, dtype, max_model_len, **_):
            assert dtype == "float32" and max_model_len == MODELS["tiny"].max_positions
            self.model = load_model(model)

        def generate(self, prompts, limits, use_tqdm):
            ids = [prompt["prompt_token_ids"] for prompt in prompts]
            answers = decoding.decode(self.model, ids, [limit["max_tokens"] for limit in limits])
            assert all(limit["temperature"] == 0 for limit in limits)
            # vLLM returns the end of the text with the answer.
            ended = ((*answer.ids, evaluate.EOS) if not answer.truncated else answer.ids for answer in answers)
            return [types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=tuple(ids))]) for ids in ended]

    fake = types.SimpleNamespace(LLM=Engine, SamplingParams=dict)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    flags = ["--model=tiny", "--peer=vllm", "--prompts=3", "--rounds=1", "--new=4", "--kinds=own answers"]
    benchmark.main(["evaluate", *flags, f"--json={tmp_path / 'speed.json'}"])
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert len(rows) == 2 and all(row["same_answers"] == 1 and row["exact"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_answers_are_those_of_the_peer_in_either_precision(precision, tmp_path):
    pytest.importorskip("lm_eval")
    path = tmp_path / "evaluate.json"
    flags = ["--model=tiny", "--prompts=3", "--rounds=1", "--new=2", f"--precision={precision}", f"--json={path}"]
    benchmark.main(["evaluate", *flags])
    rows = json.loads(path.read_text())["rows"]
    rows = [row for row in rows if "decoding step" not in row["name"]]
    ranked, generated = rows[: len(evaluate.KINDS)], rows[len(evaluate.KINDS) :]
    assert all(row["exact"] and row["difference"] < evaluate.NATS[precision] for row in ranked)
    assert all(row["exact"] == (True if precision == "fp32" else None) for row in generated)
    assert all(row["same_answers"] >= (1 if precision == "fp32" else 0) for row in generated)


def test_xla_flags_are_defaults():
    others = "--xla_gpu_enable_latency_hiding_scheduler=true"
    for given, want in (
        ({}, f"--xla_gpu_enable_triton_gemm=false {others}"),
        ({"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=true --a"}, f"--xla_gpu_enable_triton_gemm=true --a {others}"),
    ):
        xla_flags.set_defaults(given)
        assert given["XLA_FLAGS"] == want and given[xla_flags.MEMORY] == "0.9"
    xla_flags.set_defaults(given := {xla_flags.MEMORY: "0.5"})
    assert given[xla_flags.MEMORY] == "0.5"


def test_both_sides_make_the_same_updates(batches, tmp_path):
    """Adam, clipping and schedule, at a rate that moves the loss by far more than the tolerance."""
    optimization = Optimization(learning_rate=1e-3, train_steps=8, warmup_steps=2)
    config = dataclasses.replace(MODELS["tiny"], dropout=0.0)
    ours = Ours(config, optimization, Computation("fp32", "none"), batches, 0, tmp_path / "weights")
    flags = argparse.Namespace(precision="fp32", no_torch_compile=True)
    theirs = peer.peers(tmp_path / "weights", optimization, flags, [batch.arrays for batch in batches])
    want = np.array([ours.run(), ours.run()])
    assert np.abs(want[1] - want[0]).min() > 0.01
    for item in theirs:
        have = np.array([item.run(), item.run()])
        if item.layout.exact:
            np.testing.assert_allclose(have, want, atol=1e-4, err_msg=item.layout.name)


def test_padded_documents_are_those_of_the_packed_rows(batches):
    arrays = batches[0].arrays
    parts = list(peer.padded(arrays))
    limit = arrays["tokens_BT"].size
    assert all(part["input_ids"].numel() <= limit for part in parts)
    have = [
        document[mask.bool()].tolist()
        for part in parts
        for document, mask in zip(part["input_ids"], part["attention_mask"])
    ]
    want = [
        tokens[segments == segment].tolist()
        for tokens, segments in zip(arrays["tokens_BT"], arrays["segment_ids_BT"])
        for segment in range(1, segments.max() + 1)
    ]
    assert have == want and len(have) == len(batches[0].examples[0]) + len(batches[0].examples[1])


def test_random_examples_have_the_lengths_and_labels_they_are_said_to_have():
    store = rows.RandomStore(50_272, 512, 0.15, 0)
    tokens = store.lengths("random", "train") + 1.0
    assert tokens.max() <= 512 and tokens.mean() == pytest.approx(198, abs=3)
    labels = [len(ids) - start + 1 for ids, start in (store.read("random", "train", i) for i in range(2000))]
    assert sum(labels) / tokens[:2000].sum() == pytest.approx(0.15, abs=0.005)


def test_the_loader_and_its_peer_deliver_the_same_tokens(tmp_path, capsys):
    path = tmp_path / "data.json"
    benchmark.main(
        ["data", "--parts=batches", "--rows=4", "--row_length=128", "--steps=6", "--rounds=3", f"--json={path}"]
    )
    (row,) = json.loads(path.read_text())["rows"]
    assert row["real_tokens"] == row["peer_real_tokens"] > 0.9 * 4 * 128 * 6
    assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    assert "real tokens/s" in capsys.readouterr().out


def test_ours_can_be_measured_alone(tmp_path):
    path = tmp_path / "alone.json"
    benchmark.main([*TINY, "--no_peer", f"--json={path}"])
    (row,) = json.loads(path.read_text())["rows"]
    assert row["ours"] > 0 and row["peer"] is None and row["ratio"] is None


@pytest.mark.parametrize(
    "flags, message",
    [
        (["train", "--model=125M"], "invalid choice: '125M'"),
        (["train", "--rounds=0"], "--rounds=0 must be at least 1"),
        (["train", "--cache_dir=x"], "--cache_dir and --mixture go together"),
        (["train", "--model=tiny", "--cache_dir=/nowhere", "--mixture=m"], "/nowhere/store.json: no token store here"),
        (["train", "--model=tiny", "--row_length=4096"], "--row_length=4096 is more than the model's 2048 positions"),
        (["train", "--model=tiny", "--attention=flash"], "--attention=flash is unknown; use one of auto, dense"),
        (["train", "--model=tiny", "--remat=half"], "'half' is unknown; use one of none, dots, attention-saved, full"),
        (["data", "--label_share=0"], "--label_share=0.0 must be above 0"),
        (["data", "--parts=start,pick"], "unknown part pick; choose of start, pack, cache, render, batches"),
        (["data", "--peer_tasks=2000"], "--peer_tasks=2000 must be from 4 to 1545"),
        (["tain"], "invalid choice: 'tain'"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(capsys, flags, message):
    with pytest.raises(SystemExit) as error:
        benchmark.main(flags)
    captured = capsys.readouterr().err
    assert error.value.code == 2 and captured.count("\n") == 1 and message in captured, captured


def test_without_torch_the_way_out_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "tools.speed.peer")
    monkeypatch.delattr("tools.speed.peer")
    with pytest.raises(SystemExit) as error:
        benchmark.main(TINY)
    captured = capsys.readouterr().err
    assert error.value.code == 2 and "pip install '.[test]'" in captured and "--no_peer" in captured, captured


def test_the_overlap_of_all_sides_is_the_same(tmp_path):
    """Planted copies are found by a set of tuples of words, by `np.isin` and by ours, equally often."""
    path = tmp_path / "overlap.json"
    benchmark.main(["overlap", "--rounds=1", "--train_tokens=6e4", "--eval_tokens=3e4", f"--json={path}"])
    by_name = json.loads(path.read_text())["rows"]
    assert [row["exact"] for row in by_name] == [True, True] and all(row["ratio"] > 0 for row in by_name)
    with pytest.raises(SystemExit):
        benchmark.main(["overlap", "--train_tokens=10"])


def test_a_machine_for_training_needs_no_packages_of_the_benchmarks():
    """As on a GPU node: jax, flax, optax, orbax, tokenizers, and no reader or measure of texts, and no peer."""
    absent = "rapidfuzz gin tensorboardX seqio tensorflow torch transformers lm_eval jinja2"
    code = (
        f"import sys; sys.modules |= dict.fromkeys({absent.split()!r}); from tools.benchmark import main; "
        "rows = ['--rows=2', '--row_length=64', '--no_peer', '--rounds=1', '--steps=1']; "
        "[main([part, *rows, *more]) for part, more in (('train', ['--model=tiny', '--profile']), "
        "('attention', ['--model=tiny']), ('data', ['--parts=batches']))]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("real tokens/s") >= 3


def test_all_runs_part_after_part_and_says_what_was_left_out_and_why(tmp_path, capsys, monkeypatch):
    tiny = "--model=tiny --rows=2 --row_length=64 --rounds=1 --steps=1 --no_peer"
    parts = (("one", f"train {tiny}"), ("two", f"train {tiny} --precision=bf15"), ("three", f"attention {tiny}"))
    monkeypatch.setattr(everything, "CPU", parts)
    benchmark.main(["all", f"--out={tmp_path}", "--minutes=5"])
    *_, first, second, third = capsys.readouterr().out.rstrip().splitlines()
    assert first.startswith("train tiny fp32") and third.startswith("attention tiny fp32")
    assert second.split("  ")[0] == "two" and "failed with exit code 2" in second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "three.json"]

    benchmark.main(["all", f"--out={tmp_path}", "--minutes=0.1", "--only=one"])
    assert "left out: the time limit was reached" in capsys.readouterr().out


def test_what_others_use_is_told_from_what_this_process_uses(monkeypatch, tmp_path):
    """Two seconds in which all cores worked for 3 seconds, of them 1 for this process and its children."""
    times, ticks = itertools.cycle([(0.0, 0.5, 100.0), (2.0, 1.5, 103.0)]), os.sysconf("SC_CLK_TCK")

    def at(now: float, mine: float, everyone: float) -> None:
        monkeypatch.setattr(machine.time, "monotonic", lambda: now)
        monkeypatch.setattr(machine.os, "times", lambda: os.times_result((mine, 0, 0, 0, now)))
        stat = f"cpu {round(everyone * ticks)} 0 0 999 999 0 0 0 0 0\ncpu0 1 2 3\n"
        monkeypatch.setattr(machine.Path, "read_text", lambda path, encoding: stat)

    at(*next(times))
    others = machine.Others()
    at(*next(times))
    assert others.cores() == 1.0


def test_kernels_are_told_apart_by_their_names():
    kinds = {
        "nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_NTN": "matrix products",
        "attention_d_key": "attention",
        "MemcpyD2D": "copies",
        "input_reduce_fusion_12": "reductions",
        "loop_add_fusion": "other element-wise",
    }
    assert {name: profile.kind(name) for name in kinds} == kinds
