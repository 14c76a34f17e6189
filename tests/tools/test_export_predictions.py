"""Predictions as Super-NaturalInstructions' own scripts read them."""

import json

import pytest

from optiml_jax.evaluation.scores.samples import score_sample, write_samples
from tests.evaluation.example_prompts import prompt
from tools import export_predictions


def test_each_instance_has_a_line(tmp_path, capsys):
    def prompt_of(name, text, benchmark="super_natural_instructions", **fields):
        return score_sample(prompt(example_id=name, benchmark=benchmark, candidates=None, **fields), text)

    samples = [prompt_of("task1-a", "é, it is"), prompt_of("task1-b", None), prompt_of("task1-a", "two", shots=2)]
    write_samples(tmp_path / "samples.jsonl", [*samples, prompt_of("x", "other", benchmark="bbh", task="bbh.x")])
    out = tmp_path / "predictions.jsonl"
    export_predictions.main([str(tmp_path), f"--output={out}", "--shots=0"])
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"id": "task1-a", "prediction": "é, it is"}, {"id": "task1-b", "prediction": ""}]
    for words, message in (
        ([str(tmp_path)], "task1-a has several predictions; choose a number of demonstrations with --shots"),
        ([str(tmp_path), "--shots=5"], "no predictions of 5 shots; there are 0, 2"),
        (["nowhere"], "nowhere: has no samples.jsonl"),
    ):
        with pytest.raises(SystemExit):
            export_predictions.main([*words, f"--output={tmp_path / 'other'}"])
        assert message in capsys.readouterr().err and not (tmp_path / "other").exists()
