"""The tables of a report, as texts: the same ones are shown on the terminal, in Markdown and in HTML.

They show per cent, as the paper does; results.json keeps fractions.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optiml_jax.common.tables import aligned
from optiml_jax.evaluation.prompts.ledger import LEVELS
from optiml_jax.evaluation.scores.aggregation import scores
from optiml_jax.evaluation.scores.baselines import MIN_QUESTIONS, floor
from optiml_jax.evaluation.scores.diagnostics import CHECKS, diagnose
from optiml_jax.evaluation.scores.intervals import MIN_CLUSTERS
from optiml_jax.evaluation.scores.samples import scored

LEVEL_NAMES = {  # name, and what the model has seen of such tasks in training
    "fully_held_out": ("Fully held-out", "no task of the category"),
    "held_out_task": ("Held-out tasks", "other tasks of the category"),
    "held_out_instances": ("Held-out instances", "other instances of the task"),
}


@dataclasses.dataclass(frozen=True)
class TableRow:
    """Cells of one row, and what its bar shows, in fractions.

    Attributes:
      interval: of the score, [low, high], over tasks or else over the questions of these tasks alone.
      dots: the scores whose mean this score is.
    """

    cells: tuple[str, ...]
    score: float
    floor: float | None = None
    interval: Sequence[float] | None = None
    dots: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first `text_columns` columns hold text, the others numbers (right-aligned)."""

    title: str
    columns: tuple[str, ...]
    text_columns: int
    rows: tuple[TableRow, ...]


# Explanations of columns; those in `EXPLAINED` are also printed below the tables.
MEANING = {
    "level": "what the model has seen of such a task in training",
    "seen in training": "what the model was trained on",
    "category": "tasks of one kind",
    "benchmark": "the collection that the tasks come from",
    "task": "its name, without the benchmark's",
    "metric": "how answers are scored",
    "score": "per cent; chain.txt shows how it is composed",
    "95%": f"95% interval of the score over tasks, of a task over its questions; in parentheses, with fewer than "
    f"{MIN_CLUSTERS} tasks: over the questions of these tasks alone, which says nothing about other tasks",
    "majority": f"the best constant answer on all prompts of the ledger ({MIN_QUESTIONS} questions or more)",
    "random": "a random candidate",
    "floor": "the higher of the best constant answer and a random candidate",
    "gain": "score - floor",
    "tasks": "number of tasks",
    "prompts": "number of prompts, over templates and numbers of demonstrations",
    "shots": "demonstrations before the question",
    "templates": "wordings of the same task",
    "spread": "standard deviation over the templates",
    "worst": "lowest score of a template",
    "best": "highest score of a template",
    "shared": "prompts that share a 13-word sequence with the training data",
    "clean": "the score of the other prompts",
    "outside": "generated answers that are not one of the task's labels",
    "empty": "generated answers without text",
    "cut": "generated answers that reached the token limit",
    "repeated": "generated answers in which most 4-grams repeat",
    "same": "share of the most frequent generated answer",
}
EXPLAINED = ("95%", "majority", "random", "floor", "gain", "spread", "shared", "clean", *CHECKS)
SCORE_COLUMNS = ("score", "95%", "floor", "gain")
TASK_COLUMNS = ["task", "level", "metric", "score", "95%", "majority", "random", "gain", "prompts", "shared", "clean"]
NAMES_OF_TASK = 3  # columns before the bar


def per_cent(fraction: float | None) -> str:
    """Formats a fraction: '61.4' for 0.614, a dash for None."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def signed(x: float, form: str) -> str:
    """Formats `x` as, for example, "+.1f"; a value that rounds to zero has no minus sign."""
    text = format(x, form)
    return text.replace("-", "+" if form.startswith("+") else "", 1) if float(text) == 0 else text


def level_name(level: str | None) -> str:
    return LEVEL_NAMES[level][0] if level else "(no level)"


def short_name(name: str, benchmark: str) -> str:
    """A task's name without its benchmark."""
    return name.removeprefix(f"{benchmark}.")


