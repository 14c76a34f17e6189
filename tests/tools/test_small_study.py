"""The small study: its data, and the verdicts of its report, by hand arithmetic."""

import itertools
import json
from collections import Counter

import pytest

from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.prompts.ledger import LEVELS
from tasks.benchmarks import small_study
from tests.conftest import ROOT
from tests.tasks.prompting.wordings import write
from tools.small_study import data, grammars, report
from tools.small_study.lexicon import ALL_KINDS, HELD_OUT_KINDS, KINDS
from tools.small_study.report import BETTER, SAME, Claim
from tools.sweep import members, state

REAL = {
    "Definition": ["Is it true?"],
    "Categories": ["Fact Verification"],
    "Positive Examples": [{"input": "The sun is hot.", "output": "yes", "explanation": ""}],
    "Instances": [
        {"id": f"real-{n}", "input": f"{n} is even.", "output": ["no" if n % 2 else "yes"]} for n in range(60)
    ],
}
LONG = REAL | {"Definition": ["Is it true? " * 100]}
FREE = REAL | {"Instances": [{"id": str(n), "input": str(n), "output": [f"answer {n}"]} for n in range(60)]}


@pytest.fixture
def data_dir(tmp_path):
    folder = "super_natural_instructions"
    contents = {"task1_true": REAL, "task2_long": LONG, "task3_free": FREE, "task4_asked": REAL, "task5_free": FREE}
    write(
        tmp_path,
        **{f"{folder}/tasks/{name}.json": json.dumps(content) for name, content in contents.items()},
        **{
            f"{folder}/splits/default/train_tasks.txt": "task1_true\ntask2_long\ntask3_free\n",
            f"{folder}/splits/default/test_tasks.txt": "task4_asked\ntask5_free\n",
        },
    )
    return tmp_path


