"""Lists mixtures, suites and tasks without data."""

import re
from collections import Counter

import pytest

from tasks import suites
from tasks.catalog import mixtures
from tests.conftest import ROOT
from tools import list_tasks


def test_every_mixture_and_suite_is_listed_with_its_tasks(capsys):
    list_tasks.main([])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert {*mixtures.names(), *suites.names()} <= lines.keys()
    assert lines["opt_iml"].split()[1:3] == ["1,625", "93"]
    assert "Table 14" in lines["mmlu"]


def test_the_document_shows_what_is_drawn_as_it_is(capsys):
    """docs/benchmark.md repeats the output of the command, and counts in its text."""
    list_tasks.main(["--mixture=opt_iml"])
    benchmark, evaluation, differences = (
        " ".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split())
        for name in ("benchmark", "evaluation", "differences")
    )
    assert " ".join(capsys.readouterr().out.split()) in benchmark
    rows = [row for row in mixtures.mixture("opt_iml").listed() if row.benchmark != "pretrain_text"]
    by_category = Counter(row.category for row in rows)
    assert f"these are {len(rows):,} of {len(by_category)}. " in benchmark
    assert f"prints the counts beside the paper's: {len(rows):,} tasks of {len(by_category)} categories" in evaluation
    assert f"| {len(rows):,} of {len(by_category)}: every task" in differences
    without = {row.category for row in rows if row.split != "test"}
    assert f"there would be {len(without)} categories" in benchmark
    largest = by_category.most_common(1)[0][0]
    count = sum(by_category[name] for name in {largest, "question_answering", "summarization", "dialogue_generation"})
    assert f"with {largest}, the largest of all, {count} here" in benchmark
    tested = sum(row.split == "test" for row in rows)
    assert f"It trains on {tested} of the 119 test tasks of Super-NaturalInstructions" in evaluation


def test_tasks_are_found_by_pattern_and_category(capsys):
    list_tasks.main(["--tasks=flan.anli*"])
    *rows, count = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["flan.anli_r1", "flan.anli_r2", "flan.anli_r3"] and count == "3 tasks"
    list_tasks.main(["--category=textual_entailment", "--tasks=flan.*"])
    assert all(row.split()[1] == "textual_entailment" for row in capsys.readouterr().out.splitlines()[1:-1])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tasks=flan.rt"], "no task has the name flan.rt; did you mean flan.rte"),
        (
            ["--category=summarisation"],
            r"none of these [\d,]+ tasks is of category summarisation; did you mean summari",
        ),
        (["--suite=mmul"], "mmlu"),
    ],
)
def test_what_is_not_there_is_one_line_with_the_nearest(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        list_tasks.main(flags)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_suite_lists_what_it_asks_of_what_is_there(shared, capsys):
    list_tasks.main(["--suite=opt_eval", f"--data_dir={shared / 'data'}"])
    out = capsys.readouterr().out
    assert "opt_eval.piqa" in out and out.splitlines()[-1] == "11 tasks"
