"""docs/fidelity.md: its verdicts are counted, its places exist, and its numbers are those of the catalog."""

import re
from collections import Counter

import pytest

from tasks.catalog import mixtures, review
from tasks.catalog.registry import CATALOG, catalog, listed
from tasks.suites import promptsource, validation
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "fidelity.md"
TEXT = PAGE.read_text(encoding="utf-8")
VERDICTS = ("yes", "differs", "missing")
EIGHT = ("super_natural_instructions", "promptsource", "flan", "crossfit", "exmix", "t5", "unifiedskg", "reasoning")


def rows():
    """(where, the paper, here, verdict) of every statement."""
    lines = [line for line in TEXT.splitlines() if line.count("|") == 5 and not line.startswith(("|---", "| where"))]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def test_verdicts_are_counted():
    counts = Counter(verdict.split()[0].rstrip(":") for *_, verdict in rows())
    assert set(counts) == set(VERDICTS) and sum(counts.values()) > 130
    for verdict in VERDICTS:
        assert f"| {verdict} | {counts[verdict]} |" in TEXT, f"{verdict}: {counts[verdict]} rows"


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} {row[1][:40]}")
def test_a_row_names_places_that_exist_and_a_difference_its_reason(row):
    _, statement, here, verdict = row
    assert statement and here
    for place in re.findall(r"`([\w./]+/[\w./]+)(?::(\w+))?`", here):
        path, symbol = ROOT / place[0], place[1]
        assert path.exists(), place[0]
        assert not symbol or symbol in path.read_text(encoding="utf-8"), place
    if verdict.startswith("differs"):
        assert verdict.startswith(("differs: ", "differs →")), (
            "a difference has its reason, or an arrow to differences.md"
        )
    else:
        assert verdict in VERDICTS


def test_numbers_are_those_of_the_catalog():
    every = [row for name in EIGHT for row in catalog(name).values()]
    usable = [row for row in every if row.split not in ("duplicate", "no_template")]
    assert f"have {len(every):,} rows, {sum(row.split != 'duplicate' for row in every):,} without duplicates" in TEXT
    assert f"{len(usable):,} of those with a usable template" in TEXT
    for name, sentence in (
        ("crossfit", "{all} rows, {used} used"),
        ("promptsource", "{all} template files"),
        ("exmix", "`: {used} |"),
    ):
        used = [row for row in catalog(name).values() if row.split == "train"]
        assert sentence.format(all=len(catalog(name)), used=len(used)) in TEXT
    drawn = [row for row in mixtures.mixture("opt_iml").listed() if row.benchmark in EIGHT]
    assert f"`: {len(drawn):,} of {len({row.category for row in drawn})} |" in TEXT
    assert f"the other six, {sum(row.split == 'test' for row in drawn)} tasks are trained on" in TEXT
    most = [row for row in mixtures.mixture("opt_iml_max").listed() if row.benchmark in EIGHT]
    assert f"`tasks/catalog/mixtures.py:MIXTURES`: {len(most):,} |" in TEXT and len(most) == len(usable)
    assert (
        f"column category: {len({row['category'] for row in listed(CATALOG) if row['benchmark'] in EIGHT})} |" in TEXT
    )
    assert f"`tasks/catalog/review.tsv`: {len(review.read()):,} pairs" in TEXT
    reasoning = sum(row.benchmark == "reasoning" for row in drawn)
    assert reasoning == 10 and "`tasks/catalog/review.tsv`: ten |" in TEXT
    assert (
        len(mixtures.held_out_categories()) == 9 and "`tasks/catalog/mixtures.py:held_out_categories`: nine |" in TEXT
    )
    assert sum(len(row.tasks) for row in validation.TABLE_15) == 35 and len(promptsource.TABLE_10) + 3 == 12
