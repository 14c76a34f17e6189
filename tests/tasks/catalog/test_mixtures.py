"""The paper's own mixtures: shares, what is left out, and drawn counts."""

import csv
import dataclasses
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest

from optiml_jax import gin_cli
from optiml_jax.common.errors import UserError
from optiml_jax.data.manifest import Manifest, TaskSize, matching_names
from optiml_jax.data.sampling import Sampler, probabilities, shares, shares_text, with_token_shares
from optiml_jax.data.settings import NATURAL, Data
from optiml_jax.data.specification import CacheOptions
from optiml_jax.data.subset import selected
from optiml_jax.evaluation.prompts.ledger import LEVELS
from tasks.catalog import mixtures, registry
from tasks.catalog.registry import MissingError, catalog
from tests.tasks.prompting.wordings import write

LEAVE_OUT = CacheOptions(missing_benchmarks="leave_out")
# paper 4.3 with one part of Super-NaturalInstructions given to reasoning (4.6), 5% of all pre-training text (4.5)
SHARES = {
    "promptsource": 0.45 * 0.95,
    "super_natural_instructions": 0.24 * 0.95,
    "flan": 0.20 * 0.95,
    "pretrain_text": 0.05,
    "crossfit": 0.04 * 0.95,
    "exmix": 0.02 * 0.95,
    "t5": 0.02 * 0.95,
    "unifiedskg": 0.02 * 0.95,
    "reasoning": 0.01 * 0.95,
}


