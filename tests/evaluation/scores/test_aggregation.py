"""Aggregation and baselines against arithmetic done by hand."""

import json
import random

import numpy as np
import pytest

from optiml_jax.common.errors import DataError
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.reports.plain_text import summary
from optiml_jax.evaluation.scores.aggregation import aggregate, results, write_results
from optiml_jax.evaluation.scores.baselines import baselines, majority
from optiml_jax.evaluation.scores.breakdown import breakdown
from optiml_jax.evaluation.scores.comparison import compare, pair
from optiml_jax.evaluation.scores.samples import score_sample
from optiml_jax.evaluation.scores.trees import AVERAGES
from tasks.catalog.registry import listed
from tests.evaluation.example_prompts import prompt, sample


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """The tasks below have a few questions, few enough to compute by hand."""
    monkeypatch.setattr("optiml_jax.evaluation.scores.baselines.MIN_QUESTIONS", 1)


def _samples(task, scores, benchmark="flan", category="qa", level="held_out_task", **more):
    where = {"task": f"{benchmark}.{task}", "benchmark": benchmark, "category": category, "level": level} | more
    return [sample(score, number=number, **where) for number, score in enumerate(scores)]


def test_every_step_of_the_chain_is_an_unweighted_mean_in_the_papers_order():
    samples = [
        *_samples("mmlu_law", [1, 1, 0, 0], group="mmlu"),  # 1/2
        *_samples("mmlu_art", [0], group="mmlu"),  # 0, and as heavy as law: mmlu 1/4
        *_samples("boolq", [1, 1], template="a", group="boolq"),  # 1
        *_samples("boolq", [0, 0, 0, 1], template="b", group="boolq"),  # 1/4, so flan.boolq is 5/8
        *_samples("boolq_7", [0, 0], benchmark="ni", group="boolq"),  # 0: boolq over benchmarks 5/16
        *_samples("piqa", [1, 1, 1, 0]),  # 3/4
        *_samples("nli", [1, 0], category="nli"),  # 1/2
        *_samples("copa", [1, 1, 0, 0, 0], category="causes", level="fully_held_out"),  # 2/5
        *_samples("later", [1], category="excluded", level=None),  # in no level
    ]
    random.Random(0).shuffle(samples)
    made = aggregate(samples)
    tasks, categories, levels = made["tasks"], made["categories"], made["levels"]
    assert tasks["flan.mmlu_law"]["score"] == 1 / 2 and tasks["flan.boolq"]["score"] == 5 / 8
    assert tasks["flan.boolq"]["examples"] == 6 and tasks["ni.boolq_7"]["benchmark"] == "ni"
    qa = (1 / 4 + 5 / 16 + 3 / 4) / 3
    assert categories["qa"]["score"] == pytest.approx(qa, abs=1e-15) and categories["qa"]["tasks"] == 5
    assert levels["held_out_task"]["score"] == pytest.approx((qa + 1 / 2) / 2, abs=1e-15)
    assert levels["held_out_task"]["categories"].keys() == {"qa", "nli"}
    assert levels["fully_held_out"]["score"] == pytest.approx(2 / 5, abs=1e-15)
    assert made["average"] == pytest.approx((2 / 5 + qa + 1 / 2) / 3, abs=1e-15)
    assert made["averages"]["level_average"]["score"] == pytest.approx((2 / 5 + (qa + 1 / 2) / 2) / 2, abs=1e-15)
    flan = ((1 / 4 + 5 / 8 + 3 / 4 + 1 / 2) / 4, 2 / 5)  # of the tasks of FLAN at two levels
    assert made["averages"]["benchmark_average"]["score"] == pytest.approx((sum(flan) + 0) / 3, abs=1e-15)
    assert list(levels) == ["fully_held_out", "held_out_task"] and categories["excluded"]["score"] == 1.0


