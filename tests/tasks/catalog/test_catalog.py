"""The catalog of every task, against the lists that it was made from."""

from collections import Counter

import pytest

from optiml_jax.evaluation.prompts.ledger import LEVELS, RANK
from tasks.catalog import mixtures
from tasks.catalog.registry import CATALOG, benchmark_names, catalog, listed, slug
from tasks.prompting.wordings import FIELD, wordings

EXTERNAL = {
    "big_bench_hard",
    "big_bench_hard_chain_of_thought",
    "raft",
    "stereotype_preference",
}  # of Table 14, at none of the levels
EVALUATIONS = {"opt_eval": 14, "mmlu": 57, "bbh": 2 * 27, "raft": 11, "bias": 3 + 4}  # never trained on
COLLECTIONS = (  # the paper's, and its pre-training text
    "crossfit",
    "dialogue",
    "exmix",
    "flan",
    "pretrain_text",
    "promptsource",
    "reasoning",
    "super_natural_instructions",
    "t5",
    "unifiedskg",
)


@pytest.mark.parametrize(
    ("benchmark", "count"),
    [
        ("super_natural_instructions", 1_613),
        ("promptsource", 279),
        ("crossfit", 160),
        ("flan", 70),
        ("unifiedskg", 21),
        ("exmix", 17),
        ("reasoning", 14),
        ("t5", 7),
        ("dialogue", 6),
        ("pretrain_text", 1),
    ],
)
def test_a_benchmark_has_all_tasks_of_its_source(benchmark, count, shared):
    assert len(catalog(benchmark)) == count
    source = shared / "catalog" / f"{benchmark}.tsv"
    if source.exists():
        rows = [row for row in listed(source) if row.get("kept_in_paper", "yes") == "yes"]
        assert len(rows) == count


def test_every_category_is_one_of_the_taxonomy_and_every_one_of_it_has_a_task(shared):
    categories = {slug(row["category"]) for row in listed(shared / "catalog" / "taxonomy.tsv")}
    used = {row["category"] for row in listed(CATALOG)}
    assert len(categories) == 104
    assert used == categories | EXTERNAL


def test_every_row_is_complete_and_named_once():
    rows, trained = listed(CATALOG), {row.name for row in mixtures.mixture("opt_iml").listed()}
    assert len({row["name"] for row in rows}) == len(rows)
    assert sum(row["benchmark"] in COLLECTIONS for row in rows) == 2_188
    assert {row["benchmark"] for row in rows} <= set(benchmark_names())
    assert Counter(row["benchmark"] for row in rows if row["benchmark"] not in COLLECTIONS) == EVALUATIONS
    for row in rows:
        assert row["name"].startswith(f"{row['benchmark']}.") and row["category"] and row["source"] and row["metric"]
        assert row["split"] in ("train", "test", "test_xlingual", "excluded", "no_template", "duplicate")
        assert row["style"] in ("task", "instance") and row["level"] in ("", *LEVELS)
        if row["split"] in ("test", "test_xlingual") and row["name"] not in trained:
            assert bool(row["level"]) != (row["category"] in EXTERNAL), f"{row['name']}: evaluated at which level?"
        assert row["reason"] or row["split"] != "duplicate", f"{row['name']}: a duplicate of what?"


def test_what_the_paper_holds_out_is_trained_on_nowhere():
    """Table 15 and sections 5.2 to 5.4. Super-NaturalInstructions' own default list trains on seven tasks of
    Stereotype Detection, and PromptSource's and FLAN's tasks follow the paper."""
    held_out = {"word_analogy", "cause_effect_classification", "grammar_error_correction", "textual_entailment"}
    held_out |= {"coreference_resolution", "dialogue_act_recognition", "stereotype_detection"}
    trained = Counter(
        row["benchmark"] for row in listed(CATALOG) if row["split"] == "train" if row["category"] in held_out
    )
    assert trained == {"super_natural_instructions": 7}


def test_a_task_of_one_wording_has_it_and_no_other_does():
    worded = {row["name"]: row for row in listed(CATALOG) if row["benchmark"] in COLLECTIONS}
    silent = ("super_natural_instructions", "promptsource", "flan", "dialogue", "pretrain_text")
    requests = {name for name, row in worded.items() if row["benchmark"] not in silent and row["split"] != "duplicate"}
    assert set(wordings()) == requests
    for name, wording in wordings().items():
        assert FIELD.search(wording.text) and wording.text == wording.text.strip(), name
        assert bool(wording.options) == (worded[name]["output_type"] == RANK), name
