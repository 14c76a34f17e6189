"""Evaluation from the command line and from Python: files, resume, oracles for its scores, mistakes."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import time

import jax
import numpy as np
import pytest

from optiml_jax.data.caches import ledger_path
from optiml_jax.errors import UserError, exit_on_user_error
from optiml_jax.evaluation import answering
from optiml_jax.evaluation import run as run_module
from optiml_jax.evaluation.ledger import Prompt, read_ledger, write_ledger
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.ranked_by import RANKED_BY
from optiml_jax.evaluation.samples import score_sample
from optiml_jax.files import exclusive
from optiml_jax.inference.model import Model
from optiml_jax.model import decoder
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer
from tests.commands import run_all
from tests.conftest import ROOT
from tests.meshes import mesh_of
from tests.test_train import SMALL, command, environment, run

CONFIG = OPTConfig(vocab_size=1536, layers=1, model_dim=32, heads=2, ffn_dim=64, max_positions=128, init_scale=0.2)


def prompt(number: int, **fields) -> Prompt:
    return Prompt(
        **{
            "suite": "suite",
            "benchmark": "bench",
            "task": f"task{number % 2}",
            "template": "t",
            "example_id": str(number),
            "shots": 0,
            "seed": 0,
            "category": "c",
            "level": "held_out_instances",
            "metric": Metric("accuracy"),
            "prompt": f"Task: say {number}.\nOutput:",
            "candidates": ("yes", "no", "a third one"),
            "references": ("no",),
        }
        | fields
    )


@pytest.fixture(scope="module")
def model() -> Model:
    tokenizer = Tokenizer.load(ROOT / "tasks" / "samples" / "tokenizer")
    params = decoder.init_params(jax.random.key(0), CONFIG)
    return Model(CONFIG, params, tokenizer, mesh_of("1x1x1"), source="random")


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    generated = {"candidates": None, "metric": Metric("rouge_l"), "references": ("one two", "three")}
    return [prompt(n) for n in range(20)] + [prompt(n, task="written", **generated) for n in range(20, 30)]


def read(directory) -> tuple[bytes, bytes]:
    return (directory / "results.json").read_bytes(), (directory / "samples.jsonl").read_bytes()


def test_predictions_are_the_best_candidates_and_the_greedy_texts(model, prompts, tmp_path):
    answering.run_evaluation(model, prompts, tmp_path, max_new_tokens=6)
    samples = {s["id"]: s for s in map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())}
    for asked in prompts:
        sample = samples[asked.id]
        if asked.candidates:
            scores = model.rank([asked.prompt], [[" " + text for text in asked.candidates]])[0]
            np.testing.assert_allclose(sample["scores"], scores, atol=1e-4)
            assert sample["prediction"] == asked.candidates[int(np.argmax(scores))]
            assert sample["score"] == float(sample["prediction"] == "no")
        else:
            assert sample["prediction"] == model.generate([asked.prompt], max_new_tokens=6)[0].strip()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["bos"] == "</s>" and results["tasks"]["task0"]["examples"] == 10
    assert results["tasks"]["task0"]["score"] == np.mean([samples[p.id]["score"] for p in prompts[:20:2]])


def test_stop_texts_limits_and_separators_stand_in_the_ledger(model, prompts, tmp_path):
    """Against the model asked by hand; a stop text is no part of the answer, nor a limit of tokens a fault."""
    whole = model.generate([prompts[20].prompt], max_new_tokens=12)[0]
    assert len(whole) > 4
    stop = whole[3]
    fields = {"candidates": None, "metric": Metric("rouge_l"), "references": ("a",), "task": "written"}
    asked = [
        prompt(20, **fields, stop=("never said", stop)),
        prompt(21, **fields, max_new_tokens=2),
        prompt(22, **fields, max_new_tokens=99),
        prompt(23, separator="\n"),
        prompt(24, **fields, separator="", prompt="Say it. "),
        prompt(25, given=(1, 1, 4)),
    ]
    answering.run_evaluation(model, asked, tmp_path, max_new_tokens=12)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert samples[0]["prediction"] == whole[: whole.index(stop)].strip() and not samples[0]["truncated"]
    for sample, limit in zip(samples[1:3], (2, 12)):
        assert sample["prediction"] == model.generate([sample["prompt"]], max_new_tokens=limit)[0].strip()
    scores = model.rank([asked[3].prompt], [["\n" + text for text in asked[3].candidates]])[0]
    np.testing.assert_allclose(samples[3]["scores"], scores, atol=1e-4)
    assert samples[4]["prediction"] == model.generate(["Say it. "], max_new_tokens=12)[0].strip()
    told = zip(asked[5].candidates, asked[5].given)  # what is told stands before what is ranked, with its space
    (scores,) = zip(*(model.rank([f"{asked[5].prompt} {text[:n]}"], [[text[n:]]])[0] for text, n in told))
    np.testing.assert_allclose(samples[5]["scores"], scores, atol=1e-4)


def test_several_suites_make_one_report_and_no_task_is_in_two(model, prompts, tmp_path, monkeypatch, capsys):
    cache, weights = tmp_path / "cache", tmp_path / "weights"
    monkeypatch.setattr(run_module, "load_model", lambda *args, **options: model)
    model.save(str(weights))
    levels = {"one": "fully_held_out", "two": "held_out_task", "three": "held_out_instances"}
    for number, (suite, level) in enumerate(levels.items()):
        own = prompt(number, suite=suite, task=f"bench.{suite}", level=level)
        write_ledger(ledger_path(cache, suite), [own], {"coverage": {suite: {"test": [1, 2]}}})
    found = run_module.evaluate(
        str(weights), output_dir=str(tmp_path / "out"), suite="one, two,three", cache_dir=str(cache)
    )
    assert set(found["levels"]) == set(levels.values()) and set(found["tasks"]) == {
        f"bench.{suite}" for suite in levels
    }
    assert "one: 1 of 2 test tasks have files; two: 1 of 2" in capsys.readouterr().out
    write_ledger(ledger_path(cache, "again"), [prompt(9, suite="again", task="bench.two")], {})
    for suite, ledger, message in (
        ("two,again", None, "again.jsonl: task bench.two stands in .*two.jsonl too; evaluate the two apart"),
        ("two,none", None, "none.jsonl: no such ledger"),
        ("two", "x.jsonl", "SUITE=two and LEDGER=x.jsonl both say what is asked"),
    ):
        with pytest.raises(UserError, match=message):
            run_module.evaluate(str(weights), ledger, str(tmp_path / "out"), suite=suite, cache_dir=str(cache))


def answered(model, monkeypatch) -> list[str]:
    """The ids of the prompts that a model is asked from now on."""
    asked, rank, generate = [], model.rank_prompts, model.generate_prompts

    def spy_rank(prompts, candidates, batch_rows, names, given):
        asked.extend(names)
        return rank(prompts, candidates, batch_rows, names, given)

    def spy_generate(prompts, limits, stop, batch_rows, names):
        asked.extend(names)
        return generate(prompts, limits, stop, batch_rows, names)

    monkeypatch.setattr(model, "rank_prompts", spy_rank)
    monkeypatch.setattr(model, "generate_prompts", spy_generate)
    return asked


def test_an_interrupted_evaluation_ends_as_an_uninterrupted_one(model, prompts, tmp_path, monkeypatch):
    """Stopped before the second and again before the last group: what is answered is not asked again."""
    monkeypatch.setattr(answering, "GROUP", 2)
    options = {"max_new_tokens": 6, "batch_rows": 4}
    answering.run_evaluation(model, prompts, tmp_path / "whole", **options)
    write, asked = answering.AnswerStore.write, answered(model, monkeypatch)
    for left in (1, 3):
        written = []

        def stop(self, group, left=left, written=written):
            if len(written) == left:
                raise KeyboardInterrupt
            written.append(group)
            write(self, group)

        monkeypatch.setattr(answering.AnswerStore, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            answering.run_evaluation(model, prompts, tmp_path / "parts", **options)
        assert not (tmp_path / "parts" / "results.json").exists()
    monkeypatch.setattr(answering.AnswerStore, "write", write)
    answering.run_evaluation(model, prompts, tmp_path / "parts", **options)
    assert read(tmp_path / "parts") == read(tmp_path / "whole")
    for name in ("report.md", "report.html"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    groups = [len(group) for group, _ in answering._groups(prompts, 4, 6, "sum")]
    assert groups == [8, 8, 4, 8, 2] and len(asked) == len(prompts) + 8 + 2  # two groups were lost


@pytest.mark.slow
def test_killed_at_ten_moments_it_ends_in_the_same_bytes(model, tmp_path):
    """SIGKILL at a random moment after a random number of groups, ten times; about 1,000 prompts in groups of 16."""
    generated = {"candidates": None, "metric": Metric("rouge_l"), "references": ("one two",), "task": "written"}
    asked = [prompt(n) for n in range(800)] + [prompt(n, **generated) for n in range(800, 1000)]
    write_ledger(tmp_path / "ledger.jsonl", asked, {})
    model.save(str(tmp_path / "weights"))
    settings = {"WEIGHTS": str(tmp_path / "weights"), "LEDGER": str(tmp_path / "ledger.jsonl")}
    settings |= {"EVALUATION_ROWS": 1, "MAX_NEW_TOKENS": 6}
    run("evaluate", settings | {"OUTPUT_DIR": str(tmp_path / "whole")}, gin_file="evaluate.gin")

    words = command("evaluate", settings | {"OUTPUT_DIR": str(tmp_path / "killed")}, gin_file="evaluate.gin")
    answers, rng = tmp_path / "killed" / "answers.jsonl", np.random.default_rng()

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
    assert "going on after" in done.stdout
    for name in ("results.json", "samples.jsonl", "report.md", "report.html", "chain.txt", "answers.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_larger_ledger_asks_only_what_is_new(model, prompts, tmp_path, monkeypatch):
    answering.run_evaluation(model, prompts[4:24], tmp_path / "grown", max_new_tokens=6)
    asked = answered(model, monkeypatch)
    answering.run_evaluation(model, prompts, tmp_path / "grown", max_new_tokens=6, batch_rows=3)
    assert sorted(asked) == sorted(prompt.id for prompt in [*prompts[:4], *prompts[24:]])
    answering.run_evaluation(model, prompts, tmp_path / "anew", max_new_tokens=6)
    grown, anew = (json.loads(read(tmp_path / name)[0]) for name in ("grown", "anew"))
    assert grown == anew


def test_bad_prompts_are_named_and_cost_no_other_prompt(model, prompts, tmp_path, capsys):
    bad = {
        "empty": prompt(90, candidates=("no", "")),
        "long": prompt(91, candidates=("no", "word " * 400)),
        "twice": prompt(92, candidates=("no", "yes", "no")),
        "cut": prompt(93, prompt="word " * 400),
        "cut too": prompt(94, candidates=None, metric=Metric("rouge_l"), task="written", prompt="word " * 400),
    }
    answering.run_evaluation(model, [*prompts, *bad.values()], tmp_path, max_new_tokens=6)
    samples = {s["id"]: s for s in map(json.loads, read(tmp_path)[1].decode().split("\n")[:-1])}
    assert len(samples) == len(prompts) + 5
    for name in ("empty", "long"):
        assert samples[bad[name].id]["score"] is None
    for name in ("twice", "cut", "cut too"):
        assert samples[bad[name].id]["score"] is not None
    said = capsys.readouterr().out
    positions = model.config.max_positions
    for line in (
        f"Not scored, 1 prompts, a candidate is empty: {bad['empty'].id}",
        rf"Not scored, 1 prompts, a candidate of \d+ tokens, longer than the model's {positions} .*: {bad['long'].id}",
        f"Scored all the same, 1 prompts, candidate 'no' stands there twice: {bad['twice'].id}",
        f"Scored all the same, 2 prompts, too long, its beginning was cut: {bad['cut'].id}, {bad['cut too'].id}",
    ):
        assert re.search(line, said)
        assert re.search(line, (tmp_path / "report.md").read_text())
    answering.run_evaluation(model, prompts, tmp_path / "good", max_new_tokens=6)
    good = {s["id"]: s for s in map(json.loads, read(tmp_path / "good")[1].decode().split("\n")[:-1])}
    for id, sample in good.items():
        np.testing.assert_allclose(samples[id]["scores"] or [], sample["scores"] or [], atol=1e-4)
        assert samples[id] | {"scores": None} == sample | {"scores": None}


@pytest.mark.parametrize("ranked_by", RANKED_BY)
def test_candidates_may_be_ranked_by_scores_put_right_for_their_length(model, tmp_path, ranked_by):
    candidates = ("no", "it is not at all so", "être")
    asked = [
        prompt(1, candidates=candidates, references=("no",)),
        prompt(2, candidates=candidates, references=("no",), given=(1, 3, 1)),
    ]
    found = answering.run_evaluation(model, asked, tmp_path, ranked_by=ranked_by)
    assert found["ranked_by"] == ranked_by
    for one, sample in zip(asked, map(json.loads, read(tmp_path)[1].splitlines())):
        for text, told, score in zip(candidates, one.given or (0, 0, 0), sample["scores"]):
            before, rest = (f"{one.prompt} {text[:told]}", text[told:]) if told else (one.prompt, f" {text}")
            (want,), (alone,) = (
                model.rank([before], [[rest]])[0],
                model.rank([f" {text[:told]}" * bool(told)], [[rest]])[0],
            )
            tokens, size = len(model.tokenizer.encode(rest)), len(text[told:].encode())
            of = {"sum": want, "per_token": want / tokens, "per_byte": want / size, "unconditional": want - alone}
            assert score == pytest.approx(of[ranked_by], abs=1e-4)
        assert sample["prediction"] == candidates[int(np.argmax(sample["scores"]))]


def test_a_part_of_a_ledger_is_chosen_by_shots_and_number_of_questions():
    ledger = [
        prompt(n, task=f"task{n % 2}", shots=shots, part_of=str(n // 4) if n % 2 else None)
        for shots in (0, 5)
        for n in range(40)
    ]
    assert run_module.chosen(ledger, None, 0) == ledger
    assert {one.shots for one in run_module.chosen(ledger, 5, 0)} == {5}
    assert run_module.chosen(ledger, [0, 5], 0) == ledger
    few, more = run_module.chosen(ledger, None, 3), run_module.chosen(ledger, None, 6)
    assert len(few) == 2 * (3 + 3 * 2) and set(few) < set(more), "questions of two parts are asked whole"
    with pytest.raises(UserError, match="SHOTS=3: the ledger has prompts of 0, 5 demonstrations"):
        run_module.chosen(ledger, 3, 0)


def test_nan_weights_are_named_and_never_rank_first(model, prompts, tmp_path):
    params = model.params | {"token_embedding": model.params["token_embedding"] * np.nan}
    broken = Model(CONFIG, params, model.tokenizer, model.mesh, source="broken")
    with pytest.raises(UserError, match=f"prompt {prompts[0].id}: a candidate's score is nan"):
        answering.run_evaluation(broken, prompts, tmp_path / "ranked")
    with pytest.raises(UserError, match=f"prompt {prompts[20].id}: the logits of its answer are not finite"):
        answering.run_evaluation(broken, prompts[20:], tmp_path / "generated", max_new_tokens=6)
    assert not list(tmp_path.rglob("results.json"))


def test_two_evaluations_do_not_share_a_folder(model, prompts, tmp_path):
    refused = pytest.raises(UserError, match=rf"is being written by process {os.getpid()} on .*another OUTPUT_DIR")
    with exclusive(tmp_path, "wait"), refused:
        answering.run_evaluation(model, prompts, tmp_path)


def test_results_name_the_code_by_its_bytes(model, prompts, tmp_path):
    answering.run_evaluation(model, prompts[:2], tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{32}", results["code_version"])


def test_parts_of_a_task_are_averaged_before_the_category(model, prompts, tmp_path):
    """The group stands in the ledger and reaches the scores: two parts weigh as one task."""
    parts = [prompt(n, task=f"part{n % 2}", group="whole") for n in range(4)] + [prompt(9, task="other")]
    answering.run_evaluation(model, parts, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    score = {name: task["score"] for name, task in results["tasks"].items()}
    want = ((score["part0"] + score["part1"]) / 2 + score["other"]) / 2
    assert results["categories"]["c"]["score"] == pytest.approx(want, abs=1e-12)


def test_the_command_trains_evaluates_and_reports(tmp_path):
    """Train and evaluate in one go, then evaluate again by itself from the same run."""
    settings = {name: value for name, value in SMALL.items() if name != "train.evaluate_after"}
    settings |= {"CACHE_DIR": str(tmp_path / "cache"), "MODEL_DIR": str(tmp_path / "run"), "MAX_NEW_TOKENS": 4}
    done = run("train", settings)
    assert "Levels of generalization" in done.stdout and "Training loss" in done.stdout
    first = read(tmp_path / "run" / "evaluation")
    assert {"report.md", "report.html"} <= {path.name for path in (tmp_path / "run" / "evaluation").iterdir()}
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
    assert read(tmp_path / "again") == first


def test_an_interrupted_command_ends_without_a_traceback(capsys):
    @exit_on_user_error
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to go on\n"


BAD = {
    "mistyped weights": ({"WEIGHTS": "runs/no/where", "LEDGER": "{ledger}"}, "runs/no/where: neither a directory nor"),
    "no weights": ({}, "WEIGHTS is not set"),
    "no ledger": ({"WEIGHTS": "runs/nowhere"}, "LEDGER is not set"),
    "no such ledger": ({"WEIGHTS": ".", "LEDGER": "nowhere.jsonl"}, "nowhere.jsonl: no such ledger"),
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


def with_demonstrations(count: int, **fields) -> Prompt:
    """An instruction, so many demonstrations of some thirty tokens, a question."""
    text, spans = "Task: say it.\n", []
    for number in range(count):
        shown = f"Input: the number {number} and the number {number + 1} Output: {number}\n\n\n"
        spans.append((len(text), len(text) + len(shown)))
        text += shown
    ids = tuple(map(str, range(count)))
    return prompt(
        0, prompt=f"{text}Input: it Output:", demonstration_ids=ids, demonstration_spans=tuple(spans), **fields
    )


@pytest.mark.parametrize("generated", [False, True])
def test_a_prompt_that_is_too_long_loses_demonstrations_from_the_left_and_nothing_else(model, generated):
    fields = {"candidates": None, "metric": Metric("rouge_l")} if generated else {}
    answer = functools.partial(answering._generate, max_new_tokens=16) if generated else answering._rank
    long = with_demonstrations(12, **fields)
    (found,) = answer(model, [long], batch_rows=2)
    sample = score_sample(long, **found)
    kept = sample["demonstrations"]
    assert 0 < kept < 12 and not sample["prompt_cut"]
    assert sample["prompt"] == "Task: say it.\n" + long.prompt[long.demonstration_spans[-kept][0] :]
    by_hand = dataclasses.replace(long, prompt=sample["prompt"], demonstration_spans=())
    (wanted,) = answer(model, [by_hand], batch_rows=2)
    assert found | {"dropped": 0} == wanted
    one_more = dataclasses.replace(long, prompt=long.without(12 - kept - 1), demonstration_spans=())
    assert answer(model, [one_more], batch_rows=2)[0]["prompt_cut"]
