"""Scores and renders an evaluation again from its answers: python -m tools.render_report runs/tiny/evaluation/samples

Rewrites results.json, report.md, report.html and chain.txt of an OUTPUT_DIR from its samples.jsonl, with the metrics
and tables of this version. No weights are loaded, and no prompt is answered.
"""

from collections.abc import Sequence

from optiml_jax.common.errors import exit_on_user_error
from optiml_jax.common.tables import Parser
from optiml_jax.evaluation.reports import output


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("tools.render_report", __doc__)
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder of a finished evaluation")
    flags = parser.parse_args(arguments)
    output.render(flags.output_dir)
    print(f"report    {flags.output_dir}/report.html")


if __name__ == "__main__":
    main()
