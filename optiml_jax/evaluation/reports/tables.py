"""The tables of a report, as texts: the terminal, Markdown and HTML show the same ones.

They print per cent, as the paper does; results.json keeps fractions.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optiml_jax.evaluation.prompts.ledger import LEVELS
from optiml_jax.evaluation.scores.aggregation import scores
from optiml_jax.evaluation.scores.baselines import floor
from optiml_jax.evaluation.scores.diagnostics import CHECKS, answer_checks
from optiml_jax.evaluation.scores.samples import scored

LEVEL_NAMES = {  # and what the model has seen of such a task in training
    "fully_held_out": ("Fully held-out", "no task of the category"),
    "held_out_task": ("Held-out tasks", "other tasks of the category"),
    "held_out_instances": ("Held-out instances", "other instances of the task"),
}
FEW_PROMPTS = 10  # fewer have no majority baseline


@dataclasses.dataclass(frozen=True)
class Row:
    """Cells of one line, and what its bar shows, in fractions.

    Attributes:
      interval: of the score, [low, high].
      dots: scores that this one is the mean of.
    """

    cells: tuple[str, ...]
    score: float
    floor: float | None = None
    interval: Sequence[float] | None = None
    dots: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """`text_columns` columns on the left hold text, the others numbers (right-aligned)."""

    title: str
    columns: tuple[str, ...]
    text_columns: int
    rows: tuple[Row, ...]


# What a column says; those in `EXPLAINED` are explained in words below the tables too.
MEANING = {
    "level": "what the model has seen of such a task in training",
    "seen in training": "what the model was trained on",
    "category": "tasks of one kind",
    "benchmark": "the collection that tasks come from",
    "task": "its name, without the benchmark's",
    "metric": "what an answer is scored by",
    "score": "per cent; the mean of what chain.txt lists",
    "95%": "95% interval of the score, by a bootstrap of tasks and of their examples",
    "majority": f"the best constant answer, chosen on the prompts evaluated ({FEW_PROMPTS} or more)",
    "random": "a random candidate",
    "floor": "the higher of the best constant answer and a random candidate",
    "gain": "score - floor",
    "tasks": "how many",
    "prompts": "how many, over templates and numbers of demonstrations",
    "shots": "demonstrations before the question",
    "templates": "wordings of the same task",
    "spread": "standard deviation over the templates",
    "worst": "lowest score of a template",
    "best": "highest score of a template",
    "shared": "prompts that have 13 words in a row with what was trained on",
    "clean": "the score of the others",
    "outside": "generated answers that are none of the task's labels",
    "empty": "generated answers without a text",
    "cut": "generated answers that met the token limit",
    "repeated": "generated answers of which half is said twice",
    "same": "share of the most frequent generated answer",
}
EXPLAINED = ("95%", "majority", "random", "floor", "gain", "spread", "shared", "clean", *CHECKS)
SCORED = ("score", "95%", "floor", "gain")
OF_A_TASK = ["task", "level", "metric", "score", "95%", "majority", "random", "gain", "prompts", "shared", "clean"]


def per_cent(fraction: float | None) -> str:
    """'61.4' of 0.614, a dash of None."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def signed(x: float, form: str) -> str:
    """`x` in a format such as "+.1f"; what rounds to zero has no minus."""
    text = format(x, form)
    return text.replace("-", "+" if form.startswith("+") else "", 1) if float(text) == 0 else text


def level_name(level: str | None) -> str:
    return LEVEL_NAMES[level][0] if level else "(no level)"


def short_name(name: str, benchmark: str) -> str:
    """A task's name without its benchmark, which the tables show apart or need not repeat."""
    return name.removeprefix(f"{benchmark}.")