def whole(name="opt_iml", examples=9_000):
    """The mixture with all tasks of the catalog, of sizes from few to many."""
    mixture = mixtures.mixture(name)
    rows = mixture.listed()
    sizes = tuple(
        TaskSize(row.name, row.benchmark, row.category, 1 + i * examples // 99 % examples) for i, row in enumerate(rows)
    )
    return Manifest(name, sizes, mixture.eps, mixture.proportions)


def shares_of(manifest):
    return shares(probabilities(manifest), manifest.tasks)


def test_the_shares_of_opt_iml_are_those_of_the_paper():
    assert math.isclose(sum(SHARES.values()), 1.0)
    result = shares_of(whole())
    assert result.keys() == SHARES.keys()
    assert all(abs(result[name] - share) < 1e-12 for name, share in SHARES.items())


def test_opt_iml_max_trains_on_what_is_held_out_and_on_no_task_twice():
    largest, normal = whole("opt_iml_max"), whole()
    names = {task.name for task in largest.tasks}
    assert names > {task.name for task in normal.tasks} and len(names) == 2_033
    assert shares_of(largest).keys() == SHARES.keys()
    assert not names & {row.name for row in catalog("crossfit").values() if row.split == "duplicate"}


def test_opt_iml_draws_every_task_that_the_paper_does_not_evaluate():
    """Table 1 counts 1,545 tasks of 93 categories. Figures 8 and 36 show one that Super-NaturalInstructions' authors
    excluded, and one of PromptSource without a template of the original task. Of the 12 test categories of
    Super-NaturalInstructions, five have no other task to train on."""
    rows = [row for row in mixtures.mixture("opt_iml").listed() if row.benchmark != "pretrain_text"]
    names, categories = {row.name for row in rows}, {row.category for row in rows}
    assert (len(names), len(categories)) == (1_624, 92)
    assert "super_natural_instructions.task1297_qasc_question_answering" in names
    assert "promptsource.bing_coronavirus_query_set" in names
    tested = {"answerability_classification", "keyword_tagging", "overlap_extraction", "question_rewriting"}
    assert tested | {"title_generation", "data_to_text"} <= categories
    assert {row.level for row in rows} == {"", LEVELS[2]}


def test_a_million_draws_are_at_their_rates():
    manifest = whole()
    rates = probabilities(manifest)
    sampler = Sampler({task.name: task.examples for task in manifest.tasks}, rates, seed=3, block_draws=1_000_000)
    drawn = np.bincount(sampler.draw(0)[0], minlength=len(sampler.names))
    assert abs(int(drawn.sum()) - 1_000_000) <= len(sampler.names)
    assert max(abs(count - 1e6 * rates[name]) for name, count in zip(sampler.names, drawn)) <= 1
    benchmarks = {task.name: task.benchmark for task in manifest.tasks}
    by_benchmark = Counter()
    for name, count in zip(sampler.names, drawn):
        by_benchmark[benchmarks[name]] += int(count)
    assert all(abs(by_benchmark[name] / 1e6 - share) < 1e-3 for name, share in SHARES.items())


def test_the_natural_shares_are_the_papers_with_the_sizes_of_its_table_1(shared):
    """Section 4.3: by capped sizes Super-NaturalInstructions is 71% of the draws, PromptSource 18%, FLAN 5%.

    The others' tasks are of Table 1's mean sizes, all above the cap. Super-NaturalInstructions' are of its real ones: a
    third of its tasks is above the cap, so a mean says nothing.
    """
    means = {"promptsource": 12.8e6 / 280, "flan": 4.4e6 / 70, "crossfit": 7.1e6 / 159, "exmix": 0.5e6 / 14}
    means |= {"t5": 1.9e6 / 36, "unifiedskg": 0.8e6 / 21}
    with (shared / "catalog" / "super_natural_instructions.tsv").open(encoding="utf-8") as file:
        upstream = {row["task"]: int(row["n_instances_upstream"]) for row in csv.DictReader(file, delimiter="\t")}
    first = "super_natural_instructions"
    examples = {registry.task_name(first, task): count for task, count in upstream.items()}
    sizes = []
    for row in mixtures.mixture("opt_iml").listed():
        if row.benchmark in means:
            sizes.append(TaskSize(row.name, row.benchmark, row.category, int(means[row.benchmark])))
        elif row.benchmark == first:  # of a test task, the first hundred are not trained on
            sizes.append(TaskSize(row.name, first, row.category, examples[row.name] - 100 * (row.split == "test")))
    natural = Manifest("natural", tuple(sizes))
    result = shares(probabilities(natural), natural.tasks)
    paper = {first: 0.71, "promptsource": 0.18, "flan": 0.05, "crossfit": 0.02, "exmix": 0.01, "t5": 0.01}
    assert all(abs(result[name] - share) < 0.01 for name, share in paper.items()), result
    assert abs(result[first] - 0.71) < 0.005 and abs(result["promptsource"] - 0.18) < 0.005


# --- missing benchmarks


@pytest.fixture
def some(tmp_path):
    write(tmp_path / "crossfit", **{"search_qa_train.tsv": "q\ta\n", "kilt_nq_train.tsv": "q\ta\n"})
    write(tmp_path / "pretrain_text", **{"a.txt": "Some text.\n"})
    write(tmp_path / "unifiedskg", **{"dart_validation.jsonl": '{"struct_in": "a", "text_in": "", "seq_out": "b"}'})
    return tmp_path


def test_missing_benchmarks_are_refused_by_name_with_the_way_out(some):
    with pytest.raises(MissingError) as error:
        mixtures.mixture("opt_iml").discover(some, CacheOptions())
    text = str(error.value)
    assert "exmix" in text and "\n" not in text and "--missing_benchmarks=leave_out" in text
    for name in ("flan", "super_natural_instructions", "promptsource", "t5", "reasoning"):
        assert name in text
    for name in ("crossfit", "pretrain_text"):
        assert name not in text


def test_left_out_they_are_listed_and_the_others_share_what_they_had(some):
    mixture = mixtures.mixture("opt_iml")
    benchmark = mixture.discover(some, LEAVE_OUT)
    assert {task.name for task in mixture.tasks(benchmark)} == {
        "crossfit.search_qa",
        "crossfit.kilt_nq",
        "pretrain_text.documents",
    }
    assert {item.where for item in benchmark.left_out} >= {"exmix", "flan", "t5"}
    assert benchmark.coverage["flan"] == {"train": [0, 47], "test": [0, 23]}
    coverage = mixture.coverage(benchmark)  # of the tasks that it draws, which are not those of the benchmarks' lists
    assert coverage["flan"] == {"train": [0, 44]} and coverage["crossfit"] == {"train": [2, 31]}
    assert coverage["super_natural_instructions"] == {"train": [0, 1_301]}
    assert mixtures.mixture("crossfit").coverage(benchmark)["flan"] == {"train": [0, 47], "test": [0, 23]}


def test_a_benchmark_without_a_task_to_train_on_is_as_good_as_missing(some, monkeypatch):
    parts = {"crossfit": 4.0, "unifiedskg": 2.0}
    mixture = mixtures.Mixture("two", tuple(parts), parts)
    with pytest.raises(MissingError, match="no task of unifiedskg to train on"):
        mixture.discover(some, CacheOptions())
    assert {task.benchmark for task in mixture.tasks(mixture.discover(some, LEAVE_OUT))} == {"crossfit"}


def test_with_nothing_there_leaving_out_is_refused(tmp_path):
    with pytest.raises(MissingError, match="crossfit"):
        mixtures.mixture("opt_iml").discover(tmp_path, LEAVE_OUT)


# --- some of a mixture


def test_some_tasks_and_categories_share_the_draws_as_the_whole_does():
    manifest = whole()
    some = manifest.only(["flan.*", "t5.wmt*"], ["translation", "summarization"])
    assert {task.benchmark for task in some.tasks} == {"flan", "t5"} == set(some.benchmarks)
    result = shares_of(some)
    assert math.isclose(result["flan"] / result["t5"], 10) and math.isclose(sum(result.values()), 1)
    assert shares_text(some) == "shares of the draws: flan 90.91%, t5 9.09%"
    assert manifest.only(None, None) == manifest


def test_a_mixture_that_names_a_benchmark_it_lacks_is_refused_unless_some_of_it_is_asked_for():
    manifest = dataclasses.replace(whole(), benchmarks=mixtures.PROPORTIONS | {"flam": 1.0})
    with pytest.raises(UserError, match=r"opt_iml .*flam; did you mean flan"):
        probabilities(manifest.only(None, None))


def test_some_tasks_may_be_a_tuple_when_a_run_goes_on():
    settings = Data("opt_iml", "cache", tasks=("flan.*",)).order()
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("tasks", "categories", "message"),
    [
        (["flam.*"], None, r"tasks: 'flam.\*' matches no name"),
        (None, ["sumarization"], r"categories: 'sumarization' matches no category .*summarization"),
        ("flan.*", None, "must be a list"),
        ([], None, "must be a list"),
        (["t5.*"], ["word_analogy"], "matches no category"),
    ],
)
def test_a_pattern_that_fits_nothing_is_named(tasks, categories, message):
    with pytest.raises(UserError, match=message):
        whole().only(tasks, categories)


