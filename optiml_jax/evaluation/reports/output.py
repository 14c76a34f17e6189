"""Writes the files of an evaluation to OUTPUT_DIR, and renders them again from its answers, without a model."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import optiml_jax
from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError
from optiml_jax.common.files import exclusive, write_atomically
from optiml_jax.evaluation.metrics import REPORTED, Metric
from optiml_jax.evaluation.reports.files import write_reports
from optiml_jax.evaluation.reports.plain_text import Context, print_report
from optiml_jax.evaluation.scores.aggregation import results, write_results
from optiml_jax.evaluation.scores.samples import read_samples, scored, write_samples

SAMPLES_FILE = "samples.jsonl"
SETTINGS_FILE = "evaluation.json"  # what the samples belong to, and what the report says beside the scores
FILES = (SAMPLES_FILE, SETTINGS_FILE, "results.json", "report.md", "report.html", "chain.txt")  # all in OUTPUT_DIR
FORMAT = 1
REMEDY = "evaluate once more, which answers no prompt again"


class Settings(TypedDict):
    """The content of `SETTINGS_FILE`; `context` has the fields of `Context`."""

    format: int
    about: dict[str, Any]
    context: dict[str, Any]


def write(
    samples: Sequence[dict[str, Any]], output_dir: Path, about: Mapping[str, Any], context: Context
) -> dict[str, Any]:
    """Writes samples, settings, results and reports; prints the report; returns the content of results.json.

    Args:
      about: what the scores belong to, for results.json: weights, tokenizer, precision and the other settings.
    """
    write_samples(output_dir / SAMPLES_FILE, samples)
    settings = {"format": FORMAT, "about": dict(about), "context": dataclasses.asdict(context)}
    write_atomically(output_dir / SETTINGS_FILE, json.dumps(settings, indent=1) + "\n")
    return _render(samples, output_dir, about, context)


def render(output_dir: str | Path) -> dict[str, Any]:
    """Scores the answers of a finished evaluation again and writes its results and reports, without a model.

    Raises:
      UserError: there is no finished evaluation.
      DataError: one of its files is damaged.
    """
    folder = Path(output_dir)
    if not (folder / SETTINGS_FILE).is_file():
        remedy = "give the OUTPUT_DIR of a finished evaluation; one of an earlier version must be evaluated once more"
        raise UserError(f"{folder}: has no {SETTINGS_FILE}; {remedy}")
    with exclusive(folder, "wait for it"):
        return _render(*_read(folder))


def _read(folder: Path) -> tuple[list[dict[str, Any]], Path, dict[str, Any], Context]:
    """Reads and scores the samples of an evaluation, and its settings."""
    path = folder / SETTINGS_FILE
    settings = typed_json.read(path, Settings, REMEDY)
    context, about = typed_json.convert(settings["context"], Context, str(path), REMEDY), settings["about"]
    samples = read_samples(folder / SAMPLES_FILE)
    for sample in samples:
        if sample["prediction"] is not None and REPORTED not in sample["metric"]:
            sample["score"] = Metric.parse(sample["metric"])(sample["prediction"], sample["references"])
            sample["correct"] = sample["score"] == 1.0
    write_samples(folder / SAMPLES_FILE, samples)
    return samples, folder, about, context


def _render(
    samples: Sequence[dict[str, Any]], output_dir: Path, about: Mapping[str, Any], context: Context
) -> dict[str, Any]:
    recorded = {name: context.provenance[name] for name in ("date", "command", "commit") if name in context.provenance}
    version = optiml_jax.code_version()
    content = results(scored(samples), dict(about) | recorded | {"code_version": version}, context.baselines)
    write_results(output_dir / "results.json", content)
    write_reports(output_dir, content, samples, context)
    print_report(content, samples, context)
    return content