def level_table(results: Mapping[str, Any]) -> Table:
    """Returns one row per level, hardest first, with a column for each number of shots if there are several."""
    shots = _shots(results["levels"].values())
    rows = []
    for level in (level for level in LEVELS if level in results["levels"]):
        entry = results["levels"][level]
        tasks = [task for task in results["tasks"].values() if task["level"] == level]
        prompts = sum(task["examples"] for task in tasks)
        by_shots = (per_cent(entry["shots"].get(k)) for k in shots)
        rows.append(_row((*LEVEL_NAMES[level], *by_shots), entry, (f"{len(tasks):,}", f"{prompts:,}")))
    columns = ("level", "seen in training", *(f"{k}-shot" for k in shots), *SCORE_COLUMNS, "tasks", "prompts")
    return Table("Levels of generalization", columns, 2, tuple(rows))


def category_table(results: Mapping[str, Any]) -> Table:
    """Returns one row per category of a level, then the categories without a level, such as an external benchmark."""
    levels = {level: results["levels"][level]["categories"] for level in LEVELS if level in results["levels"]}
    levelled = {task["category"] for task in results["tasks"].values() if task["level"] is not None}
    others = {name: entry for name, entry in results["categories"].items() if name not in levelled}
    rows = []
    for level, entries in (*levels.items(), (None, others)):
        for name, entry in sorted(entries.items()):
            tasks = [t for t in results["tasks"].values() if (t["level"], t["category"]) == (level, name)]
            rows.append(_row((name, level_name(level)), entry, (f"{len(tasks):,}",)))
    return Table("Categories", ("category", "level", *SCORE_COLUMNS, "tasks"), 2, tuple(rows))


def benchmark_table(results: Mapping[str, Any]) -> Table:
    """Returns one row per benchmark, over all its tasks of any level."""
    rows = []
    for name, entry in sorted(results["benchmarks"].items()):
        prompts = sum(task["examples"] for task in results["tasks"].values() if task["benchmark"] == name)
        rows.append(_row((name,), entry, (f"{entry['tasks']:,}", f"{prompts:,}")))
    return Table("Benchmarks", ("benchmark", *SCORE_COLUMNS, "tasks", "prompts"), 1, tuple(rows))


def template_table(results: Mapping[str, Any]) -> Table:
    """Returns one row per task and number of shots with several templates: how much the wording matters."""
    rows = []
    for name, task in sorted(results["tasks"].items()):
        for shots, templates in sorted(task["templates"].items(), key=lambda item: int(item[0])):
            dots = tuple(score for score, _ in templates.values())
            if len(dots) > 1:
                mean, spread = task["shots"][shots], statistics.stdev(dots)
                cells = (short_name(name, task["benchmark"]), shots, f"{len(dots):,}", per_cent(mean))
                rows.append(TableRow((*cells, *map(per_cent, (spread, min(dots), max(dots)))), mean, dots=dots))
    columns = ("task", "shots", "templates", "score", "spread", "worst", "best")
    return Table("Templates", columns, 1, tuple(rows))


def overlap_table(samples: Iterable[Mapping[str, Any]]) -> Table:
    """Returns one row per level: scores of tasks with known contamination, with and without the contaminated
    prompts."""
    checked = [sample for sample in scored(samples) if sample["contaminated"] is not None]
    clean = scores([sample for sample in checked if not sample["contaminated"]])["levels"]
    rows = []
    for level, score in scores(checked)["levels"].items():
        group = [sample for sample in checked if sample["level"] == level]
        share = sum(sample["contaminated"] for sample in group) / len(group)
        cells = (level_name(level), per_cent(score), per_cent(share), per_cent(clean.get(level)), f"{len(group):,}")
        rows.append(TableRow(cells, score))
    return Table("Overlap with training", ("level", "score", "shared", "clean", "prompts"), 1, tuple(rows))


