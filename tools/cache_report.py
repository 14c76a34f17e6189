"""Tables and lists of cached tasks and ledgers, which `tools.cache_tasks` prints."""

from collections.abc import Sequence
from pathlib import Path

from optiml_jax.common.tables import counted, table
from optiml_jax.data.manifest import coverage_text
from optiml_jax.data.sampling import shares_text
from tasks.caching import build
from tasks.example import Skipped
from tasks.suites import ledger_job

FEW_TASKS = 40  # longer tables are abbreviated
LARGEST = 20
LISTED = 20  # skipped records printed
HEADER = ("task", "examples", "tokens", "label tokens", "skipped")
SUITE_COLUMNS = ("task", "split", "level", "prompts")


def mixture_report(result: build.CacheResult, seconds: float) -> str:
    """Tables and lists of the cached tasks; long ones go to files beside the manifest."""
    stats = [result.counts(task.name) for task in result.tasks]
    if not stats:
        return (
            f"mixture {result.manifest.name}: there is no task to train on; {coverage_text(result.manifest.coverage)}"
        )
    rows = [_row(s, s["task"]) for s in stats]
    totals = [_sum(stats, name) for name in sorted({s["benchmark"] for s in stats})]
    beside = result.path
    skipped = [Skipped(**item) for s in stats for item in s["skipped"]]
    lines = [
        *_folded(HEADER, rows, totals, 2, beside.with_suffix(".txt")),
        "",
        *_skipped(skipped, sum(s["skipped_count"] for s in stats), result.left_out, beside.with_suffix(".skipped.txt")),
        *(f"note: {text}" for text in result.notes),
        coverage_text(result.manifest.coverage),
        *filter(None, [shares_text(result.manifest)]),
    ]
    longest = max(stats, key=lambda s: s["longest_label"])
    lines.append(
        f"longest label: {longest['longest_label']:,} tokens, {longest['task']} {longest['longest_label_example']}"
    )
    new = {task.name for task in result.written}
    tokens = sum(s["tokens"] for s in stats if s["task"] in new)
    if new:
        lines.append(f"wrote {len(new)} of {len(stats)} tasks, {tokens:,} tokens, in {seconds:.1f} s")
        rate = tokens / result.seconds / 1e6
        lines[-1] += f" ({result.seconds:.1f} s of it in the pipeline: {rate:.2f} million tokens per second)"
    else:
        lines.append(unchanged_report(result, seconds))
    lines.append(f"manifest: {result.path}")
    return "\n".join(lines)


def unchanged_report(result: build.CacheResult, seconds: float) -> str:
    """Returns one line for a mixture that was already cached."""
    return f"all {len(result.tasks)} tasks were already cached, checked in {seconds:.1f} s"


def ledger_report(suite: str, result: ledger_job.LedgerResult, seconds: float, alone: bool) -> str:
    """The contents of a suite: one line after a mixture, otherwise the whole table."""
    rows = [(*where, count) for where, count in result.prompts.items()]
    beside = result.path.with_suffix(".txt")
    left_out = result.left_out if alone else ()  # otherwise they are listed with the mixture
    lines = _folded(SUITE_COLUMNS, rows, [(suite, "all", "all", result.count)], 3, beside) if alone else []
    if alone or result.skipped_count:
        lines += [
            "",
            *_skipped(result.skipped, result.skipped_count, left_out, result.path.with_suffix(".skipped.txt")),
        ]
    done = "written" if result.written else "already written, checked"
    lines.append(
        f"ledger: {result.path}, {counted(result.count, 'prompt')} of {counted(len(rows), 'task')}, "
        f"{done} in {seconds:.1f} s"
    )
    return "\n".join(lines)


def _row(stats: dict, task: str) -> tuple:
    return task, stats["examples"], stats["tokens"], stats["label_tokens"], stats["skipped_count"]


def _sum(stats: Sequence[dict], benchmark: str) -> tuple:
    matching = [s for s in stats if s["benchmark"] == benchmark]
    keys = ("examples", "tokens", "label_tokens", "skipped_count")
    return _row({key: sum(s[key] for s in matching) for key in keys}, f"{benchmark} ({counted(len(matching), 'task')})")


def _folded(header: Sequence[str], rows: list[tuple], totals: list[tuple], by: int, path: Path) -> list[str]:
    """Returns a table, or its rows with the largest values in column `by` and the path of the whole table."""
    path.write_text(table(header, rows + totals) + "\n", encoding="utf-8")
    if len(rows) <= FEW_TASKS:
        return [table(header, rows + totals)]
    shown = sorted(rows, key=lambda row: -row[by])[:LARGEST]
    return [table(header, shown + totals), f"the {len(shown)} largest of {len(rows)} tasks; all of them: {path}"]


def _skipped(skipped: Sequence[Skipped], count: int, left_out: Sequence[Skipped], path: Path) -> list[str]:
    """Lists every record and task left out, with the reason: prints the first twenty and writes all to a file."""
    path.unlink(missing_ok=True)
    lines = [f"{item.where}: {item.reason}" for item in (*skipped, *left_out)]
    if not lines:
        return ["skipped: nothing"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    more = [f"  ... all of them: {path}"] if len(lines) > LISTED else []
    total = f"skipped: {counted(count, 'record')}; {counted(len(left_out), 'task')} left out"
    return [total, *(f"  {line}" for line in lines[:LISTED]), *more]