def level_table(results: Mapping[str, Any]) -> Table:
    """One row a level, hardest first; columns for each number of shots where there are several."""
    shots = sorted({k for entry in results["levels"].values() for k in entry["shots"]}, key=int)
    shots = shots if len(shots) > 1 else []
    rows = []
    for level in (level for level in LEVELS if level in results["levels"]):
        entry = results["levels"][level]
        tasks = [task for task in results["tasks"].values() if task["level"] == level]
        prompts = sum(task["examples"] for task in tasks)
        of_shots = (per_cent(entry["shots"].get(k)) for k in shots)
        rows.append(_row((*LEVEL_NAMES[level], *of_shots), entry, prompts, (f"{len(tasks):,}", f"{prompts:,}")))
    columns = ("level", "seen in training", *(f"{k}-shot" for k in shots), *SCORED, "tasks", "prompts")
    return Table("Levels of generalization", columns, 2, tuple(rows))


def category_table(results: Mapping[str, Any]) -> Table:
    """One row a category of a level, then those at none, such as an external benchmark."""
    levels = {level: results["levels"][level]["categories"] for level in LEVELS if level in results["levels"]}
    levelled = {task["category"] for task in results["tasks"].values() if task["level"] is not None}
    others = {name: entry for name, entry in results["categories"].items() if name not in levelled}
    rows = []
    for level, entries in (*levels.items(), (None, others)):
        for name, entry in sorted(entries.items()):
            of_category = [t for t in results["tasks"].values() if (t["level"], t["category"]) == (level, name)]
            prompts = sum(task["examples"] for task in of_category)
            rows.append(_row((name, level_name(level)), entry, prompts, (f"{len(of_category):,}",)))
    return Table("Categories", ("category", "level", *SCORED, "tasks"), 2, tuple(rows))


def benchmark_table(results: Mapping[str, Any]) -> Table:
    """One row a benchmark, over all its tasks, whatever their level."""
    rows = []
    for name, entry in sorted(results["benchmarks"].items()):
        prompts = sum(task["examples"] for task in results["tasks"].values() if task["benchmark"] == name)
        rows.append(_row((name,), entry, prompts, (f"{entry['tasks']:,}", f"{prompts:,}")))
    return Table("Benchmarks", ("benchmark", *SCORED, "tasks", "prompts"), 1, tuple(rows))


def template_table(results: Mapping[str, Any]) -> Table:
    """One row a task and number of shots that has several templates: how much the wording matters."""
    rows = []
    for name, task in sorted(results["tasks"].items()):
        for shots, templates in sorted(task["templates"].items(), key=lambda item: int(item[0])):
            dots = tuple(score for score, _ in templates.values())
            if len(dots) > 1:
                mean, spread = task["shots"][shots], statistics.stdev(dots)
                cells = (short_name(name, task["benchmark"]), shots, f"{len(dots):,}", per_cent(mean))
                rows.append(Row((*cells, *map(per_cent, (spread, min(dots), max(dots)))), mean, dots=dots))
    columns = ("task", "shots", "templates", "score", "spread", "worst", "best")
    return Table("Templates", columns, 1, tuple(rows))


def overlap_table(samples: Iterable[Mapping[str, Any]]) -> Table:
    """One row a level: the scores of tasks of which it is known what leaked, with and without the prompts that did."""
    known = [sample for sample in scored(samples) if sample["contaminated"] is not None]
    clean = scores([sample for sample in known if not sample["contaminated"]])["levels"]
    rows = []
    for level, score in scores(known)["levels"].items():
        of_level = [sample for sample in known if sample["level"] == level]
        share = sum(sample["contaminated"] for sample in of_level) / len(of_level)
        cells = (level_name(level), per_cent(score), per_cent(share), per_cent(clean.get(level)), f"{len(of_level):,}")
        rows.append(Row(cells, score))
    return Table("Overlap with training", ("level", "score", "shared", "clean", "prompts"), 1, tuple(rows))


