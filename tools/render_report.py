"""Scores and renders an evaluation again from its answers: python -m tools.render_report runs/tiny/evaluation/samples

Rewrites results.json, report.md, report.html and chain.txt of an OUTPUT_DIR from its samples.jsonl, with the metrics
and tables of this version. No weights are loaded, and no prompt is answered. With --tables=FOLDER the tables are also
written as CSV and LaTeX.
"""

from collections.abc import Sequence
from pathlib import Path

from optiml_jax.common.errors import exit_on_user_error
from optiml_jax.common.tables import Parser, output_folder
from optiml_jax.evaluation.reports import output
from optiml_jax.evaluation.reports.tables import tables
from optiml_jax.evaluation.scores.samples import read_samples
from tools import report_tables


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("tools.render_report", __doc__)
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder of a finished evaluation")
    parser.add_argument("--tables", type=output_folder, help="folder for each table as .csv and .tex (none)")
    flags = parser.parse_args(arguments)
    results = output.render(flags.output_dir)
    print(f"report    {flags.output_dir}/report.html")
    if flags.tables:
        samples = read_samples(Path(flags.output_dir, output.SAMPLES_FILE))
        paths = report_tables.write(tables(results, samples), flags.tables)
        print(f"tables    {', '.join(map(str, paths))}")


if __name__ == "__main__":
    main()