def task_table(results: Mapping[str, Any], samples: Iterable[Mapping[str, Any]] = (), short: bool = False) -> Table:
    """Returns one row per task, by level; with `samples`, also diagnostics of generated answers.

    Args:
      short: for the terminal, without intervals and the rarer checks.
    """
    checked = diagnose(samples)
    left_out = {"95%", "outside", "repeated", "same"} if short else set()
    left_out |= set() if checked else set(CHECKS)
    left_out |= set() if any("contaminated" in task for task in results["tasks"].values()) else {"shared", "clean"}
    shots = [] if short else _shots(results["tasks"].values())
    named, others = TASK_COLUMNS[:NAMES_OF_TASK], (*TASK_COLUMNS[NAMES_OF_TASK:], *CHECKS)
    columns = (*named, *(f"{k}-shot" for k in shots), *(name for name in others if name not in left_out))
    order = {level: index for index, level in enumerate([*LEVELS, None])}
    rows = []
    for name, task in sorted(results["tasks"].items(), key=lambda item: (order[item[1]["level"]], item[0])):
        floors = task["baselines"]
        baseline = floor(floors)
        cells = {
            "task": short_name(name, task["benchmark"]),
            "level": level_name(task["level"]),
            "metric": task["metric"],
            **{f"{k}-shot": per_cent(task["shots"].get(k)) for k in shots},
            "score": per_cent(task["score"]),
            "95%": interval_of(task),
            "majority": per_cent(floors["majority"]),
            "random": per_cent(floors["random"]),
            "gain": _gain(task["score"], baseline),
            "prompts": f"{task['examples']:,}",
            "shared": per_cent(task["contaminated"] / task["examples"] if "contaminated" in task else None),
            "clean": per_cent(task.get("clean_score")),
            **{check: per_cent(checked.get(name, {}).get(check)) for check in CHECKS},
        }
        rows.append(TableRow(tuple(cells[column] for column in columns), task["score"], baseline, task["interval"]))
    return Table("Tasks", columns, NAMES_OF_TASK, tuple(rows))


def _shots(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The numbers of demonstrations, in order, if there are several."""
    shots = sorted({k for entry in entries for k in entry["shots"]}, key=int)
    return shots if len(shots) > 1 else []


def _row(names: tuple[str, ...], entry: Mapping[str, Any], counts: tuple[str, ...]) -> TableRow:
    """A row of `names`, the columns `SCORE_COLUMNS`, and `counts`."""
    gain = _gain(entry["score"], entry["floor"])
    cells = per_cent(entry["score"]), interval_of(entry), per_cent(entry["floor"]), gain
    interval = entry["interval"] or entry["questions_interval"]
    return TableRow((*names, *cells, *counts), entry["score"], entry["floor"], interval)


def interval_of(entry: Mapping[str, Any]) -> str:
    """Formats the interval of an entry of results.json; in parentheses if it is over the questions alone."""
    if entry["interval"] is None and entry.get("questions_interval") is not None:
        return f"({interval_text(entry['questions_interval'])})"
    return interval_text(entry["interval"])


def interval_text(interval: Sequence[float] | None) -> str:
    """Formats an interval of fractions as '55.1–67.3', a dash for None."""
    return "–" if interval is None else "–".join(map(per_cent, interval))


def _gain(score: float, baseline: float | None) -> str:
    return "–" if baseline is None else signed(100 * (score - baseline), "+.1f")


def tables(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> list[Table]:
    """All tables of a report that have rows."""
    first = [level_table(results), category_table(results), benchmark_table(results), overlap_table(samples)]
    return [table for table in (*first, template_table(results), task_table(results, samples)) if table.rows]


def notes(tables: Iterable[Table]) -> list[str]:
    """Explanations of the columns that need one."""
    columns = {column for table in tables for column in table.columns}
    lines = [f"{name}: {MEANING[name]}." for name in EXPLAINED if name in columns]
    return ["Scores are per cent; chain.txt shows how each is composed.", *lines]


def text_table(table: Table) -> str:
    """Formats a table for the terminal."""
    right = [i >= table.text_columns for i in range(len(table.columns))]
    header, *rows = aligned([table.columns, *(row.cells for row in table.rows)], right)
    return "\n".join([table.title, header, "-" * len(header), *rows])


def markdown_table(table: Table) -> str:
    """Formats a table as Markdown, with its title as a heading."""

    def line(cells):
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if i < table.text_columns else "---:" for i in range(len(table.columns))]
    return "\n".join(
        [f"## {table.title}", "", line(table.columns), line(rule), *(line(row.cells) for row in table.rows)]
    )