def task_table(results: Mapping[str, Any], samples: Iterable[Mapping[str, Any]] = (), short: bool = False) -> Table:
    """One row a task, by level; with `samples`, what is wrong with generated answers.

    Args:
      short: for the terminal, without intervals and the rarer checks.
    """
    checked = answer_checks(samples)
    left_out = {"95%", "outside", "repeated", "same"} if short else set()
    left_out |= set() if checked else set(CHECKS)
    left_out |= set() if any("contaminated" in task for task in results["tasks"].values()) else {"shared", "clean"}
    columns = tuple(name for name in (*OF_A_TASK, *CHECKS) if name not in left_out)
    order = {level: place for place, level in enumerate([*LEVELS, None])}
    rows = []
    for name, task in sorted(results["tasks"].items(), key=lambda item: (order[item[1]["level"]], item[0])):
        floors, enough = task["baselines"], task["examples"] >= FEW_PROMPTS
        above = floor(floors) if enough else None
        cells = {
            "task": short_name(name, task["benchmark"]),
            "level": level_name(task["level"]),
            "metric": task["metric"],
            "score": per_cent(task["score"]),
            "95%": interval_text(task["interval"]),
            "majority": per_cent(floors["majority"] if enough else None),
            "random": per_cent(floors["random"]),
            "gain": _gain(task["score"], above),
            "prompts": f"{task['examples']:,}",
            "shared": per_cent(task["contaminated"] / task["examples"] if "contaminated" in task else None),
            "clean": per_cent(task.get("clean_score")),
            **{check: per_cent(checked.get(name, {}).get(check)) for check in CHECKS},
        }
        rows.append(Row(tuple(cells[column] for column in columns), task["score"], above, task["interval"]))
    return Table("Tasks", columns, 3, tuple(rows))


def _row(names: tuple[str, ...], entry: Mapping[str, Any], prompts: int, counts: tuple[str, ...]) -> Row:
    """`names`, the columns `SCORED`, and `counts`. A floor says something where there are enough prompts: chosen on
    two, the best constant answer would be right about both."""
    above = entry["floor"] if prompts >= FEW_PROMPTS else None
    score = per_cent(entry["score"]), interval_text(entry["interval"]), per_cent(above), _gain(entry["score"], above)
    return Row((*names, *score, *counts), entry["score"], above, entry["interval"])


def interval_text(interval: Sequence[float] | None) -> str:
    """'55.1–67.3' of fractions, a dash of None."""
    return "–" if interval is None else "–".join(map(per_cent, interval))


def _gain(score: float, above: float | None) -> str:
    return "–" if above is None else signed(100 * (score - above), "+.1f")


def tables(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> list[Table]:
    """Every table of a report that has rows."""
    found = [level_table(results), category_table(results), benchmark_table(results), overlap_table(samples)]
    return [table for table in (*found, template_table(results), task_table(results, samples)) if table.rows]


def notes(tables: Iterable[Table]) -> list[str]:
    """What the columns mean that are there and do not speak for themselves."""
    there = {column for table in tables for column in table.columns}
    lines = [f"{name}: {MEANING[name]}." for name in EXPLAINED if name in there]
    return ["Scores are per cent; chain.txt says what each is the mean of.", *lines]


def text_table(table: Table) -> str:
    """Aligned, for the terminal."""
    grid = [table.columns, *(row.cells for row in table.rows)]
    widths = [max(len(cells[i]) for cells in grid) for i in range(len(table.columns))]
    lines = [
        "  ".join(c.ljust(w) if i < table.text_columns else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths)))
        for cells in grid
    ]
    return "\n".join([table.title, *(line.rstrip() for line in (lines[0], "-" * len(lines[0]), *lines[1:]))])


def markdown_table(table: Table) -> str:
    """With its title as a heading."""

    def line(cells):
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if i < table.text_columns else "---:" for i in range(len(table.columns))]
    return "\n".join(
        [f"## {table.title}", "", line(table.columns), line(rule), *(line(row.cells) for row in table.rows)]
    )