# the mixtures that section 4 compares


def test_dialogue_beside_opt_iml_is_half_a_percent_of_the_draws():
    """4.7, Table 7. The others keep their proportions to each other, and what `opt_iml` holds out stays out."""
    base, both = mixtures.mixture("opt_iml"), mixtures.mixture("opt_iml+dialogue")
    assert (both.splits, both.holds_out, both.eps) == (base.splits, base.holds_out, base.eps)
    assert both.benchmarks == (*base.benchmarks, "dialogue")
    total = math.fsum(both.proportions.values())
    assert abs(both.proportions["dialogue"] / total - 0.005) < 1e-12
    for name, share in base.proportions.items():
        assert abs(both.proportions[name] / total - 0.995 * share / 100) < 1e-12
    names = {row.name for row in both.listed()}
    assert {row.name for row in base.listed()} < names and sum(name.startswith("dialogue.") for name in names) == 6
    with_own_data = mixtures.mixture("opt_iml+jsonl").proportions
    assert abs(with_own_data["jsonl"] / math.fsum(with_own_data.values()) - 0.01) < 1e-12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("opt_iml+flan", "flan is twice in it"),
        ("jsonl+opt_iml", "opt_iml must be its first part"),
        ("opt_iml+dialog", "did you mean dialogue"),
        ("flan+flan", "flan is twice in it"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        mixtures.mixture(name)


def by_hand(manifest, proportions, eps=4096):
    """min(N, EPS) within a benchmark, stated shares across; None: min(N, EPS) over everything."""
    rates = {}
    for task in manifest.tasks:
        inside = [other for other in manifest.tasks if proportions is None or other.benchmark == task.benchmark]
        within = min(task.examples, eps) / sum(min(other.examples, eps) for other in inside)
        share = 1 if proportions is None else proportions[task.benchmark] / sum(proportions.values())
        rates[task.name] = share * within
    return rates


INSTRUCTIONS = ("crossfit", "exmix", "flan", "super_natural_instructions", "promptsource", "t5", "unifiedskg")
TABLE_5 = (
    "2/1/35/25/34/1/2",
    "3/3/35/25/25/7/2",
    "2/1/27/40/27/1/2",
    "3/3/25/25/35/7/2",
    "4/2/35/25/30/2/2",
    "4/2/20/25/45/2/2",
    "2/1/35/25/30/5/2",
    "7/1/35/25/28/2/2",
    "0/0/35/30/35/0/0",
)


def few(per_benchmark=3, benchmarks=None):
    """A mixture of all benchmarks of `opt_iml` with few tasks of each, of sizes around the cap."""
    benchmarks = benchmarks or mixtures.PROPORTIONS
    rng = np.random.default_rng(5)
    tasks = [
        TaskSize(f"{benchmark}.task{i}", benchmark, f"c{i}", int(rng.integers(50, 30_000)))
        for benchmark in benchmarks
        for i in range(per_benchmark)
    ]
    coverage = {benchmark: {"train": [per_benchmark, per_benchmark]} for benchmark in benchmarks}
    return Manifest("m", tuple(tasks), benchmarks={name: benchmarks[name] for name in benchmarks}, coverage=coverage)


@pytest.mark.parametrize("eps", [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 10**6])
def test_natural_rates_are_those_of_the_capped_sizes(eps):
    """Table 4 and the first row of Table 5, with what the mixture holds out held out."""
    manifest = few()
    rates, expected = probabilities(manifest, eps, NATURAL), by_hand(manifest, None, eps)
    assert max(abs(rates[name] - rate) for name, rate in expected.items()) < 1e-12
    assert abs(math.fsum(rates.values()) - 1) < 1e-12


@pytest.mark.parametrize("row", TABLE_5)
def test_rows_of_table_5_are_a_setting(row):
    shares = dict(zip(INSTRUCTIONS, map(float, row.split("/")))) | {"reasoning": 0.0, "pretrain_text": 0.0}
    manifest = few()
    rates, expected = probabilities(manifest, None, shares), by_hand(manifest, shares)
    assert max(abs(rates[name] - rate) for name, rate in expected.items()) < 1e-12
    assert (
        abs(
            math.fsum(r for name, r in rates.items() if name.startswith("flan."))
            - shares["flan"] / sum(shares.values())
        )
        < 1e-12
    )
    only = dataclasses.replace(manifest, tasks=tuple(task for task in manifest.tasks if task.benchmark != "flan"))
    without = probabilities(only, None, shares)  # the share of what is left out goes to the others
    assert abs(math.fsum(without.values()) - 1) < 1e-12 and not any(name.startswith("flan") for name in without)


@pytest.mark.parametrize("percent", [0, 1, 2, 4])
def test_reasoning_comes_out_of_super_natural_instructions(percent):
    """4.6: 2/1/27/40/27/1/2, of which reasoning takes its share from the 40."""
    shares = {"crossfit": 2, "exmix": 1, "flan": 27, "super_natural_instructions": 40 - percent, "promptsource": 27}
    shares |= {"t5": 1, "unifiedskg": 2, "reasoning": percent, "pretrain_text": 0}
    rates = probabilities(few(), None, shares)
    reasoning = math.fsum(rate for name, rate in rates.items() if name.startswith("reasoning."))
    assert abs(reasoning - percent / 100) < 1e-12


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.1, 0.5])
def test_pretraining_text_has_a_share_of_the_updates(share):
    """Figure 4: 0 to 50% of the positions, by hand from mean lengths of 2,000 and 300 tokens."""
    manifest = few()
    positions = {task.name: 2000.0 if task.benchmark == "pretrain_text" else 300.0 for task in manifest.tasks}
    rates = with_token_shares(probabilities(manifest), manifest.tasks, positions, {"pretrain_text": share})
    drawn = math.fsum(rate for name, rate in rates.items() if name.startswith("pretrain_text."))
    assert abs(drawn - (share / 2000) / (share / 2000 + (1 - share) / 300)) < 1e-9


