"""Compares two evaluations of the same prompts: paired tests per task, category and level.

python -m tools.compare_runs runs/opt125m runs/opt125m_ni --output=runs/compared

A and B are the OUTPUT_DIR of an evaluation, a MODEL_DIR that holds `evaluation/`, a `samples.jsonl`, or the output
folder of lm-evaluation-harness with --log_samples. Writes comparison.json, comparison.md and comparison.html, which
shows the two runs side by side wherever their answers differ.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from optiml_jax.common.errors import exit_on_user_error
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser
from optiml_jax.evaluation.reports import comparison_page
from optiml_jax.evaluation.scores import comparison
from optiml_jax.evaluation.scores.samples import find_samples, read_samples
from optiml_jax.harness import samples as harness


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.compare_runs", __doc__)
    add = parser.add_argument
    add("first", metavar="A", help="an evaluation, such as that of a model before tuning")
    add("second", metavar="B", help="another evaluation of the same prompts; differences are B - A")
    add("--output", help="folder for comparison.json, .md and .html (none: only print)")
    add("--names", help="names of the two in tables, 'before,after' (their paths)")
    add("--metric", help="metric of harness samples to compare, such as acc_norm (the first one)")
    flags = parser.parse_args(arguments)
    flags.names = flags.names.split(",") if flags.names else [flags.first, flags.second]
    if len(flags.names) != 2 or not all(flags.names):
        parser.error("--names must be two names separated by a comma")
    return flags


def read(source: str, metric: str | None) -> list[dict]:
    """Reads the samples of one side.

    Raises:
      UserError: there are no samples to compare.
    """
    path = Path(source)
    if (folder := harness.folder_of(path)) is not None:
        return harness.read(folder, metric)
    return read_samples(find_samples(source))


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    sides = [read(source, flags.metric) for source in (flags.first, flags.second)]
    paired = comparison.pair(*sides)
    result = {"names": flags.names} | comparison.compare(paired)
    print(comparison_page.text(result))
    if flags.output:
        folder = Path(flags.output)
        write_atomically(folder / "comparison.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
        write_atomically(folder / "comparison.md", comparison_page.markdown(result))
        write_atomically(folder / "comparison.html", comparison_page.html(result, paired))
        print(f"\npage: {folder}/comparison.html")


if __name__ == "__main__":
    main()
