"""Lists mixtures to train on, suites to evaluate on, and tasks by name or pattern.

    python -m tools.list_tasks
    python -m tools.list_tasks --tasks='promptsource.*' --category=summarization
    python -m tools.list_tasks --mixture=opt_iml
    python -m tools.list_tasks --data_dir=data --suite=opt_eval

Mixtures and tasks come from the catalog and need no data. The tasks of a suite depend on the available data.
"""

import argparse
import importlib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from optiml_jax.common.errors import UserError, exit_on_user_error, nearest
from optiml_jax.common.tables import Parser, counted, table
from optiml_jax.data.manifest import matching_names
from optiml_jax.data.specification import CacheOptions
from tasks import suites
from tasks.catalog import mixtures, registry


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.list_tasks", __doc__)
    add = parser.add_argument
    add("--tasks", help="tasks of the catalog by name or pattern: 'flan.*'")
    add("--category", help="only tasks of this category, or pattern: '*_generation'")
    add("--mixture", help="tasks of a mixture by benchmark, and why the others are not drawn")
    add("--suite", help="tasks of a suite, given the data in --data_dir")
    add("--data_dir", help="raw data, one folder per benchmark")
    return parser.parse_args(arguments)


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    if flags.suite:
        print(suite_lines(flags.suite, flags.data_dir))
    elif flags.mixture:
        print(mixture_lines(flags.mixture))
    elif flags.tasks or flags.category:
        print(catalog_lines(flags.tasks or "*", flags.category or "*"))
    else:
        print(f"{all_mixtures()}\n\n{all_suites()}")


def all_mixtures() -> str:
    """Returns one row per mixture: its benchmarks, and its numbers of train tasks and categories."""
    rows = []
    for name in mixtures.names():
        mixture = mixtures.mixture(name)
        drawn = mixture.listed()
        in_catalog = any(map(registry.catalog, mixture.benchmarks))
        counts = (len(drawn), len({row.category for row in drawn})) if in_catalog else ("of your files", "")
        rows.append((name, *counts, ", ".join(mixture.benchmarks)))
    return table(("mixture", "train tasks", "categories", "benchmarks"), rows)


def mixture_lines(name: str) -> str:
    """Returns one row per benchmark of a mixture: its tasks in the catalog, those that are drawn, and the others by
    the reason."""
    mixture = mixtures.mixture(name)
    rows = []
    for benchmark in mixture.benchmarks:
        exclusions = [mixture.exclusion(row) for row in registry.catalog(benchmark).values()]
        kinds = [exclusion.kind if exclusion else None for exclusion in exclusions]
        rows.append((benchmark, len(kinds), *map(kinds.count, (None, *mixtures.EXCLUSIONS))))
    total = ("all", *(sum(column) for column in list(zip(*rows))[1:]))
    categories = {row.category for row in mixture.listed()}
    lines = table(("benchmark", "tasks", "drawn", *mixtures.EXCLUSIONS), [*rows, total])
    return f"{lines}\n{len(categories):,} categories"


def all_suites() -> str:
    """Returns one row per suite, with the description of its module."""
    rows = [(name, _first_line(f"{suites.__name__}.{name}")) for name in suites.names()]
    return table(("suite", "asks"), rows)


def catalog_lines(pattern: str, category: str) -> str:
    """Returns one row per task of the catalog.

    Raises:
      UserError: no task has this name and category.
    """
    rows = [row for benchmark in registry.benchmark_names() for row in registry.catalog(benchmark).values()]
    names = set(matching_names(pattern, (row.name for row in rows)))
    named = [row for row in rows if row.name in names]
    matching = [row for row in named if fnmatchcase(row.category, category)]
    if not named:
        raise UserError(f"no task has the name {pattern}{nearest(pattern, [row.name for row in rows])}")
    if not matching:
        categories = sorted({row.category for row in named})
        raise UserError(f"none of these {len(named):,} tasks is of category {category}{nearest(category, categories)}")
    lines = [(row.name, row.category, row.split, row.metric, row.style, row.level or "-") for row in matching]
    return (
        table(("task", "category", "split", "metric", "style", "level"), lines) + f"\n{counted(len(matching), 'task')}"
    )


def suite_lines(name: str, data_dir: str | None) -> str:
    """Returns one row per part of a suite, given the available data."""
    suite = suites.suite(name)
    parts = suite.available(suite.discover(data_dir, CacheOptions(missing_benchmarks="leave_out")))
    rows = [
        (
            part.task.name,
            part.task.category,
            part.split,
            part.level or "-",
            ", ".join(map(str, part.shots)),
            str(part.metric or part.task.templates[0].metric),
            len(part.templates or part.task.templates),
        )
        for part in parts
    ]
    header = ("task", "category", "split", "level", "shots", "metric", "templates")
    return table(header, rows) + f"\n{len({row[0] for row in rows}):,} tasks"


def _first_line(module: str) -> str:
    return (importlib.import_module(module).__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    main()
