"""Answers in this process: oracles for their scores, going on after an interruption, bad prompts."""

import dataclasses
import json
import os
import re

import numpy as np
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.common.files import exclusive
from optiml_jax.evaluation import pipeline
from optiml_jax.evaluation.answers import answering, normalization
from optiml_jax.evaluation.answers.normalization import RANKED_BY
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import Prompt
from optiml_jax.evaluation.reports.plain_text import Context
from optiml_jax.evaluation.scores.samples import score_sample
from optiml_jax.inference.model import Model
from tests.evaluation.small_model import CONFIG, prompt, read, small_model
from tools import render_report


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    generated = {"candidates": None, "metric": Metric("rouge_l"), "references": ("one two", "three")}
    return [prompt(n) for n in range(20)] + [prompt(n, task="written", **generated) for n in range(20, 30)]


def test_predictions_are_the_best_candidates_and_the_greedy_texts(model, prompts, tmp_path):
    pipeline.run_evaluation(model, prompts, tmp_path, max_new_tokens=6)
    samples = {s["id"]: s for s in map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())}
    for requests in prompts:
        sample = samples[requests.id]
        if requests.candidates:
            scores = model.rank([requests.prompt], [[" " + text for text in requests.candidates]])[0]
            np.testing.assert_allclose(sample["scores"], scores, atol=1e-4)
            assert sample["prediction"] == requests.candidates[int(np.argmax(scores))]
            assert sample["score"] == float(sample["prediction"] == "no")
        else:
            assert sample["prediction"] == model.generate([requests.prompt], max_new_tokens=6)[0].strip()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["bos"] == "</s>" and results["tasks"]["task0"]["examples"] == 10
    assert results["tasks"]["task0"]["score"] == np.mean([samples[p.id]["score"] for p in prompts[:20:2]])


def test_stop_texts_limits_and_separators_stand_in_the_ledger(model, prompts, tmp_path):
    """Against the model asked by hand; a stop text is no part of the answer, nor a limit of tokens a fault."""
    whole = model.generate([prompts[20].prompt], max_new_tokens=12)[0]
    assert len(whole) > 4
    stop = whole[3]
    fields = {"candidates": None, "metric": Metric("rouge_l"), "references": ("a",), "task": "written"}
    requests = [
        prompt(20, **fields, stop=("never said", stop)),
        prompt(21, **fields, max_new_tokens=2),
        prompt(22, **fields, max_new_tokens=99),
        prompt(23, separator="\n"),
        prompt(24, **fields, separator="", prompt="Say it. "),
        prompt(25, given=(1, 1, 4)),
    ]
    pipeline.run_evaluation(model, requests, tmp_path, max_new_tokens=12)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert samples[0]["prediction"] == whole[: whole.index(stop)].strip() and not samples[0]["truncated"]
    for sample, limit in zip(samples[1:3], (2, 12)):
        assert sample["prediction"] == model.generate([sample["prompt"]], max_new_tokens=limit)[0].strip()
    scores = model.rank([requests[3].prompt], [["\n" + text for text in requests[3].candidates]])[0]
    np.testing.assert_allclose(samples[3]["scores"], scores, atol=1e-4)
    assert samples[4]["prediction"] == model.generate(["Say it. "], max_new_tokens=12)[0].strip()
    given = zip(requests[5].candidates, requests[5].given)  # what is told stands before what is ranked, with its space
    (scores,) = zip(*(model.rank([f"{requests[5].prompt} {text[:n]}"], [[text[n:]]])[0] for text, n in given))
    np.testing.assert_allclose(samples[5]["scores"], scores, atol=1e-4)


def test_a_ledger_of_which_nothing_can_be_scored_says_so(model, tmp_path, capsys):
    bad = prompt(0, candidates=("", "no"))
    results = pipeline.run_evaluation(model, [bad], tmp_path)
    assert (results["tasks"], results["average"]) == ({}, None)
    assert f"No score: 1 task, of which no prompt could be scored: {bad.task}" in capsys.readouterr().out
    for name in ("report.md", "report.html", "samples.jsonl"):
        assert "a candidate is empty" in (tmp_path / name).read_text()


