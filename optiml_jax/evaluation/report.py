"""The report of an evaluation: the same tables for the terminal, report.md and report.html.

Tables print per cent, as the paper does; results.json keeps fractions.
"""

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from optiml_jax.data.manifest import coverage_text
from optiml_jax.evaluation.ledger import LEVELS
from optiml_jax.evaluation.samples import scored

LEVEL_NAMES = {  # and what the model has seen of such a task in training
    "fully_held_out": ("Fully held-out", "no task of the category"),
    "held_out_task": ("Held-out tasks", "other tasks of the category"),
    "held_out_instances": ("Held-out instances", "other instances of the task"),
}
PRINTED_TASKS = 100  # more than a screen or two belongs into the files
FEW_PROMPTS = 10  # fewer have no majority baseline
NAMED = 5  # prompts that something is wrong with


@dataclasses.dataclass(frozen=True)
class Row:
    """Cells of one line, and the two fractions that a bar shows."""

    cells: tuple[str, ...]
    score: float
    majority: float | None


@dataclasses.dataclass(frozen=True)
class Table:
    """`text_columns` columns on the left hold text, the others numbers (right-aligned)."""

    title: str
    columns: tuple[str, ...]
    text_columns: int
    rows: tuple[Row, ...]


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


def degeneration(samples: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Task -> {"empty": share of empty answers, "cut": share that met the token limit}, where answers are generated.

    A candidate is never empty or cut, so ranked tasks are left out.
    """
    generated = defaultdict(list)
    for sample in scored(samples):
        if sample["candidates"] is None:
            generated[sample["task"]].append(sample)
    return {
        task: {
            "empty": sum(not sample["prediction"].strip() for sample in of_task) / len(of_task),
            "cut": sum(bool(sample["truncated"]) for sample in of_task) / len(of_task),
        }
        for task, of_task in generated.items()
    }


def level_table(results: Mapping[str, Any]) -> Table:
    """One row a level, hardest first; columns for each number of shots where there are several."""
    shots = sorted({k for entry in results["levels"].values() for k in entry["shots"]}, key=int)
    shots = shots if len(shots) > 1 else []
    rows = []
    for level in (level for level in LEVELS if level in results["levels"]):
        entry, name = results["levels"][level], LEVEL_NAMES[level]
        tasks = [task for task in results["tasks"].values() if task["level"] == level]
        prompts = sum(task["examples"] for task in tasks)
        majority = _floor(entry["majority"], prompts)
        cells = [*name, *(per_cent(entry["shots"].get(k)) for k in shots), *_against(entry["score"], majority)]
        rows.append(Row((*cells, f"{len(tasks):,}", f"{prompts:,}"), entry["score"], majority))
    columns = ("level", "seen in training", *(f"{k}-shot" for k in shots), "score", "majority", "gain")
    return Table("Levels of generalization", (*columns, "tasks", "prompts"), 2, tuple(rows))


def category_table(results: Mapping[str, Any]) -> Table:
    """One row a category of a level, then those at none, such as an external benchmark."""
    levels = {level: results["levels"][level]["categories"] for level in LEVELS if level in results["levels"]}
    levelled = {task["category"] for task in results["tasks"].values() if task["level"] is not None}
    others = {name: entry for name, entry in results["categories"].items() if name not in levelled}
    rows = []
    for level, entries in (*levels.items(), (None, others)):
        for name, entry in sorted(entries.items()):
            of_category = [t for t in results["tasks"].values() if (t["level"], t["category"]) == (level, name)]
            majority = _floor(entry["majority"], sum(task["examples"] for task in of_category))
            cells = (name, level_name(level), *_against(entry["score"], majority), f"{len(of_category):,}")
            rows.append(Row(cells, entry["score"], majority))
    return Table("Categories", ("category", "level", "score", "majority", "gain", "tasks"), 2, tuple(rows))


def task_table(results: Mapping[str, Any], samples: Iterable[Mapping[str, Any]] = ()) -> Table:
    """One row a task, by level; with `samples`, the shares of empty and of cut answers where answers are generated."""
    checks = degeneration(samples)
    compared = any("contaminated" in task for task in results["tasks"].values())
    order = {level: place for place, level in enumerate([*LEVELS, None])}
    rows = []
    for name, task in sorted(results["tasks"].items(), key=lambda item: (order[item[1]["level"]], item[0])):
        floors, check = task["baselines"], checks.get(name, {})
        majority = _floor(floors["majority"], task["examples"])
        cells = (
            *(short_name(name, task["benchmark"]), level_name(task["level"]), task["metric"]),
            *_against(task["score"], majority),
            per_cent(floors["random"]),
            f"{task['examples']:,}",
            *((_shared(task), per_cent(task.get("clean_score"))) if compared else ()),
            *((per_cent(check.get("empty")), per_cent(check.get("cut"))) if checks else ()),
        )
        rows.append(Row(cells, task["score"], majority))
    columns = ("task", "level", "metric", "score", "majority", "gain", "random", "prompts")
    columns += ("shared", "clean") if compared else ()
    return Table("Tasks", columns + (("empty", "cut") if checks else ()), 3, tuple(rows))


def _shared(task: Mapping[str, Any]) -> str:
    return per_cent(task["contaminated"] / task["examples"] if "contaminated" in task else None)


def _floor(majority: float, prompts: int) -> float | None:
    """The baseline where it says something: chosen on two prompts, it would be right about both."""
    return majority if prompts >= FEW_PROMPTS else None


def _against(score: float, majority: float | None) -> tuple[str, str, str]:
    gain = "–" if majority is None else signed(100 * (score - majority), "+.1f")
    return per_cent(score), per_cent(majority), gain


def scope(
    coverage: Mapping[str, Any] | None, dropped: Sequence[str], samples: Iterable[Mapping[str, Any]] = ()
) -> list[str]:
    """How much of each benchmark was asked, what of it was left out on purpose, and which prompts to look at."""
    lines = [coverage_text(coverage)] if coverage else []
    return [*lines, *(f"Left out: {text}" for text in dropped), *_remarks(samples)]


def _remarks(samples: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each thing that is wrong with prompts, with their number and the first of them."""
    found = defaultdict(list)
    for sample in samples:
        reasons = [sample["remark"]] if sample["remark"] else []
        reasons += ["too long, its beginning was cut"] if sample["prompt_cut"] else []
        for reason in reasons:
            found[sample["score"] is not None, reason].append(sample["id"])
    return [
        f"{'Scored all the same' if was_scored else 'Not scored'}, {len(ids):,} prompts, {reason}: "
        + ", ".join(ids[:NAMED])
        + (", ... (samples.jsonl)" if len(ids) > NAMED else "")
        for (was_scored, reason), ids in sorted(found.items())
    ]


def summary(
    results: Mapping[str, Any],
    training: Mapping[str, float] | None = None,
    coverage: Mapping[str, Any] | None = None,
    dropped: Sequence[str] = (),
    samples: Iterable[Mapping[str, Any]] = (),
) -> list[str]:
    """What was scored, of how much, what was left out on purpose, the loss before and after training if known, and the
    one number, a line each."""
    prompts = sum(task["examples"] for task in results["tasks"].values())
    eos = "with" if results["bos"] else "without"
    ranked = "" if results["ranked_by"] == "sum" else f", candidates ranked by {results['ranked_by']}"
    lines = [
        f"{results['weights']}: {len(results['tasks']):,} tasks, {prompts:,} prompts, {eos} a leading </s>{ranked}"
    ]
    lines += scope(coverage, dropped, samples)
    if training:
        first, last = training["first_loss"], training["last_loss"]
        lines.append(f"Training loss {first:.3f} -> {last:.3f} nats per label token ({last / first - 1:+.0%})")
    if results["average"] is not None:
        lines.append(f"Average of the levels {per_cent(results['average'])}")
    return lines


NOTES = (
    "Scores are per cent. majority: the best constant answer, chosen on the prompts evaluated "
    f"({FEW_PROMPTS} or more). random: a random candidate. gain: score - majority. chain.txt: what each is the mean of."
)
OVERLAP = "shared: prompts that have 13 words in a row with what was trained on. clean: the score of the others."
CHECKS = "empty, cut: share of generated answers that are empty or met the token limit."


def _text_table(table: Table) -> str:
    grid = [table.columns, *(row.cells for row in table.rows)]
    widths = [max(len(cells[i]) for cells in grid) for i in range(len(table.columns))]
    lines = [
        "  ".join(c.ljust(w) if i < table.text_columns else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths)))
        for cells in grid
    ]
    return "\n".join([table.title, *(line.rstrip() for line in (lines[0], "-" * len(lines[0]), *lines[1:]))])


