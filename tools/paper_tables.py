"""Prints a table or draws a figure of the OPT-IML paper: its own numbers, or your runs beside them.

    python -m tools.paper_tables --table=8 --paper
    python -m tools.paper_tables --table=8 --runs=runs/metaicl
    python -m tools.paper_tables --table=9 --runs=results --rows=opt-iml-30b='OPT-IML 30B' --output=table9.md
    python -m tools.paper_tables --figure=2 --runs=runs/tasks --output=figure2.svg

RUNS holds a folder per row, each with the results.json of its evaluations, in folders seed1, seed2, ... if there are
several seeds: the output of tools.run_sweep, or any such folders. There are tables 3 to 5, 7 to 14 and 16 to 20, and
figures 2 to 5.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from optiml_jax.common.errors import UserError, check_known, exit_on_user_error
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser, output_file, table
from tasks.paper import definitions, figures, layout, numbers, rendering, runs
from tools.sweep.training_facts import table_3


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.paper_tables", __doc__)
    add = parser.add_argument
    add("--table", type=int, help="number of a table")
    add("--figure", type=int, help="number of a figure")
    add("--paper", action="store_true", help="the paper's own numbers")
    add("--runs", help="folder with a folder per row")
    add("--rows", action="append", default=[], metavar="RUN=ROW", help="the row to which a run belongs; repeatable")
    add("--format", choices=rendering.FORMATS, help="of a table (by the suffix of --output, else text)")
    add("--output", type=output_file, help="file to write (none: print)")
    flags = parser.parse_args(arguments)
    if (flags.table is None) == (flags.figure is None):
        parser.error("give either --table or --figure")
    if flags.paper == bool(flags.runs):
        parser.error("give either --runs=DIR or --paper")
    if flags.figure is not None and not flags.output:
        parser.error(f"--figure={flags.figure} needs --output=figure{flags.figure}.svg (or .png)")
    if flags.runs and not Path(flags.runs).is_dir():
        raise UserError(f"--runs={flags.runs}: there is no such folder")
    suffix = Path(flags.output or "").suffix
    if flags.figure is None and flags.format is None and flags.output:
        if suffix not in rendering.SUFFIXES:
            parser.error(f"--output={flags.output}: give --format, or one of {', '.join(rendering.SUFFIXES)}")
        flags.format = rendering.SUFFIXES[suffix]
    flags.rows = dict(_row(parser, text) for text in flags.rows)
    return flags


def _row(parser: Parser, text: str) -> tuple[str, str]:
    run, separator, row = text.partition("=")
    if not (run and separator and row):
        parser.error(f"--rows={text} must be RUN=ROW")
    return run, row


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    if flags.figure is not None:
        figure = definitions.figure(flags.figure)
        ours, rows = _runs(flags, figure.table)
        figures.draw(figure, ours, rows, flags.output)
        print(f"figure: {flags.output}")
        return
    form = flags.format or "text"
    if flags.table in definitions.STATISTICS and (flags.paper or flags.table == 3):
        if form != "text":
            raise UserError(f"--table={flags.table} is printed as text alone; leave out --format={form}")
        text = statistics(flags.table, flags.runs)
    else:
        definition = definitions.definition(flags.table)
        grid = layout.arrange(definition, *_runs(flags, flags.table))
        text = rendering.render(grid, form, colour=not flags.output and sys.stdout.isatty())
    if flags.output:
        write_atomically(flags.output, text.rstrip("\n") + "\n")
        print(f"table: {flags.output}")
    else:
        print(text)


def _runs(flags: argparse.Namespace, number: int) -> tuple[runs.Runs | None, dict[str, str]]:
    """Our runs, and the paper's row of each: those of --rows, or else of their sweep."""
    if flags.paper:
        return None, {}
    ours = runs.read(flags.runs)
    for run, row in flags.rows.items():
        check_known("run", run, ours)
        check_known(f"row of Table {number}", row, numbers.printed(number))
    return ours, runs.rows_of_sweep(flags.runs, number) | flags.rows


def statistics(number: int, folder: str | None) -> str:
    """Table 1 or 3; with a folder of runs, Table 3 of these runs below the paper's rows."""
    lines = numbers.texts(number)
    columns = [name for name in lines[0] if name != "marks"]
    rows = [[line[name] or "-" for name in columns] for line in lines]
    if folder is not None:
        rows += table_3(folder, columns)
    header = [name.replace("_", " ") for name in columns]
    return f"Table {number}\n\n" + table(header, rows)


if __name__ == "__main__":
    main()