def test_an_empty_prompt_is_not_ranked_by_what_follows_nothing():
    with pytest.raises(UserError, match=r"RANKED_BY=unconditional.*suite/task0/.*empty"):
        normalization.check("unconditional", [prompt(2), prompt(0, prompt="")])
    normalization.check("unconditional", [prompt(0, prompt="", candidates=None)])


def answered(model, monkeypatch) -> list[str]:
    """The ids of the prompts that a model is asked from now on."""
    requests, rank, decode_windows = [], model.rank_prepared, answering.decode_windows

    def spy_rank(prepared):
        requests.extend(dict.fromkeys(prepared.names))
        return rank(prepared)

    def spy_windows(decoding_model, windows, batch_rows):
        for window in windows:
            if decoding_model is model:
                requests.extend(window.names)
            yield window

    def spy_decode(decoding_model, windows, batch_rows):
        return decode_windows(decoding_model, spy_windows(decoding_model, windows, batch_rows), batch_rows)

    monkeypatch.setattr(model, "rank_prepared", spy_rank)
    monkeypatch.setattr(answering, "decode_windows", spy_decode)
    return requests


def test_an_interrupted_evaluation_ends_as_an_uninterrupted_one(model, prompts, tmp_path, monkeypatch):
    """Stopped before the second and again before the last group: what is answered is not asked again."""
    monkeypatch.setattr(answering, "BATCHES_PER_GROUP", 2)
    options = {"max_new_tokens": 6, "batch_rows": 4}
    pipeline.run_evaluation(model, prompts, tmp_path / "whole", **options)
    write, requests = pipeline.AnswerStore.write, answered(model, monkeypatch)
    for left in (1, 3):
        written = []

        def stop(self, group, left=left, written=written):
            if len(written) == left:
                raise KeyboardInterrupt
            written.append(group)
            write(self, group)

        monkeypatch.setattr(pipeline.AnswerStore, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run_evaluation(model, prompts, tmp_path / "parts", **options)
        assert not (tmp_path / "parts" / "results.json").exists()
    monkeypatch.setattr(pipeline.AnswerStore, "write", write)
    pipeline.run_evaluation(model, prompts, tmp_path / "parts", **options)
    assert read(tmp_path / "parts") == read(tmp_path / "whole")
    for name in ("report.md", "report.html"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(requests) == len(prompts) + 8 + 2  # two groups were lost
    assert [len(group) for group, _ in answering.answer_all(model, prompts, **options)] == [8, 8, 4, 8, 2]


def test_a_larger_ledger_asks_only_what_is_new(model, prompts, tmp_path, monkeypatch):
    pipeline.run_evaluation(model, prompts[4:24], tmp_path / "grown", max_new_tokens=6)
    requests = answered(model, monkeypatch)
    pipeline.run_evaluation(model, prompts, tmp_path / "grown", max_new_tokens=6, batch_rows=3)
    assert sorted(requests) == sorted(prompt.id for prompt in [*prompts[:4], *prompts[24:]])
    moved = Model(CONFIG, model.params, model.tokenizer, model.mesh, source="elsewhere/run")
    requests_after_move = answered(moved, monkeypatch)
    content = pipeline.run_evaluation(moved, prompts, tmp_path / "grown", max_new_tokens=6)
    assert not requests_after_move and content["weights"] == "elsewhere/run", (
        "only the folder of the weights is another"
    )
    pipeline.run_evaluation(model, prompts, tmp_path / "grown", max_new_tokens=5, ranked_by="per_token")
    pipeline.run_evaluation(model, prompts, tmp_path / "grown", max_new_tokens=6)
    assert len(requests) == 10 + len(prompts), "answers of other settings were kept"
    pipeline.run_evaluation(model, prompts, tmp_path / "anew", max_new_tokens=6)
    grown, anew = (json.loads(read(tmp_path / name)[0]) for name in ("grown", "anew"))
    assert grown == anew


def test_a_report_is_rendered_again_without_a_model(model, prompts, tmp_path, monkeypatch, capsys):
    """With another metric in force, the answers are scored by it; broken and missing files are named."""
    context = Context(
        baselines={"task0": {"majority": 0.125, "random": None}}, notes=["A note."], selection={"limit": 7}
    )
    pipeline.run_evaluation(model, prompts, tmp_path, max_new_tokens=6, context=context)
    before = {
        name: (tmp_path / name).read_bytes() for name in ("results.json", "report.md", "report.html", "chain.txt")
    }
    assert json.loads(before["results.json"])["limit"] == 7 and b"A note." in before["report.md"]
    assert json.loads(before["results.json"])["tasks"]["task0"]["baselines"]["majority"] == 0.125
    for name in before:
        (tmp_path / name).unlink()
    render_report.main([str(tmp_path)])
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    render_report.main([str(tmp_path), f"--tables={tmp_path / 'tables'}"])
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    assert {"levels_of_generalization.csv", "levels_of_generalization.tex", "tasks.csv", "tasks.tex"} <= names
    tasks = (tmp_path / "tables" / "tasks.csv").read_text().splitlines()
    assert len(tasks) == 1 + len(json.loads(before["results.json"])["tasks"])
    written = Metric("exact_match", (("normalization", "none"),))
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        line["metric"] = written.to_json() if line["task"] == "written" else line["metric"]
        line["references"] = [line["prediction"]] if line["task"] == "written" else line["references"]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    render_report.main([str(tmp_path)])
    assert json.loads((tmp_path / "results.json").read_text())["tasks"]["written"]["score"] == 1.0
    (tmp_path / "evaluation.json").write_text("{}")
    for folder, message in (
        (tmp_path, "evaluation.json: object missing required field format"),
        (tmp_path / "no", "has no evaluation.json"),
    ):
        with pytest.raises(SystemExit):
            render_report.main([str(folder)])
        assert message in capsys.readouterr().err


def test_bad_prompts_are_named_and_cost_no_other_prompt(model, prompts, tmp_path, capsys):
    bad = {
        "empty": prompt(90, candidates=("no", "")),
        "long": prompt(91, candidates=("no", "word " * 400)),
        "twice": prompt(92, candidates=("no", "yes", "no")),
        "cut": prompt(93, prompt="word " * 400),
        "cut too": prompt(94, candidates=None, metric=Metric("rouge_l"), task="written", prompt="word " * 400),
    }
    pipeline.run_evaluation(model, [*prompts, *bad.values()], tmp_path, max_new_tokens=6)
    samples = {s["id"]: s for s in map(json.loads, read(tmp_path)[1].decode().split("\n")[:-1])}
    assert len(samples) == len(prompts) + 5
    for name in ("empty", "long"):
        assert samples[bad[name].id]["score"] is None
    for name in ("twice", "cut", "cut too"):
        assert samples[bad[name].id]["score"] is not None
    output = capsys.readouterr().out
    positions = model.config.max_positions
    for line in (
        f"Not scored, 1 prompts, a candidate is empty: {bad['empty'].id}",
        rf"Not scored, 1 prompts, a candidate of \d+ tokens, longer than the model's {positions} .*: {bad['long'].id}",
        f"1 prompts, candidate 'no' is listed twice: {bad['twice'].id}",
        f"2 prompts, too long, its beginning was cut: {bad['cut'].id}, {bad['cut too'].id}",
    ):
        assert re.search(line, output)
        assert re.search(line, (tmp_path / "report.md").read_text())
    pipeline.run_evaluation(model, prompts, tmp_path / "good", max_new_tokens=6)
    good = {s["id"]: s for s in map(json.loads, read(tmp_path / "good")[1].decode().split("\n")[:-1])}
    for id, sample in good.items():
        np.testing.assert_allclose(samples[id]["scores"] or [], sample["scores"] or [], atol=1e-4)
        numbers = {"scores": None, "token_scores": None}
        assert samples[id] | numbers == sample | numbers
        for score, of_tokens in zip(sample["scores"] or [], sample["token_scores"] or [], strict=True):
            assert sum(of_token for _, of_token in of_tokens) == pytest.approx(score, abs=1e-4 * len(of_tokens))
            assert "".join(piece for piece, _ in of_tokens) in (" yes", " no", " a third one")


@pytest.mark.parametrize("ranked_by", RANKED_BY)
def test_candidates_may_be_ranked_by_scores_put_right_for_their_length(model, tmp_path, ranked_by):
    candidates = ("no", "it is not at all so", "être")
    prompts = [
        prompt(1, candidates=candidates, references=("no",)),
        prompt(2, candidates=candidates, references=("no",), given=(1, 3, 1)),
    ]
    report = pipeline.run_evaluation(model, prompts, tmp_path, ranked_by=ranked_by)
    assert report["ranked_by"] == ranked_by
    for prompt_, sample in zip(prompts, map(json.loads, read(tmp_path)[1].splitlines())):
        for text, given, score in zip(candidates, prompt_.given or (0, 0, 0), sample["scores"]):
            before, rest = (f"{prompt_.prompt} {text[:given]}", text[given:]) if given else (prompt_.prompt, f" {text}")
            (want,), (alone,) = (
                model.rank([before], [[rest]])[0],
                model.rank([f" {text[:given]}" * bool(given)], [[rest]])[0],
            )
            tokens, size = len(model.tokenizer.encode(rest)), len(text[given:].encode())
            expected_scores = {
                "sum": want,
                "per_token": want / tokens,
                "per_byte": want / size,
                "unconditional": want - alone,
            }
            assert score == pytest.approx(expected_scores[ranked_by], abs=1e-4)
        assert sample["prediction"] == candidates[int(np.argmax(sample["scores"]))]


def test_nan_weights_are_named_and_never_rank_first(model, prompts, tmp_path):
    params = model.params | {"token_embedding": model.params["token_embedding"] * np.nan}
    broken = Model(CONFIG, params, model.tokenizer, model.mesh, source="broken")
    with pytest.raises(UserError, match=f"prompt {prompts[0].id}: a candidate's score is nan"):
        pipeline.run_evaluation(broken, prompts, tmp_path / "ranked")
    with pytest.raises(UserError, match=f"prompt {prompts[20].id}: the logits of its answer are not finite"):
        pipeline.run_evaluation(broken, prompts[20:], tmp_path / "generated", max_new_tokens=6)
    assert not list(tmp_path.rglob("results.json"))


def test_two_evaluations_do_not_share_a_folder(model, prompts, tmp_path):
    refused = pytest.raises(UserError, match=rf"is being written by process {os.getpid()} on .*another OUTPUT_DIR")
    with exclusive(tmp_path, "wait"), refused:
        pipeline.run_evaluation(model, prompts, tmp_path)


def test_results_name_the_code_by_its_bytes(model, prompts, tmp_path):
    pipeline.run_evaluation(model, prompts[:2], tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{32}", results["code_version"])


def test_parts_of_a_task_are_averaged_before_the_category(model, prompts, tmp_path):
    """The group stands in the ledger and reaches the scores: two parts weigh as one task."""
    parts = [prompt(n, task=f"part{n % 2}", group="whole") for n in range(4)] + [prompt(9, task="other")]
    pipeline.run_evaluation(model, parts, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    score = {name: task["score"] for name, task in results["tasks"].items()}
    want = ((score["part0"] + score["part1"]) / 2 + score["other"]) / 2
    assert results["categories"]["c"]["score"] == pytest.approx(want, abs=1e-12)


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

    def answer(asked: Prompt) -> dict:
        ((_, (given,)),) = answering.answer_all(model, [asked], batch_rows=2, max_new_tokens=16)
        return given

    long = with_demonstrations(12, **fields)
    by_name = answer(long)
    sample = score_sample(long, **by_name)
    retained = sample["demonstrations"]
    assert 0 < retained < 12 and not sample["prompt_cut"]
    assert sample["prompt"] == "Task: say it.\n" + long.prompt[long.demonstration_spans[-retained][0] :]
    by_hand = dataclasses.replace(long, prompt=sample["prompt"], demonstration_spans=())
    assert by_name | {"dropped": 0} == answer(by_hand)
    one_more = dataclasses.replace(long, prompt=long.without(12 - retained - 1), demonstration_spans=())
    assert answer(one_more)["prompt_cut"]
