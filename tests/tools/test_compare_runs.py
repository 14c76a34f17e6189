"""Comparing two evaluations from the command line: ours, the harness's, and mistakes."""

import json

import pytest

from optiml_jax.evaluation.scores.samples import write_samples
from optiml_jax.harness import samples as harness
from tests.browser import colours, dom
from tests.commands import run_all
from tests.evaluation.example_prompts import sample
from tests.test_train import environment
from tools import compare_runs


def write_run(directory, right: int):
    """An evaluation of two tasks: of 40 prompts the first `right` are right; 20 of fractions."""
    samples = [sample(float(n < right), number=n) for n in range(40)]
    of_text = {"task": "bench.copy", "metric": "rouge_l", "category": "copying", "level": "fully_held_out"}
    samples += [sample(min(1.0, right * n / 500), number=n, **of_text) for n in range(20)]
    directory.mkdir(parents=True)
    write_samples(directory / "samples.jsonl", samples)
    return directory


@pytest.fixture
def runs(tmp_path):
    return write_run(tmp_path / "a", 10), write_run(tmp_path / "run" / "evaluation", 25).parent


def test_the_tables_the_json_and_the_page_say_the_same(runs, tmp_path, capsys):
    out = tmp_path / "out"
    compare_runs.main([*map(str, runs), "--names=before,after", f"--output={out}"])
    printed = capsys.readouterr().out
    result = json.loads((out / "comparison.json").read_text())
    assert result["names"] == ["before", "after"] and result["prompts"] == 60 and result["changed"] == 15 + 19
    task = result["tasks"]["bench.sky"]
    assert (task["first"], task["second"], task["only_second"]) == (0.25, 0.625, 15) and task["p"] == 2 / 2**15
    level = result["levels"]["fully_held_out"]  # of one task
    assert level["test"] is level["p"] is level["interval"] is None and level["questions_interval"]
    assert "Of 2 levels, 0 better and 0 worse in after (Holm-corrected p < 0.05); 2 cannot be decided" in printed
    page = dom(out / "comparison.html")
    for text in (printed, (out / "comparison.md").read_text(), page):
        assert "+37.5" in text and "Of 2 tasks, 2 better and 0 worse in after" in text
    assert "60 prompts, 34 of them scored differently" in printed
    assert "34 prompts" in page and "before: 38.0" in page and "after: 95.0" in page  # the largest change, of the text
    pixels = colours(out / "comparison.html", 1200, 1400)
    assert pixels.get((187, 205, 240), 0) > 2_000, "pale bars: nothing is decided by two tasks"
    assert pixels.get((0x3B, 0x6F, 0xD4), 0) > 1_000, "bars of the two tasks that are better"


def harness_line(number: int, scores: list[float], right: int) -> str:
    """A line of the harness for a question of four candidates."""
    resps = [[score, False] for score in scores]
    best = scores.index(max(scores))
    arguments = {
        f"gen_args_{i}": {"arg_0": f"Question {number}?\nAnswer:", "arg_1": f" {word}"} for i, word in enumerate("abcd")
    }
    line = {"doc_id": number, "doc": {}, "target": right, "arguments": arguments, "resps": [[item] for item in resps]}
    line |= {"filtered_resps": resps, "filter": "none", "metrics": ["acc", "acc_norm"]}
    return json.dumps(line | {"acc": float(best == right), "acc_norm": 1.0}) + "\n"