def test_shots_stay_apart_up_to_the_category_and_are_combined_there():
    samples = [
        *_samples("a", [1, 0], shots=0),  # 1/2
        *_samples("a", [1, 1], shots=5),  # 1
        *_samples("b", [0, 0, 0, 1], shots=0),  # 1/4; never few-shot
        *_samples("c", [0], category="nli"),  # 0
    ]
    made = aggregate(samples)
    assert made["tasks"]["flan.a"]["shots"] == {"0": 0.5, "5": 1.0} and made["tasks"]["flan.a"]["score"] == 0.75
    qa = made["categories"]["qa"]
    assert qa["shots"] == {"0": 3 / 8, "5": 1.0} and qa["score"] == (3 / 8 + 1) / 2
    level = made["levels"]["held_out_task"]
    assert level["shots"] == {"0": 3 / 16, "5": 1.0} and level["score"] == ((3 / 8 + 1) / 2 + 0) / 2
    average = made["averages"]["average"]  # two columns at 0 shots, one at 5, and the mean of both
    assert average["shots"] == {"0": 3 / 16, "5": 1.0} and average["columns"] == {"0": 2, "5": 1}
    assert average["score"] == (3 / 16 + 1) / 2


def test_a_category_at_two_levels_counts_in_each_with_its_own_tasks():
    made = aggregate([*_samples("a", [1]), *_samples("b", [0], level="held_out_instances")])
    assert made["levels"]["held_out_task"]["score"] == 1.0 and made["levels"]["held_out_instances"]["score"] == 0.0
    assert made["categories"]["qa"]["score"] == made["average"] == 0.5 and made["averages"]["average"]["columns"] == {
        "0": 2
    }


def test_the_averages_that_the_paper_prints_follow_from_its_cells(shared):
    """All 91 printed averages of Tables 7 to 20 that rounding does not hide, from the cells by the aggregation
    itself."""
    tables = shared / "catalog" / "paper_tables"
    averages = [row for row in listed(tables / "averages.tsv") if row["status"] == "follows"]
    count = 0
    for row in averages:
        lines = listed(tables / f"table{row['table']}.tsv")
        (line,) = [line for line in lines if next(iter(line.values())) == row["row"]]
        cells = {
            name.removesuffix(f"_{row['shots']}"): cell for name, cell in line.items() if name.endswith(row["shots"])
        }
        del cells["average"]
        samples = []
        for column, cell in cells.items():
            if cell:  # "qa" and "qa_fully_supervised" are one category at two levels, and two columns
                category = column.removesuffix("_fully_supervised")
                level = "held_out_instances" if category != column else "held_out_task"
                where = {"task": column, "category": category, "level": level, "metric": "rouge_l"}
                samples.append(sample(float(cell) / 100, **where))
        average = aggregate(samples)["averages"]["average"]
        assert average["columns"] == {"0": int(row["n_cells"])}
        assert abs(100 * average["score"] - float(row["printed_average"])) <= 0.05 + 1e-9, row
        count += 1
    assert count == 91


def test_table_7_has_the_average_of_twelve_and_of_ten_columns(shared):
    """46.0 at 0 shots, 57.6 at 5, where summarization has no prompts; combined, their mean."""
    line = listed(shared / "catalog" / "paper_tables" / "table07.tsv")[0]
    samples = [
        sample(float(cell) / 100, task=column, category=column, metric="rouge_l", shots=int(shots.removesuffix("shot")))
        for name, cell in line.items()
        for column, _, shots in [name.rpartition("_")]
        if shots.endswith("shot") and column != "average" and cell
    ]
    average = aggregate(samples)["averages"]["average"]
    assert {shots: f"{100 * score:.1f}" for shots, score in average["shots"].items()} == {"0": "46.0", "5": "57.6"}
    assert average["columns"] == {"0": 12, "5": 10} and average["score"] == pytest.approx(
        np.mean([*average["shots"].values()])
    )


def test_prompts_of_a_task_that_disagree_are_named():
    with pytest.raises(DataError, match=r"flan\.a.*level"):
        aggregate([*_samples("a", [1], template="x"), *_samples("a", [1], template="y", level="fully_held_out")])


def test_results_have_the_documented_fields_and_the_same_bytes_in_any_order(tmp_path):
    about = {"weights": "runs/tiny", "tokenizer": "f" * 64, "bos": "</s>", "ranked_by": "sum", "code_version": "0.1.0"}
    samples = [*_samples("a", [1, 0, 1 / 3, 0.1, 0.7]), *_samples("b", [1, 0.2], category="nli")]
    texts = []
    for seed in range(5):
        random.Random(seed).shuffle(samples)
        write_results(tmp_path / "results.json", results(samples, about))
        texts.append((tmp_path / "results.json").read_text())
    assert len(set(texts)) == 1
    made = json.loads(texts[0])
    assert made.keys() == {*about, "tasks", "categories", "benchmarks", "levels", "average", "averages"}
    assert made["averages"].keys() == {*AVERAGES}
    assert made["tasks"]["flan.a"].keys() == {
        *(
            "metric",
            "score",
            "interval",
            "examples",
            "questions",
            "shots",
            "templates",
            "level",
            "category",
            "benchmark",
            "group",
            "pooled",
            "baselines",
        )
    }
    assert made["tasks"]["flan.a"]["baselines"] == {"majority": 1.0, "random": 0.5}