def test_the_data_are_tasks_that_training_reads_and_equal_each_time(data_dir, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    printed = data.write(data_dir, first)
    data.write(data_dir, second)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
    benchmark = small_study.discover(first / "small_study", CacheOptions())
    real = {name for name in benchmark.tasks if ".task" in name}
    assert real == {
        f"small_study.{name}" for name in ("task1_true", "task3_free", "task4_asked")
    }  # the long and the free
    categories = Counter(
        task.category for name, task in benchmark.tasks.items() if benchmark.rows[name].split == "test"
    )
    trained = {task.category for name, task in benchmark.tasks.items() if benchmark.rows[name].split == "train"}
    held_out = {"new_kind_classification", "sentence_classification", "three_way_classification"}
    assert held_out == set(categories) - trained
    assert "train: 89 generated and 2 real tasks" in printed


def test_every_generated_answer_is_right():
    kind_of = {word: kind for kind, words in ALL_KINDS.items() for word in words}
    assert len(kind_of) == 150 and all(len(words) == 10 for words in ALL_KINDS.values())
    checked = Counter()
    for task in grammars.tasks():
        for text, output in grammars.instances(task, 40):
            words = [word.strip(",.") for word in text.split()]
            kinds = [kind_of[word] for word in words if word in kind_of]
            if task.category.endswith("Classification"):
                assert kinds == [output] and output in task.definition
                assert (output in HELD_OUT_KINDS) == (task.category == "New Kind Classification")
            elif task.category == "List Membership":
                (kind,) = (kind for kind in KINDS if f" {grammars.article(kind)} in it" in task.definition)
                assert output == ("yes" if kind in kinds else "no") and len(kinds) == 4
            elif task.category == "Relabelling":
                named = grammars.article(kinds[0])
                forms = (
                    f"{output} for {named}",
                    f"{output} if it is {named}",
                    f"{named} is {output}",
                    f"{named}, {output}",
                )
                assert any(form in task.definition for form in forms) or f"it is {named}, {output}" in task.definition
            else:
                continue
            checked[task.category] += 1
    assert len(checked) == 6 and min(checked.values()) > 100


def test_held_out_kinds_are_in_no_task_that_is_trained_on():
    words = {word for words in HELD_OUT_KINDS.values() for word in (*words,)} | set(HELD_OUT_KINDS)
    for task in grammars.tasks():
        texts = [task.definition, *(text for text, _ in grammars.instances(task, 30))]
        found = {part.strip(",.?:") for text in texts for part in text.split()} & words
        assert bool(found) == (task.category == "New Kind Classification"), task.name


def test_the_gin_files_name_the_tasks_that_are_always_trained_on():
    supervised = {f"small_study.{task.name}" for task in grammars.tasks() if task.supervised}
    (sweep,) = members.load(["experiments/small"])
    for run in members.runs(sweep, ROOT, [1], []):
        settings = state.settings(run)
        assert set(settings["data"].always_tasks) == supervised and settings["evaluate_after"]["suite"] == "small_study"
    assert len(supervised) < 16


def run_of(scores: dict[str, float], categories: dict[str, str]) -> dict:
    levels = dict(zip(("a", "b", "c", "d"), (LEVELS[0], LEVELS[0], LEVELS[1], LEVELS[2])))
    return {
        "tasks": {
            name: {
                "shots": {"0": score, "5": score / 2},
                "level": levels[name[0]],
                "category": categories[name[0]],
                "group": None,
                "benchmark": "study",
                "baselines": {"majority": 0.25, "random": None},
            }
            for name, score in scores.items()
        }
    }


CATEGORIES = {"a": "x", "b": "y", "c": "y", "d": "x"}


def study(second: list[float]) -> dict:
    """Two members with a seed per value: all tasks of the second have that many points more."""
    names = [f"{group}{n}" for group in "abcd" for n in range(8)]
    base = {name: 0.4 for name in names}
    runs = {"first": {}, "second": {}}
    for seed, points in enumerate(second, 1):
        runs["first"][str(seed)] = run_of(base, CATEGORIES)
        runs["second"][str(seed)] = run_of({name: 0.4 + points / 100 for name in names}, CATEGORIES)
    return runs


def test_a_level_is_the_mean_over_its_categories():
    run = run_of({"a0": 0.2, "a1": 0.4, "b0": 0.9, "c0": 0.5, "d0": 0.1}, CATEGORIES)
    levels = {name: task["level"] for name, task in run["tasks"].items()}
    assert report.level_mean(run, levels, (LEVELS[0],), ("0",)) == pytest.approx((30 + 90) / 2)
    assert report.level_mean(run, levels, (LEVELS[0],), ("0", "5")) == pytest.approx((30 + 90) / 2 * 0.75)
    assert report.level_mean(run, levels, LEVELS, ("0",)) == pytest.approx((60 + 50 + 10) / 3)
    assert report.floor_mean(run, levels, LEVELS[0]) == 25


@pytest.mark.parametrize(
    ("points", "expected", "verdict"),
    [
        ([10.0, 11.0, 12.0], BETTER, "agrees"),
        ([-10.0, -11.0, -12.0], BETTER, "disagrees"),
        ([10.0, -11.0, 12.0], BETTER, "cannot be told at this size"),
        ([10.0], BETTER, "cannot be told with one seed"),
        ([0.1, 0.2, -0.1], SAME, "agrees"),
        ([10.0, 11.0, 12.0], SAME, "disagrees"),
        ([5.0, -5.0, 2.0], SAME, "cannot be told at this size"),
    ],
)
def test_a_verdict_follows_from_both_tests(points, expected, verdict):
    runs = study(points)
    levels = report.levels_of(runs, "first")
    claim = Claim("4.2", "text", "second", "first", expected)
    finding = report.test(claim, runs, levels)
    mean = sum(points) / len(points)
    assert finding.difference.mean == pytest.approx(mean)
    at_five = report.test(claim._replace(shots=("0", "5")), runs, levels)
    assert at_five.difference.mean == pytest.approx(0.75 * mean)  # half as much at 5 shots
    assert finding.tasks == 32 and finding.p == pytest.approx(2 / 2**32)
    assert finding._replace(p_holm=finding.p).verdict == verdict
    assert expected == SAME or "cannot" in finding._replace(p_holm=0.2).verdict  # the other test


def test_contributions_of_tasks_add_up_to_the_difference_of_the_means():
    runs = study([7.0])
    levels = report.levels_of(runs, "first")
    for index, task in enumerate(runs["second"]["1"]["tasks"].values()):
        task["shots"] = {"0": index / 40, "5": index / 50}
    first, second = runs["first"]["1"], runs["second"]["1"]
    for claim_levels, shots in itertools.product([LEVELS, LEVELS[:1]], [("0",), ("0", "5")]):
        claim = Claim("4.2", "text", "second", "first", BETTER, claim_levels, shots)
        parts = report.contributions(claim, first, second, levels)
        means = [report.level_mean(run, levels, claim_levels, shots) for run in (first, second)]
        assert sum(parts.values()) == pytest.approx(means[1] - means[0])
        assert set(parts) == {name for name, level in levels.items() if level in claim_levels}
    # Level a and b: two categories of eight tasks each.
    assert parts["a3"] == pytest.approx(100 * ((3 / 40 - 0.4) / 32 + (3 / 50 - 0.2) / 32))


def test_the_report_says_what_its_numbers_say(tmp_path):
    runs = study([10.0, 11.0, 12.0])
    record = {"baseline": "baseline", "members": ["baseline", "no_cap"], "rows": {}, "table": None, "title": ""}
    record["runs"] = {"baseline": runs["second"], "no_cap": runs["first"]}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    report.main([f"--runs={tmp_path}", f"--output={tmp_path / 'out'}"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert (
        "Verdicts on 1 claims of the paper: agrees 1, disagrees 0" in text
        and "| baseline - no_cap, 0 shots | +11.0 |" in text
    )
    assert (tmp_path / "out" / "scores.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == record
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert all(first == second or (first, second) != (0, 0) for first, second in itertools.pairwise(widths))
