"""Writes the report files of an evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.common.files import write_atomically
from optiml_jax.evaluation.reports.html import html
from optiml_jax.evaluation.reports.plain_text import Context, markdown
from optiml_jax.evaluation.scores.breakdown import breakdown


def write_reports(
    output_dir: str | Path,
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    context: Context = Context(),
) -> None:
    """Writes report.md, report.html and chain.txt to `output_dir`, each atomically.

    Args:
      samples: in ledger order; the HTML page can browse them.
    """
    write_atomically(Path(output_dir) / "report.md", markdown(results, samples, context))
    write_atomically(Path(output_dir) / "report.html", html(results, samples, context))
    write_atomically(Path(output_dir) / "chain.txt", breakdown(results))
