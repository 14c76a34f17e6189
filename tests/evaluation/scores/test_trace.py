"""Every number of the report is found again in samples.jsonl, by arithmetic that knows nothing of ours."""

import json

import numpy as np
import pytest

from optiml_jax.evaluation.reports.files import write_reports
from optiml_jax.evaluation.scores.aggregation import results, write_results
from optiml_jax.evaluation.scores.samples import read_samples, score_sample, write_samples
from tests.evaluation.example_prompts import prompt
from tests.evaluation.scores import trace

LEVELS = ("fully_held_out", "held_out_task", "held_out_instances", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty random tasks: ranked and generated, one to four templates, 0 and 5 shots, groups in two benchmarks."""
    rng, samples = np.random.default_rng(11), []
    for t in range(30):
        ranked, level = bool(rng.integers(2)), LEVELS[int(rng.integers(4))]
        fields = {
            "task": f"b{t % 2}.task{t}",
            "benchmark": f"b{t % 2}",
            "level": level,
            "category": f"c{rng.integers(5)}",
            "pooled": t % 3 == 2,
        }
        fields |= {"group": "together" if t in (3, 4, 5) else None}
        if t in (3, 4, 5):
            fields |= {"category": "shared", "level": "held_out_task"}
        if not ranked:
            fields |= {"candidates": None, "metric": "rouge_l"}
        for k in (0, 5)[: int(rng.integers(1, 3))]:
            for template in range(int(rng.integers(1, 5))):
                for n in range(int(rng.integers(5, 25))):
                    right = ("yes", "no")[int(rng.integers(2))]
                    question = prompt(n, shots=k, template=f"t{template}", references=(right,), **fields)
                    output = str(rng.choice(["yes", "no"] if ranked else ["yes", "no", "", "yes it is", "maybe " * 15]))
                    scores = (
                        {"scores": [-1.0, -2.0], "token_scores": [[["yes", -1.0]], [["no", -2.0]]]} if ranked else {}
                    )
                    sample = score_sample(question, output, truncated=not ranked and len(output) > 9, **scores)
                    samples.append(sample | {"contaminated": bool(n % 4 == 1) if t < 12 else None})
    alike = {field: samples[0][field] for field in ("task", "benchmark", "level", "category", "metric", "pooled")}
    samples += [score_sample(prompt(99, **alike), None, remark="a candidate is empty")]
    directory = tmp_path_factory.mktemp("traced")
    about = {"weights": "w", "tokenizer": "f" * 64, "bos": "</s>", "ranked_by": "sum", "code_version": "0"}
    report = results([s for s in samples if s["score"] is not None], about)
    write_samples(directory / "samples.jsonl", samples)
    write_reports(directory, report, samples)
    write_results(directory / "results.json", report)
    return directory


def test_every_number_is_found_again(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    samples = read_samples(folder / "samples.jsonl")
    assert trace.check(page, samples) > 400
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert trace.check_averages(results, samples) > 10
    results["averages"]["average"]["shots"]["0"] += 1e-9
    with pytest.raises(AssertionError):
        trace.check_averages(results, samples)


def test_a_changed_answer_is_noticed(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    lines[7]["score"] = 1.0 - lines[7]["score"]
    with pytest.raises(AssertionError):
        trace.check(page, lines)
