"""Every number of a report's tables, reckoned anew from samples.jsonl by plain means of means.

Shares no code with `scores/aggregation.py` and `reports/tables.py`, which it checks. `python -m
tests.evaluation.scores.trace DIR` reads an evaluation's report.html and samples.jsonl and says how many numbers match.
"""

import html.parser
import json
import statistics
import sys
from collections import Counter, defaultdict
from pathlib import Path

from optiml_jax.evaluation.metrics import Metric

LEVELS = {
    "Fully held-out": "fully_held_out",
    "Held-out tasks": "held_out_task",
    "Held-out instances": "held_out_instances",
}


class Tables(html.parser.HTMLParser):
    """{title: [row, ...]} of a page, a row as {column: text}; bars are left out."""

    def __init__(self):
        super().__init__()
        self.found, self._title, self._rows, self._cell, self._bar = {}, "", [], None, False

    def handle_starttag(self, tag, attrs):
        if tag == "h2":
            self._cell = ""
        elif tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._cell, self._bar = "", ("class", "barcell") in attrs

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag == "h2":
            self._title, self._cell = self._cell, None
        elif tag in ("td", "th"):
            if not self._bar:
                self._rows[-1].append(self._cell)
            self._cell = None
        elif tag == "table" and self._rows:
            head, *lines = self._rows
            self.found[self._title] = [dict(zip(head, line, strict=True)) for line in lines]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def shown(fraction):
    return "–" if fraction is None else f"{100 * fraction:.1f}"


class Reckoned:
    """Scores from samples, by the words of paper section 4.1."""

    def __init__(self, samples):
        self.tasks = defaultdict(list)
        for sample in samples:
            if sample["score"] is not None:
                self.tasks[sample["task"]].append(sample)

    def question_scores(self, task):
        """shots -> template -> score of each question."""
        result = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
        for s in self.tasks[task]:
            result[s["shots"]][s["template"]][s["seed"], s["part_of"] or s["example_id"]].append(s["score"])
        return {
            k: {t: [min(scores) for scores in requests.values()] for t, requests in templates.items()}
            for k, templates in result.items()
        }

    def template_scores(self, task):
        """shots -> template -> mean over questions."""
        by_shots = self.question_scores(task).items()
        return {k: {t: mean(scores) for t, scores in templates.items()} for k, templates in by_shots}

    def at_shots(self, task):
        if self.tasks[task][0]["pooled"]:
            return {
                k: mean(score for scores in templates.values() for score in scores)
                for k, templates in self.question_scores(task).items()
            }
        return {k: mean(templates.values()) for k, templates in self.template_scores(task).items()}

    def over(self, tasks, value):
        """Averages tasks of one category at each number of shots: over groups, benchmarks and tasks, then over
        shots."""
        by_shots = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
        for task in tasks:
            first = self.tasks[task][0]
            for k, score in value(task).items():
                by_shots[k][first["group"] or task][first["benchmark"]].append(score)
        return {k: mean(mean(map(mean, group.values())) for group in groups.values()) for k, groups in by_shots.items()}

    def floors(self, task):
        """(majority, random) of the references and candidates of a task."""
        samples = self.tasks[task]
        metric = Metric.parse(samples[0]["metric"])
        answers = Counter(text for s in samples for text in dict.fromkeys(s["references"])).most_common(20)
        majority = max(mean(metric(answer, s["references"]) for s in samples) for answer, _ in answers)
        if len({s["part_of"] or s["example_id"] for s in samples}) < 10:
            majority = None
        if any(s["candidates"] is None for s in samples):
            return majority, None
        return majority, mean(mean(metric(c, s["references"]) for c in s["candidates"]) for s in samples)

    def floor(self, task):
        return dict.fromkeys(self.at_shots(task), max((x for x in self.floors(task) if x is not None), default=None))


