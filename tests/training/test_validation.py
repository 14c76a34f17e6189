"""Validation inside a run: its scores, the best weights, and the curve of a killed run."""

import json
import subprocess
import time
from pathlib import Path

import pytest

import optiml_jax
from optiml_jax.common.metrics_log import training_losses
from optiml_jax.data.manifest import Manifest
from optiml_jax.evaluation.answers.answering import answer_all
from optiml_jax.evaluation.answers.reference_loss import reference_losses
from optiml_jax.evaluation.scores.aggregation import aggregate
from optiml_jax.evaluation.scores.samples import score_sample
from optiml_jax.evaluation.validation import SHOWN, Validation, shown_samples, validation_losses
from tests.common.test_trackers import events
from tests.conftest import ROOT
from tests.test_train import SMALL, cache, command, environment, run  # noqa: F401 - cache is a fixture

VALIDATED = SMALL | {"VALIDATE_EVERY": 2, "VALIDATION_LIMIT": 3, "MAX_NEW_TOKENS": 2, "CHECKPOINT_EVERY": 3}


def settings(cache, directory, **more):  # noqa: F811
    return VALIDATED | {"CACHE_DIR": cache, "MODEL_DIR": str(directory)} | more


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("validated")
    done = run("train", settings(cache, directory))
    return directory, done.stdout


def rows(directory):
    return [json.loads(line) for line in (directory / "validation.jsonl").read_text().splitlines()]


def test_scores_are_logged_and_the_best_weights_kept(whole, cache):  # noqa: F811
    directory, output = whole
    by_name = rows(directory)
    assert [row["step"] for row in by_name] == [2, 4, 6]
    levels = ("fully_held_out", "held_out_task", "held_out_instances")
    for row in by_name:
        assert row["level_average"] == pytest.approx(sum(row[f"level/{level}"] for level in levels) / 3)
    best = max(by_name, key=lambda row: row["average"])  # the first of equals
    assert [path.name for path in (directory / "best" / "checkpoints").iterdir()] == [str(best["step"])]
    # The kept weights, asked again, have the score that was written.
    model = optiml_jax.load_model(directory / "best")
    prompts = Validation(mixture="samples", cache_dir=cache, limit=3).prompts(
        Manifest.read(directory / "manifest.json")
    )
    answered = answer_all(model, prompts, batch_rows=16, max_new_tokens=2)
    samples = [
        score_sample(item, **answer) for group, members in answered for item, answer in zip(group, members, strict=True)
    ]
    assert aggregate(samples)["average"] == pytest.approx(best["average"], abs=1e-12)
    losses = [loss for group in reference_losses(model, prompts, batch_rows=16) for loss in group]
    expected = validation_losses(prompts, losses)
    assert len(expected) == 4 and {name: best[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    first = by_name[0]
    assert len(samples) == len(losses) == 15 * 3
    assert f"step 2: average {100 * first['average']:.1f}, loss {first['loss']:.3f}, the best" in output


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a scalar in a folder's event files."""
    items = []
    for file in sorted(directory.glob("events.*")):
        for event in events(file):
            items += [(event.step, value.simple_value) for value in event.summary.value if value.tag == name]
    return items


def test_the_curve_is_in_tensorboard_and_in_what_reports_are_given(whole):
    directory, _ = whole
    logged = scalars(directory / "tensorboard", "validation/average")
    assert logged == [(row["step"], pytest.approx(row["average"])) for row in rows(directory)]
    assert len(scalars(directory / "tensorboard", "validation/level/fully_held_out")) == 3
    assert training_losses(directory)["validation"] == [[row["step"], row["average"]] for row in rows(directory)]
    losses = [(row["step"], pytest.approx(row["loss"])) for row in rows(directory)]
    assert scalars(directory / "tensorboard", "validation/loss") == losses
    assert list(map(tuple, training_losses(directory)["validation_loss"])) == losses
    logged = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 6 and ["startup_seconds" in row for row in logged] == [True] + 5 * [False]
    assert logged[0]["startup_seconds"] > logged[0]["step_seconds"] > 0


def shown(directory: Path) -> list[tuple[int, list[str]]]:
    """(step, lines of the table) of the samples of each validation."""
    return [
        (event.step, value.tensor.string_val[0].decode().splitlines())
        for file in sorted((directory / "tensorboard").glob("events.*"))
        for event in events(file)
        for value in event.summary.value
        if value.tag == "validation/samples/text_summary"
    ]


def test_the_same_prompts_are_shown_at_every_validation_with_their_answers(whole):
    tables = shown(whole[0])
    assert [step for step, _ in tables] == [2, 4, 6]
    prompts = [[line.split(" | ")[:3] for line in lines[2:]] for _, lines in tables]
    assert prompts[0] == prompts[1] == prompts[2] and len(prompts[0]) == SHOWN
    tasks = [task for task, _, _ in prompts[0]]
    assert len(set(tasks)) == SHOWN and all(prompt.strip() for _, prompt, _ in prompts[0])


def test_tasks_with_generated_answers_are_shown_first():
    def sample(task, candidates, score=0.5):
        fields = {"prompt": f"{task}?", "references": ["a", "b"], "prediction": None, "score": score}
        return {"task": task, "candidates": candidates} | fields

    ranked = [sample(f"r{i:02}", ["a", "b"]) for i in range(20)]
    generated = [sample("g2", None), sample("g1", None, None), sample("g2", None, 0.75)]
    rows = shown_samples(ranked + generated)
    assert [row[0] for row in rows] == ["g1", "g2", "r00", "r03", "r06", "r10", "r13", "r16"]
    assert rows[0] == ("g1", "g1?", "a | b", "", "") and rows[1][-1] == "50.0"
    assert [row[0] for row in shown_samples(generated)] == ["g1", "g2"] and shown_samples([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("until", [1, 2])
def test_a_killed_run_goes_on_to_the_same_curve_and_the_same_best(whole, cache, tmp_path, until):  # noqa: F811
    directory, _ = whole
    words = command("train", settings(cache, tmp_path))
    file = tmp_path / "validation.jsonl"
    with subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < until):
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
    run("train", settings(cache, tmp_path))
    assert file.read_bytes() == (directory / "validation.jsonl").read_bytes()
    retained = [optiml_jax.load_model(path / "best") for path in (directory, tmp_path)]
    assert (
        retained[0].source.split()[-1] == retained[1].source.split()[-1]
        and retained[0].fingerprint == retained[1].fingerprint
    )


def test_mistakes_are_told_of_before_the_first_step(cache, tmp_path):  # noqa: F811
    for change, message in (
        ({"VALIDATION": "mmul"}, "mmul.jsonl: no such ledger"),
        ({"VALIDATE_EVERY": -1}, "Validation.every is -1; it must be a whole number from 0"),
    ):
        done = run("train", settings(cache, tmp_path / "x", **change), code=2)
        assert (
            message in done.stderr and done.stderr.count("\n") == 1 and not (tmp_path / "x" / "metrics.jsonl").exists()
        )
