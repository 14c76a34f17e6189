"""report.md, report.html and chain.txt of an evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.evaluation.chain import chain
from optiml_jax.evaluation.report import markdown
from optiml_jax.evaluation.report_html import html
from optiml_jax.files import write_atomically


def write_reports(
    output_dir: str | Path,
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    *,
    training: Mapping[str, float] | None = None,
    coverage: Mapping[str, Any] | None = None,
    dropped: Sequence[str] = (),
) -> None:
    """Writes report.md, report.html and chain.txt to `output_dir`, each atomically.

    Args:
      samples: scored samples in ledger order; the HTML shows a few right and wrong answers a task.
      training: {"first_loss", "last_loss"}, nats per label token, when the evaluation follows a training.
      coverage: how much of each benchmark was there (`data.manifest.coverage_text`).
      dropped: tasks that a review took out, with the reason.
    """
    write_atomically(Path(output_dir) / "report.md", markdown(results, samples, training, coverage, dropped))
    write_atomically(Path(output_dir) / "report.html", html(results, samples, training, coverage, dropped))
    write_atomically(Path(output_dir) / "chain.txt", chain(results))