def test_majority_of_a_classification_task_is_the_share_of_its_most_frequent_answer():
    answers = ["yes"] * 5 + ["no"] * 3 + ["maybe"] * 2
    samples = [
        score_sample(prompt(i, references=(a,), candidates=("yes", "no", "maybe")), "no") for i, a in enumerate(answers)
    ]
    assert baselines(samples) == {"majority": 0.5, "random": pytest.approx(1 / 3)}


def test_majority_of_generated_text_tries_the_frequent_references_and_counts_every_reference():
    references = [("the cat",), ("a dog", "the cat"), ("the cat sat",), ("the cat sat",)]
    # "the cat sat": 2*2/5 = 0.8, 0.8, 1, 1; "the cat": 1, 1, 0.8, 0.8: both 0.9
    assert majority(Metric("rouge_l"), references) == pytest.approx(0.9)
    assert majority(Metric("exact_match"), references) == 0.5


def test_the_parts_of_a_question_are_one_question_of_the_ten_that_a_majority_needs(monkeypatch):
    monkeypatch.setattr("optiml_jax.evaluation.scores.baselines.MIN_QUESTIONS", 10)

    def made(questions: int, **fields) -> list[dict]:
        return [
            score_sample(prompt(f"{q}.{i}", part_of=str(q), **fields), "no") for q in range(questions) for i in (0, 1)
        ]

    for fields in ({}, {"candidates": None}):
        assert baselines(made(9, **fields))["majority"] is None and baselines(made(10, **fields))["majority"] == 1.0


def test_random_counts_every_right_candidate_and_is_unknown_without_candidates():
    two_right = score_sample(prompt(0, references=("yes", "sure"), candidates=("yes", "sure", "no", "never")), "no")
    assert baselines([two_right])["random"] == 0.5
    generated = score_sample(prompt(1, candidates=None), "no")
    assert baselines([two_right, generated])["random"] is None


def test_a_question_of_several_prompts_is_right_when_all_are():
    """MultiRC: three answers of one question, one of another; per prompt three of four are right, per question one."""
    scores = {"a": [1.0, 0.0, 1.0], "b": [1.0]}
    made = [
        sample(
            score,
            number=f"{name}{i}",
            part_of=name,
            candidates=("- [True] x", "- [False] x"),
            references=("- [True] x",),
        )
        for name, group in scores.items()
        for i, score in enumerate(group)
    ]
    (task,) = aggregate(made)["tasks"].values()
    assert task["score"] == 0.5 and task["examples"] == 4
    assert task["baselines"] == {"majority": 1.0, "random": (1 / 8 + 1 / 2) / 2}


def test_contaminated_examples_are_counted_and_scored_apart():
    made = [sample(float(i == 0), number=i, contaminated=i == 0) for i in range(4)]
    (task,) = aggregate(made)["tasks"].values()
    assert (task["score"], task["contaminated"], task["clean_score"]) == (0.25, 1, 0.0)
    (task,) = aggregate([sample(1.0, contaminated=True)])["tasks"].values()
    assert task["clean_score"] is None and task["contaminated"] == 1
    (task,) = aggregate([sample(1.0)])["tasks"].values()
    assert "contaminated" not in task  # it is not known


def test_predictions_that_are_scored_together_are_so_within_a_template():
    """Two templates of a task under macro-F1: the mean of their macro-F1, not the macro-F1 of both."""
    answers = {"one": ("no", "no", "yes", "yes"), "two": ("no", "no", "no", "no")}
    made = [
        score_sample(prompt(i, template=name, metric="macro_f1", references=(right,)), answer)
        for name, given in answers.items()
        for i, (answer, right) in enumerate(zip(given, ("no", "yes", "yes", "yes")))
    ]
    (task,) = aggregate(made)["tasks"].values()
    single, two = (2 / 3 + 4 / 5) / 2, (2 * 1 / (4 + 1) + 0) / 2
    assert task["templates"] == {"0": {"one": [pytest.approx(single), 4], "two": [pytest.approx(two), 4]}}
    assert task["score"] == pytest.approx((single + two) / 2)
    assert task["baselines"] == {"majority": pytest.approx((2 * 6 / (8 + 6) + 0) / 2), "random": None}


