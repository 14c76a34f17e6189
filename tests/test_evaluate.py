"""Evaluation from the command line and from its settings: suites, files, resume, mistakes."""

import json
import subprocess
import time

import numpy as np
import pytest

from optiml_jax.common.errors import UserError, exit_on_user_error
from optiml_jax.data.cache_paths import ledger_path
from optiml_jax.evaluation import run as run_module
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import read_ledger, write_ledger
from optiml_jax.inference.model import Model
from tests.commands import run_all
from tests.conftest import ROOT
from tests.evaluation.small_model import prompt, read, small_model
from tests.test_train import SMALL, command, environment, run


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


def test_several_suites_make_one_report_and_no_task_is_in_two(model, tmp_path, monkeypatch, capsys):
    cache, weights = tmp_path / "cache", tmp_path / "weights"
    monkeypatch.setattr(run_module, "load_model", lambda *args, **options: model)
    model.save(str(weights))
    levels = {"one": "fully_held_out", "two": "held_out_task", "three": "held_out_instances"}
    for number, (suite, level) in enumerate(levels.items()):
        suite_prompt = prompt(number, suite=suite, task=f"bench.{suite}", level=level)
        write_ledger(ledger_path(cache, suite), [suite_prompt], {"coverage": {suite: {"test": [1, 2]}}})
    result = run_module.evaluate(
        str(weights), output_dir=str(tmp_path / "out"), suite="one, two,three", cache_dir=str(cache)
    )
    assert set(result["levels"]) == set(levels.values()) and set(result["tasks"]) == {
        f"bench.{suite}" for suite in levels
    }
    assert "one: 1 of 2 test tasks have files; two: 1 of 2" in capsys.readouterr().out
    write_ledger(ledger_path(cache, "again"), [prompt(9, suite="again", task="bench.two")], {})
    for suite, ledger, message in (
        ("two,again", None, "again.jsonl: task bench.two .*two.jsonl"),
        ("two,none", None, "none.jsonl: no such ledger"),
        ("two", "x.jsonl", "SUITE=two and LEDGER=x.jsonl both"),
    ):
        with pytest.raises(UserError, match=message):
            run_module.evaluate(str(weights), ledger, str(tmp_path / "out"), suite=suite, cache_dir=str(cache))


def test_floors_are_those_of_the_whole_ledger_whatever_the_limit(model, tmp_path, monkeypatch):
    """The baseline is computed on all 20 questions of the ledger, 12 of which have the answer "yes", also when LIMIT
    selects one or five of them."""
    monkeypatch.setattr(run_module, "load_model", lambda *args, **options: model)
    model.save(str(tmp_path / "weights"))
    prompts = [
        prompt(n, task="t", references=("yes" if n < 12 else "no",), candidates=("yes", "no")) for n in range(20)
    ]
    write_ledger(tmp_path / "ledger.jsonl", prompts, {})
    floors = []
    for limit in (1, 5, 0):
        options = {"output_dir": str(tmp_path / f"limit{limit}"), "limit": limit}
        results = run_module.evaluate(str(tmp_path / "weights"), str(tmp_path / "ledger.jsonl"), **options)
        (task,), (level,) = results["tasks"].values(), results["levels"].values()
        floors += [task["baselines"]["majority"], level["floor"]]
        assert results["limit"] == limit
    assert floors == [0.6] * 6


