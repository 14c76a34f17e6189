"""Compares two evaluations of the same prompts: paired tests per task, category and level.

python -m tools.compare_runs runs/opt125m runs/opt125m_ni --output=runs/compared

A and B are the OUTPUT_DIR of an evaluation, a MODEL_DIR that holds `evaluation/`, a `samples.jsonl`, or the output
folder of lm-evaluation-harness with --log_samples. Writes comparison.json, comparison.md and comparison.html, which
shows the two runs side by side wherever their answers differ.

python -m tools.compare_runs --sweep=runs/eps

compares every member of a sweep with its baseline, and corrects p-values for all members. Writes comparison.json and
comparison.txt.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from optiml_jax.common.errors import exit_on_user_error
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser, output_folder
from optiml_jax.evaluation.reports import comparison_page
from optiml_jax.evaluation.scores import comparison
from optiml_jax.evaluation.scores.samples import find_samples, read_samples
from optiml_jax.harness import samples as harness
from tools.sweep import comparing


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.compare_runs", __doc__)
    add = parser.add_argument
    add("first", metavar="A", nargs="?", help="an evaluation, such as that of a model before tuning")
    add("second", metavar="B", nargs="?", help="another evaluation of the same prompts; differences are B - A")
    add("--sweep", help="folder of a sweep that tools.run_sweep has run, instead of A and B")
    add("--baseline", help="member of the sweep with which the others are compared (that of the sweep)")
    add("--output", type=output_folder, help="folder for the files (none: only print)")
    add("--names", help="names of the two in tables, 'before,after' (their paths)")
    add("--metric", help="metric of harness samples to compare, such as acc_norm (the first one)")
    flags = parser.parse_args(arguments)
    if flags.sweep:
        for name in ("first", "names", "metric"):
            if getattr(flags, name):
                parser.error("--sweep takes --baseline and --output alone")
        return flags
    if flags.second is None or flags.baseline:
        parser.error("give two evaluations A and B, or --sweep=DIR with --baseline=MEMBER")
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
    if flags.sweep:
        result = comparing.compare(flags.sweep, flags.baseline)
        print(comparing.text(result))
        if flags.output:
            write_atomically(Path(flags.output, "comparison.json"), json.dumps(result, indent=2) + "\n")
            write_atomically(Path(flags.output, "comparison.txt"), comparing.text(result) + "\n")
        return
    sides = [read(source, flags.metric) for source in (flags.first, flags.second)]
    paired = comparison.pair(*sides)
    result = {"names": flags.names} | comparison.compare(paired)
    print(comparison_page.text(result))
    if flags.output:
        folder = Path(flags.output)
        texts = {
            "comparison.html": comparison_page.html(result, paired),
            "comparison.md": comparison_page.markdown(result),
            "comparison.json": json.dumps(result, indent=2, allow_nan=False) + "\n",
        }
        for name, text in texts.items():
            write_atomically(folder / name, text)
        print(f"\npage: {folder}/comparison.html")


if __name__ == "__main__":
    main()