def check(page: str, samples: list[dict]) -> int:
    """Compares every number but intervals; returns how many. Raises AssertionError naming the first that is wrong."""
    parser = Tables()
    parser.feed(page)
    reckoned, count = Reckoned(samples), 0
    names = {task: task.removeprefix(f"{group[0]['benchmark']}.") for task, group in reckoned.tasks.items()}

    def same(row, **expected):
        nonlocal count
        for column, text in expected.items():
            assert row[column] == text, (row, column, text)
            count += 1

    def scored(row, tasks, level_of=None):
        """The columns score, floor and gain of a mean over tasks, or over the categories of a level."""
        parts = defaultdict(list)
        for task in tasks:
            parts[reckoned.tasks[task][0]["category"] if level_of else ""].append(task)
        score = mean(mean(reckoned.over(group, reckoned.at_shots).values()) for group in parts.values())
        floor = None
        if all(any(x is not None for x in reckoned.floors(task)) for task in tasks):
            floor = mean(mean(reckoned.over(group, reckoned.floor).values()) for group in parts.values())
        gain = "–" if floor is None else f"{100 * (score - floor):+.1f}".replace("-0.0", "+0.0")
        same(row, score=shown(score), floor=shown(floor), gain=gain)
        low, high = (float(end) for end in row["95%"].strip("()").split("–"))
        assert low <= 100 * score + 0.05 and 100 * score - 0.05 <= high, row

    def tasks_with(**fields):
        return [t for t, s in reckoned.tasks.items() if all(s[0][name] == value for name, value in fields.items())]

    def prompts(tasks):
        return f"{sum(len(reckoned.tasks[task]) for task in tasks):,}"

    for row in parser.found.get("Levels of generalization", ()):
        tasks = tasks_with(level=LEVELS[row["level"]])
        scored(row, tasks, level_of=True)
        same(row, tasks=f"{len(tasks):,}", prompts=prompts(tasks))
        for column in (name for name in row if name.endswith("-shot")):
            k = int(column.removesuffix("-shot"))
            categories = {reckoned.tasks[task][0]["category"] for task in tasks}
            at = [
                reckoned.over(tasks_with(level=LEVELS[row["level"]], category=c), reckoned.at_shots) for c in categories
            ]
            present = [x[k] for x in at if k in x]
            same(row, **{column: shown(mean(present) if present else None)})
    for row in parser.found["Categories"]:
        tasks = tasks_with(category=row["category"], level=LEVELS.get(row["level"]))
        scored(row, tasks)
        same(row, tasks=f"{len(tasks):,}")
    for row in parser.found["Benchmarks"]:
        tasks = tasks_with(benchmark=row["benchmark"])
        scored(row, tasks)
        same(row, tasks=f"{len(tasks):,}", prompts=prompts(tasks))
    by_name = {name: task for task, name in names.items()}
    for row in parser.found.get("Templates", ()):
        task, k = by_name[row["task"]], int(row["shots"])
        scores = list(reckoned.template_scores(task)[k].values())
        same(row, templates=str(len(scores)), spread=shown(statistics.stdev(scores)))
        same(row, score=shown(reckoned.at_shots(task)[k]))
        same(row, worst=shown(min(scores)), best=shown(max(scores)))
    for row in parser.found["Tasks"]:
        task = by_name[row["task"]]
        task_samples, score, (majority, random) = (
            reckoned.tasks[task],
            mean(reckoned.at_shots(task).values()),
            reckoned.floors(task),
        )
        same(
            row,
            score=shown(score),
            random=shown(random),
            prompts=f"{len(task_samples):,}",
            metric=str(Metric.parse(task_samples[0]["metric"])),
        )
        floor = max((x for x in (majority, random) if x is not None), default=None)
        gain = "–" if floor is None else f"{100 * (score - floor):+.1f}".replace("-0.0", "+0.0")
        same(row, majority=shown(majority), gain=gain)
        if "empty" in row and task_samples[0]["candidates"] is None:
            texts = [s["prediction"].strip() for s in task_samples]
            same(
                row,
                empty=shown(mean(not text for text in texts)),
                cut=shown(mean(bool(s["truncated"]) for s in task_samples)),
            )
            same(row, same=shown(Counter(texts).most_common(1)[0][1] / len(task_samples)))
        if row.get("shared", "–") != "–":
            same(row, shared=shown(mean(bool(s["contaminated"]) for s in task_samples)))
    for row in parser.found.get("Overlap with training", ()):
        checked = [s for s in samples if s["level"] == LEVELS[row["level"]] and s["contaminated"] is not None]
        checked = [s for s in checked if s["score"] is not None]
        same(row, shared=shown(mean(s["contaminated"] for s in checked)), prompts=f"{len(checked):,}")
        for column, part in (
            ("score", checked),
            ("clean", [s for s in checked if not s["contaminated"]]),
        ):
            parts, anew = defaultdict(list), Reckoned(part)
            for task, task_samples in anew.tasks.items():
                parts[task_samples[0]["category"]].append(task)
            same(row, **{column: shown(mean(mean(anew.over(x, anew.at_shots).values()) for x in parts.values()))})
    return count


def check_averages(results: dict, samples: list[dict]) -> int:
    """Compares the averages of results.json with means over the columns of the paper's tables; returns how many."""
    reckoned, count = Reckoned(samples), 0
    levelled = any(group[0]["level"] for group in reckoned.tasks.values())
    for name, field in (("average", "category"), ("benchmark_average", "benchmark")):
        columns = defaultdict(list)
        for task, (first, *_) in reckoned.tasks.items():
            if first["level"] or not levelled:
                columns[first["level"], first[field]].append(task)
        by_shots = defaultdict(list)
        for tasks in columns.values():
            for shots, score in reckoned.over(tasks, reckoned.at_shots).items():
                by_shots[shots].append(score)
        entry = results["averages"][name]
        assert entry["columns"] == {str(k): len(scores) for k, scores in by_shots.items()}
        for shots, scores in by_shots.items():
            assert abs(entry["shots"][str(shots)] - mean(scores)) < 1e-12, (name, shots)
        assert abs(entry["score"] - mean(map(mean, by_shots.values()))) < 1e-12, name
        count += 1 + 2 * len(by_shots)
    assert results["average"] == results["averages"]["average"]["score"]
    if "level_average" in results["averages"]:
        parts = defaultdict(lambda: defaultdict(list))
        for task, (first, *_) in reckoned.tasks.items():
            if first["level"]:
                parts[first["level"]][first["category"]].append(task)
        levels = [
            mean(mean(reckoned.over(tasks, reckoned.at_shots).values()) for tasks in categories.values())
            for categories in parts.values()
        ]
        assert abs(results["averages"]["level_average"]["score"] - mean(levels)) < 1e-12
        count += 1
    return count + 1


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    count = check((folder / "report.html").read_text(encoding="utf-8"), lines)
    count += check_averages(json.loads((folder / "results.json").read_text(encoding="utf-8")), lines)
    print(f"{count:,} numbers are as samples.jsonl says")