def print_report(
    results: Mapping[str, Any],
    *,
    samples: Iterable[Mapping[str, Any]] = (),
    training: Mapping[str, float] | None = None,
    coverage: Mapping[str, Any] | None = None,
    dropped: Sequence[str] = (),
    file: TextIO | None = None,
) -> None:
    """Prints the report as aligned text: levels, categories, tasks.

    Args:
      samples: adds the shares of empty and cut answers to the tasks.
      training: {"first_loss", "last_loss"}, nats per label token.
      coverage: how much of each benchmark was there.
      dropped: tasks that a review took out, with the reason.
      file: standard output by default.
    """
    tasks = task_table(results, samples)
    if len(tasks.rows) > PRINTED_TASKS:
        title = f"{tasks.title} (first {PRINTED_TASKS} of {len(tasks.rows):,}; all of them in report.md)"
        tasks = dataclasses.replace(tasks, title=title, rows=tasks.rows[:PRINTED_TASKS])
    tables = [_text_table(table) for table in (level_table(results), category_table(results), tasks)]
    about = "\n".join(summary(results, training, coverage, dropped, samples))
    print("\n\n".join([about, *tables, "\n".join(notes(tasks))]), file=file or sys.stdout)


def notes(tasks: Table) -> list[str]:
    """What the columns mean that are there."""
    return [NOTES, *[OVERLAP] * ("clean" in tasks.columns), *[CHECKS] * ("cut" in tasks.columns)]


def _markdown_table(table: Table) -> str:
    def line(cells):
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if i < table.text_columns else "---:" for i in range(len(table.columns))]
    return "\n".join(
        [f"## {table.title}", "", line(table.columns), line(rule), *(line(row.cells) for row in table.rows)]
    )


def markdown(
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]] = (),
    training: Mapping[str, float] | None = None,
    coverage: Mapping[str, Any] | None = None,
    dropped: Sequence[str] = (),
) -> str:
    """The text of report.md."""
    tables = (level_table(results), category_table(results), task_table(results, samples))
    about = "\n".join(f"- {line}" for line in summary(results, training, coverage, dropped, samples))
    about += f"\n- tokenizer {results['tokenizer'][:12]}, code {results['code_version']}"
    return "\n\n".join(["# Evaluation", about, " ".join(notes(tables[-1])), *map(_markdown_table, tables)]) + "\n"