@pytest.mark.slow
def test_killed_at_ten_moments_it_ends_in_the_same_bytes(model, tmp_path, monkeypatch):
    """SIGKILL at a random moment after a random number of groups, ten times; about 1,000 prompts in groups of 16."""
    generated = {"candidates": None, "metric": Metric("rouge_l"), "references": ("one two",), "task": "written"}
    prompts = [prompt(n) for n in range(800)] + [prompt(n, **generated) for n in range(800, 1000)]
    write_ledger(tmp_path / "ledger.jsonl", prompts, {})
    model.save(str(tmp_path / "weights"))
    settings = {"WEIGHTS": str(tmp_path / "weights"), "LEDGER": str(tmp_path / "ledger.jsonl")}
    settings |= {"EVALUATION_ROWS": 1, "MAX_NEW_TOKENS": 6}
    settings |= {"OUTPUT_DIR": str(tmp_path / "killed")}  # reports say the command: it must be the same
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")  # and the date
    run("evaluate", settings, gin_file="evaluate.gin")
    (tmp_path / "killed").rename(tmp_path / "whole")

    words = command("evaluate", settings, gin_file="evaluate.gin")
    (whole,) = (tmp_path / "whole").glob("answers-*.jsonl")
    answers, rng = tmp_path / "killed" / whole.name, np.random.default_rng()

    def groups() -> int:
        return answers.read_bytes().count(b"\n") if answers.exists() else 0

    for _ in range(10):
        until = groups() + rng.integers(1, 5)
        with subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and groups() < until:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
            assert process.poll() is None, "it ended before it was killed"
            process.kill()
    assert not (tmp_path / "killed" / "results.json").exists()
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert "resuming after" in done.stdout
    for name in ("results.json", "samples.jsonl", "report.md", "report.html", "chain.txt"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_part_of_a_ledger_is_chosen_by_shots_and_number_of_questions():
    ledger = [
        prompt(n, task=f"task{n % 2}", shots=shots, part_of=str(n // 4) if n % 2 else None)
        for shots in (0, 5)
        for n in range(40)
    ]
    assert run_module.select(ledger, None, 0) == ledger
    assert {item.shots for item in run_module.select(ledger, 5, 0)} == {5}
    assert run_module.select(ledger, [0, 5], 0) == ledger
    few, more = run_module.select(ledger, None, 3), run_module.select(ledger, None, 6)
    assert len(few) == 2 * (3 + 3 * 2) and set(few) < set(more), "questions of two parts are asked whole"
    with pytest.raises(UserError, match=r"SHOTS=3: .* 0, 5 demonstrations"):
        run_module.select(ledger, 3, 0)


def test_the_command_trains_evaluates_and_reports(tmp_path):
    """Train and evaluate in one go, then evaluate again by itself from the same run."""
    settings = {name: value for name, value in SMALL.items() if name != "train.evaluate_after"}
    settings |= {"CACHE_DIR": str(tmp_path / "cache"), "MODEL_DIR": str(tmp_path / "run"), "MAX_NEW_TOKENS": 4}
    done = run("train", settings)
    assert "Levels of generalization" in done.stdout and "Training loss" in done.stdout
    first = read(tmp_path / "run" / "evaluation" / "samples")
    assert {"report.md", "report.html"} <= {
        path.name for path in (tmp_path / "run" / "evaluation" / "samples").iterdir()
    }
    ledger = tmp_path / "cache" / "ledgers" / "samples.jsonl"
    results = json.loads(first[0])
    assert len(results["tasks"]) == 15 and set(results["levels"]) == {
        "fully_held_out",
        "held_out_task",
        "held_out_instances",
    }
    assert sum(task["examples"] for task in results["tasks"].values()) == len(read_ledger(ledger))
    again = {"WEIGHTS": str(tmp_path / "run"), "LEDGER": str(ledger), "OUTPUT_DIR": str(tmp_path / "again")}
    run("evaluate", again | {"MAX_NEW_TOKENS": 4}, gin_file="evaluate.gin")
    second = read(tmp_path / "again")
    assert second[1:] == first[1:]
    when = {"date", "command"}
    one, two = ({k: v for k, v in json.loads(made[0]).items() if k not in when} for made in (first, second))
    assert one == two and when <= results.keys() and results["precision"] == "float32" and results["limit"] == 0


def test_an_interrupted_command_ends_without_a_traceback(capsys):
    @exit_on_user_error
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err.startswith("interrupted; ")


BAD = {
    "mistyped weights": ({"WEIGHTS": "runs/no/where", "LEDGER": "{ledger}"}, "runs/no/where: neither a directory nor"),
    "no weights": ({}, "WEIGHTS is not set"),
    "no ledger": ({"WEIGHTS": "runs/nowhere"}, "LEDGER is not set"),
    "no such ledger": ({"WEIGHTS": ".", "LEDGER": "nowhere.jsonl"}, "nowhere.jsonl: no such ledger"),
    "unknown ranking": ({"WEIGHTS": ".", "LEDGER": "{ledger}", "RANKED_BY": "per_word"}, "no RANKED_BY per_word"),
    "no such model": ({"WEIGHTS": "nowhere", "LEDGER": "{ledger}", "OUTPUT_DIR": "{tmp}/out"}, "nowhere"),
}


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit code and stderr of every case."""
    directory = tmp_path_factory.mktemp("mistakes")
    ledger = directory / "ledger.jsonl"
    ledger.write_text(prompt(0).line())
    commands = []
    for change, _ in BAD.values():
        settings = {name: value.format(ledger=ledger, tmp=directory) for name, value in change.items()}
        commands.append(("optiml_jax.evaluate", command("evaluate", settings, gin_file="evaluate.gin")[3:]))
    return dict(zip(BAD, run_all(commands, environment())))


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_with_the_way_out(case, mistakes):
    code, error = mistakes[case]
    assert code == 2 and error.startswith("error: ") and BAD[case][1] in error and error.count("\n") == 1, error