def test_samples_of_the_harness_are_read(tmp_path, capsys):
    for name, time, shift in (("a", "2026-01-01T00-00-00.1", 0), ("b", "2026-01-02T00-00-00.1", 1)):
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        lines = [harness_line(n, [-1.0, -2.0, -3.0, -4.0], shift) for n in range(12)]
        (folder / f"samples_arc_easy_{time}.jsonl").write_text("".join(lines))
        (folder / "samples_arc_easy_2025-01-01T00-00-00.1.jsonl").write_text("an older one")
    with pytest.raises(SystemExit):  # the targets differ, so it is not the same question
        compare_runs.main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "12 prompts differ in references" in capsys.readouterr().err
    compare_runs.main([str(tmp_path / "a"), str(tmp_path / "a"), "--metric=acc_norm", f"--output={tmp_path / 'out'}"])
    task = json.loads((tmp_path / "out" / "comparison.json").read_text())["tasks"]["arc_easy"]
    assert (task["first"], task["prompts"], task["p"], task["metric"]) == (1.0, 12, 1.0, "acc_norm")


def test_samples_of_several_models_are_not_mixed(tmp_path, capsys):
    for model in ("opt", "tuned"):
        (tmp_path / "a" / model).mkdir(parents=True)
        (tmp_path / "a" / model / "samples_arc_easy_2026.jsonl").write_text(harness_line(0, [-1.0, -2.0], 0))
    with pytest.raises(SystemExit):
        compare_runs.main([str(tmp_path / "a"), str(tmp_path / "a")])
    error = capsys.readouterr().err
    assert "several models" in error and "a/opt" in error and "a/tuned" in error


def test_shots_and_direction_are_those_of_the_harness(tmp_path, capsys):
    """A perplexity that falls is an improvement, is shown as it is, and belongs to its number of shots."""
    for name, perplexity in (("a", 21.5), ("b", 17.25)):
        folder = tmp_path / name
        folder.mkdir()
        lines = [
            {"doc_id": n, "target": "", "arguments": [[f"text {n}"]], "resps": [[-5.0]], "filtered_resps": [-5.0]}
            | {"filter": "none", "metrics": ["word_perplexity"], "word_perplexity": perplexity + 0.5 * (n % 3)}
            for n in range(12)
        ]
        (folder / "samples_wikitext_2026.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        facts = {"n-shot": {"wikitext": 2}, "higher_is_better": {"wikitext": {"word_perplexity": False}}}
        (folder / "results_2026.json").write_text(json.dumps(facts))
    compare_runs.main([str(tmp_path / "a"), str(tmp_path / "b"), "--names=a,b", f"--output={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    task = json.loads((tmp_path / "out" / "comparison.json").read_text())["tasks"]["wikitext"]
    assert task["metric"] == "word_perplexity" and task["higher_is_better"] is False and task["p"] == 2 / 2**12
    assert "Of 1 task, 1 better and 0 worse in b" in printed and "22.0" in printed and "17.8" in printed
    assert harness.read(tmp_path / "a")[0]["shots"] == 2 and "Averages" not in printed
    (tmp_path / "b" / "results_2026.json").write_text("[]")
    with pytest.raises(SystemExit):
        compare_runs.main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "results_2026.json: not the results of lm-evaluation-harness" in capsys.readouterr().err


def test_mistakes_take_one_line(tmp_path, runs):
    first, second = map(str, runs)
    damaged, empty = tmp_path / "damaged", tmp_path / "empty"
    for folder in (damaged, empty):
        folder.mkdir()
    (damaged / "samples.jsonl").write_text((runs[0] / "samples.jsonl").read_text()[:-20])
    (empty / "samples.jsonl").write_text('{"id": "x"}\n')
    cases = [
        ([first], "give two evaluations A and B"),
        ([first, "nowhere"], "nowhere: has no samples.jsonl"),
        ([first, str(damaged)], "samples.jsonl:60: not JSON"),
        ([first, str(empty)], "samples.jsonl:1: object missing required field benchmark"),
        ([first, second, "--names=one"], "--names must be two names"),
        ([first, second, f"--output={first}/samples.jsonl/x"], "samples.jsonl/x: cannot be written"),
    ]
    result = run_all([("tools.compare_runs", words) for words, _ in cases], environment())
    for (words, message), (code, stderr) in zip(cases, result, strict=True):
        assert code == 2 and message in stderr and stderr.count("\n") == 1, (words, stderr)