# subsets (4.4)


def listed():
    """`opt_iml` as the catalog lists it, without text and reasoning chains."""
    rows = [row for row in mixtures.mixture("opt_iml").listed() if row.benchmark in INSTRUCTIONS]
    tasks = tuple(TaskSize(row.name, row.benchmark, row.category, 100) for row in rows)
    return Manifest("opt_iml", tasks, benchmarks={name: mixtures.PROPORTIONS[name] for name in INSTRUCTIONS})


@pytest.fixture(scope="module")
def always():
    settings = gin_cli.read_settings(["--gin_file=train.gin", "--gin_file=models/opt_125m.gin"], "tests")["data"]
    return {"always_tasks": settings.always_tasks, "always_categories": settings.always_categories}


def test_what_is_always_selected_is_what_the_paper_evaluates_fully_supervised(always):
    supervised = [row for row in registry.listed(registry.CATALOG) if row["level"] == LEVELS[2]]
    assert sorted(always["always_tasks"]) == sorted(row["name"] for row in supervised)
    validation = {
        row["category"] for row in supervised if row["benchmark"] != "unifiedskg"
    }  # Spider is in the test set
    assert sorted(always["always_categories"]) == sorted(validation)


def test_random_sets_of_tasks_are_nested_and_hold_the_supervised_ones(always):
    """Table 16: 16, 64, 256 and 1,024 tasks."""
    manifest, sets = listed(), []
    for count in (16, 64, 256, 1024):
        chosen = selected(manifest, Data("opt_iml", "", scale_tasks=count, **always))
        sets.append({task.name for task in chosen.tasks})
        assert len(sets[-1]) == count and set(always["always_tasks"]) <= sets[-1]
        assert set(chosen.benchmarks) == {task.benchmark for task in chosen.tasks}
        assert abs(math.fsum(probabilities(chosen).values()) - 1) < 1e-12
    assert all(small < large for small, large in itertools.pairwise(sets))
    other = {task.name for task in selected(manifest, Data("opt_iml", "", seed=2, scale_tasks=64, **always)).tasks}
    assert len(other) == 64 and len(other & sets[1]) < 20
    by_benchmark = Counter(name.split(".")[0] for name in sets[3] - set(always["always_tasks"]))
    everything = Counter(task.benchmark for task in manifest.tasks)
    for name, size in everything.items():  # each task is as likely as any other
        assert abs(by_benchmark[name] - 1019 * size / len(manifest.tasks)) < 4 * math.sqrt(size) + 1