def test_prompts_of_a_pooled_task_weigh_alike_whatever_their_template():
    """Paper 4.1 against its Tables 10 and 11: two of three answers to one template are right, one of two to another."""
    answers = [("a", 0, 1.0), ("a", 1, 1.0), ("a", 3, 0.0), ("b", 0, 1.0), ("b", 2, 0.0)]
    made = [sample(value, number=n, template=name, pooled=True) for name, n, value in answers]
    report = results(made, {"weights": "w", "tokenizer": "t", "bos": None, "ranked_by": "sum", "code_version": "0"})
    (task,) = report["tasks"].values()
    assert task["score"] == pytest.approx(3 / 5) and report["average"] == pytest.approx(3 / 5)
    assert task["templates"]["0"] == {"a": [2 / 3, 3], "b": [0.5, 2]} and task["questions"] == 4
    assert "     60.00  weather / 0-shot / bench.sky / bench / 5 prompts of 2 templates" in breakdown(report)
    assert "the mean over the prompts of all templates in 1 task (TEMPLATES)" in "\n".join(summary(report))
    (task,) = aggregate([each | {"pooled": False} for each in made])["tasks"].values()
    assert task["score"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_an_interval_and_a_test_follow_the_pool():
    """A pooled task has the interval of its prompts with one template, clustered by question; comparing, too."""
    rng = np.random.default_rng(8)
    single = [[sample(float(rng.random() < chance), number=n) for n in range(60)] for chance in (0.4, 0.7)]
    pooled = [
        [each | {"pooled": True, "template": f"t{n % 3 if n < 30 else 0}"} for n, each in enumerate(side)]
        for side in single
    ]
    (task,), (same,) = (aggregate(side[0])["tasks"].values() for side in (pooled, single))
    assert task["interval"] == pytest.approx(same["interval"]) and task["score"] == pytest.approx(same["score"])
    first, second = (compare(pair(*side))["tasks"]["bench.sky"] for side in (pooled, single))
    assert all(first[name] == pytest.approx(second[name]) for name in ("difference", "p", "interval"))


def test_the_chain_leads_from_every_score_to_the_questions_it_comes_from():
    where = {"level": "held_out_task", "category": "nli"}
    made = [
        *(sample(1.0, number=i, task="flan.rte", benchmark="flan", group="rte", **where) for i in range(3)),
        *(sample(0.5, number=i, task="flan.rte", benchmark="flan", group="rte", template="b", **where) for i in (0, 1)),
        *(sample(0.0, number=i, task="ni.rte", benchmark="ni", group="rte", **where) for i in range(4)),
        *(sample(0.25, number=0, task="flan.cb", benchmark="flan", shots=5, **where) for _ in range(1)),
        *(sample(0.5, task="bbh.sorting", benchmark="bbh", level=None, category="bbh") for _ in range(1)),
    ]
    report = results(made, {"weights": "w", "tokenizer": "t", "bos": None, "ranked_by": "sum", "code_version": "0"})
    assert breakdown(report).splitlines() == [
        " 31.25  average, of 2 numbers of shots",
        "   37.50  0-shot, of 1 columns",
        "     37.50  held_out_task / nli",
        "   25.00  5-shot, of 1 columns",
        "     25.00  held_out_task / nli",
        " 31.25  mean of the levels, of 1 levels",
        "   31.25  held_out_task, of 1 categories",
        "     31.25  nli, of 2 numbers of shots",
        "       37.50  0-shot / rte, of 2 benchmarks",
        "         75.00  flan / flan.rte, of 2 templates",
        "           50.00  b, 2 questions",
        "          100.00  plain, 3 questions",
        "          0.00  ni / ni.rte / plain, 4 questions",
        "       25.00  5-shot / flan.cb / flan / plain, 1 questions",
        "   50.00  at no level, of 1 categories",
        "     50.00  bbh / 0-shot / bbh.sorting / plain, 1 questions",
    ]
    for entry in (*report["levels"].values(), *report["categories"].values(), *report["tasks"].values()):
        assert f"{100 * entry['score']:6.2f}  " in breakdown(report)