def test_the_largest_categories_with_those_of_the_supervised_tasks(always):
    """Table 17: 4, 16 and 64 categories. The paper counts 673 tasks in the first four, which are then those three and
    translation: 675 here."""
    manifest, sets = listed(), []
    for count in (4, 16, 64):
        chosen = selected(manifest, Data("opt_iml", "", scale_categories=count, **always))
        sets.append({task.category for task in chosen.tasks})
        assert len(sets[-1]) == count and set(always["always_categories"]) <= sets[-1]
        if count == 4:
            assert sets[0] == {*always["always_categories"], "translation"} and len(chosen.tasks) == 675
    assert all(small < large for small, large in itertools.pairwise(sets))
    sizes = Counter(task.category for task in manifest.tasks)
    assert min(sizes[name] for name in sets[2] - set(always["always_categories"])) >= max(
        size for name, size in sizes.items() if name not in sets[2]
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_tasks": 5000}, r"SCALE_TASKS is 5000: the mixture has 1614 tasks"),
        ({"scale_tasks": 3}, r"SCALE_TASKS is 3: 5 tasks are always selected"),
        ({"scale_categories": 93}, r"SCALE_CATEGORIES is 93: the mixture has 91 categories"),
        ({"scale_tasks": 0}, "scale_tasks is 0"),
    ],
)
def test_subsets_that_cannot_be_are_refused(fields, message, always):
    with pytest.raises(UserError, match=message):
        selected(listed(), Data("opt_iml", "", **fields, **always))


def test_tasks_may_be_named_without_their_benchmark():
    names = ["flan.copa", "t5.copa", "flan.copa.b", "copa.x"]
    assert matching_names("flan.copa", names) == ["flan.copa"]
    assert matching_names("copa", names) == ["flan.copa", "t5.copa"]
    assert matching_names("copa*", names) == ["copa.x"]  # a whole name comes first
    assert matching_names("copa.?", names[:3]) == ["flan.copa.b"]
    assert matching_names("cop", names) == []
