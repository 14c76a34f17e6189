"""FLAN: patterns parsed as data, rows under their fields, splits as upstream cuts them, the paper's figures."""

import csv
import json
import re

import pytest

from optiml_jax.common.errors import DataError
from optiml_jax.data.specification import CacheOptions
from optiml_jax.tokenizer import join
from tasks import suites
from tasks.benchmarks import flan
from tasks.catalog import registry
from tasks.example import Example, Record, Skipped
from tasks.prompting.subsampling import examples
from tasks.reading.fields import UnusableError
from tasks.reading.flan_fields import RECIPES, fields_of
from tests.tasks.benchmarks.flan_rows import ROWS

JUDGE = ("{premise}\n\nIs it true that {hypothesis}?\n\n{options_}", "{answer}")
WRITE = ("Write two sentences.", "{premise} {hypothesis}")
PATTERNS = {
    "rte": [JUDGE, ("{hypothesis} because {premise}?\n{options_}", "{answer}"), WRITE],
    "sst2": [("{sentence}", "{answer}")],
}
RTE = [{"premise": f"It rained {i} times.", "hypothesis": "It is wet.", "label": i % 2} for i in range(1000)]
NAME = "flan.rte"


@pytest.fixture
def folder(tmp_path):
    """A checkout's `templates.py` and the rows of "super_glue/rte"."""

    def write(source: str | bytes | None = None, **splits):
        directory = tmp_path / "data" / "flan"
        (directory / "flan").mkdir(parents=True, exist_ok=True)
        source = f'"""Templates."""\nimport os\nPATTERNS = {PATTERNS!r}\n' if source is None else source
        (directory / "flan" / "templates.py").write_bytes(source if isinstance(source, bytes) else source.encode())
        place = directory / "rows" / "super_glue" / "rte"
        place.mkdir(parents=True, exist_ok=True)
        for split, rows in (splits or {"train": RTE, "validation": RTE[:50]}).items():
            (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "data"

    return write


def test_every_task_of_the_catalog_has_a_recipe_and_a_row():
    names = {name.removeprefix("flan.") for name in registry.catalog("flan")}
    assert names == RECIPES.keys() == ROWS.keys() and len(names) == 70


@pytest.mark.parametrize("task", ROWS)
def test_a_row_has_the_fields_that_templates_name(task):
    """Upstream's preprocessors return the same fields for these rows, except for two: see docs/differences.md."""
    row, expected = ROWS[task]
    fields = fields_of(task, row)
    assert {name: fields[name] for name in expected} == expected
    if "options" in fields:
        assert fields["answer"] in fields["options"]
        assert fields["options_"] == "OPTIONS:\n- " + "\n- ".join(fields["options"])


@pytest.mark.parametrize("task", ROWS)
def test_a_row_of_another_kind_is_refused_in_one_line(task):
    row, _ = ROWS[task]
    for broken in ({}, {name: 10**30 for name in row}, {name: None for name in row}, {name: [[]] for name in row}):
        with pytest.raises(UnusableError) as error:
            fields_of(task, broken)
        assert str(error.value) and "\n" not in str(error.value)


def test_rows_as_datasets_names_them():
    """The fields of `datasets` where they differ from those of TensorFlow Datasets."""
    choices = {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}
    rows = {
        "arc_easy": {"question": "q", "choices": choices, "answerKey": "B"},
        "openbookqa": {"question_stem": "q", "choices": choices, "answerKey": "B", "fact1": "f"},
        "bool_q": {"question": "q", "passage": "A b -- the text", "label": 1},
        "winogrande": {"sentence": "x _ y", "option1": "a", "option2": "b", "answer": "2"},
        "wmt14_enfr": {"translation": {"en": "cat", "fr": "chat"}},
        "anli_r1": {"premise": "c", "hypothesis": "h", "label": 0},
        "sentiment140": {"text": "t", "sentiment": 0},
        "trec": {"text": "t", "coarse_label": 5},
        "hellaswag": {"ctx": "c", "endings": ["a", "b", "c", "d"], "label": "1"},
    }
    answers = {task: fields_of(task, row).get("answer") for task, row in rows.items()}
    assert answers == {
        "arc_easy": "b",
        "openbookqa": "b",
        "bool_q": "yes",
        "winogrande": "b y",
        "wmt14_enfr": None,
        "anli_r1": "Yes",
        "sentiment140": "negative",
        "trec": "location",
        "hellaswag": "b",
    }
    assert fields_of("bool_q", rows["bool_q"])["title"] == "A b"


def test_pairs_that_alter_the_task_are_left_out_with_the_reason(folder):
    benchmark = registry.discover("flan", folder())
    assert [template.id for template in benchmark.tasks[NAME].templates] == ["rte_0", "rte_1"]
    (left_out,) = benchmark.left_out
    assert left_out.where.endswith("templates.py#rte_2") and "not reviewed" in left_out.reason
    everything = registry.discover("flan", folder(), CacheOptions(all_templates=True))
    assert len(everything.tasks[NAME].templates) == 3 and not everything.left_out


def test_every_candidate_of_the_catalog_is_decided_with_a_reason(shared):
    with (shared / "catalog" / "flan.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    candidates = {
        f"{row['template_key']}_{index}"
        for row in rows
        for index in row["indices_other_target"].split(",")
        if row["n_templates_other_target"] != "0"
    }
    decisions = registry.reviewed_templates("flan")
    assert decisions.keys() == candidates and len(candidates) == 97
    assert sum(decision == "keep" for decision, _ in decisions.values()) == 9  # the other direction of a translation
    assert all(reason for _, reason in decisions.values())
    keys = {flan.KEYS.get(stem, stem) for stem in ROWS}
    assert len(keys) == 61 == len({row["template_key"] for row in rows})
    catalog = registry.catalog("flan")
    assert all(catalog[f"flan.{row['task']}"].category == registry.slug(row["proposed_category"]) for row in rows)


def test_splits_are_cut_as_upstream_cuts_them(folder, monkeypatch):
    """RTE: the last 200 rows of the train split are its validation split, the original one is its test split."""
    (task,) = registry.discover("flan", folder()).tasks.values()
    ids = {split: [record.id for record in task.read(split)] for split in task.splits}
    assert ids["train"] == [str(i) for i in range(1, 801)] and ids["validation"] == [str(i) for i in range(801, 1001)]
    assert len(ids["test"]) == 50
    monkeypatch.setattr(flan, "MAX_EXAMPLES", 100)
    (task,) = registry.discover("flan", folder()).tasks.values()
    assert [record.id for record in task.read("train")] == [str(i) for i in range(1, 101)]  # the first ones
    (task,) = registry.discover("flan", folder(train=RTE[:100], validation=RTE[:50])).tasks.values()
    assert [len(list(task.read(split))) for split in ("train", "validation")] == [90, 10]
    assert task.max_examples == 100


def test_examples_have_candidates_and_references(folder):
    (task,) = registry.discover("flan", folder()).tasks.values()
    (example, *_) = examples(task, "train")
    assert example.candidates == ("yes", "no") and example.references == ("yes",)
    assert "OPTIONS:\n- yes\n- no" in example.source and len(list(examples(task, "train"))) == 800
    parts = suites.suite("flan").available(registry.discover("flan", folder()))
    assert [(part.task.name, part.split, part.shots) for part in parts] == [(NAME, "test", (0, 5))]


def test_rows_of_promptsource_serve_both(folder, shared):
    data = folder()
    (data / "promptsource").symlink_to(shared / "data" / "promptsource")
    patterns = {"copa": [("{premise} {question}\n{options_}", "{answer}")], "cb": [JUDGE], "rte": [JUDGE]}
    (data / "flan" / "flan" / "templates.py").write_text(f"PATTERNS = {patterns!r}")
    benchmark = registry.discover("flan", data)
    assert benchmark.tasks.keys() == {"flan.copa", "flan.cb", NAME}
    for task in benchmark.tasks.values():
        for split in task.splits:
            made = [task.render(record, task.templates[0]) for record in task.read(split)]
            assert made and all(isinstance(example, Example) and example.candidates for example in made)


# The paper's figures: task, pattern as its prompt shows, row, printed prompt and output
GOOD_DAY = "it's going to be a long day"
FIGURES = {
    17: (
        "cosmos_qa",
        "Read the following article and answer the question.\n\n{context}\n\n{question}\n\n{options_}",
        {
            "context": "So now I have no problems .",
            "question": "What may be an invalid reason I am feeling better now ?",
            "answer0": "I may be able to show my imagination .",
            "answer1": "I may write a lot of papers for my English class .",
            "answer2": "None of the above choices .",
            "answer3": "I may be able to save money .",
            "label": 1,
        },
        "Read the following article and answer the question. So now I have no problems . What may be an invalid reason "
        "I am feeling better now ? OPTIONS: - I may be able to show my imagination . - I may write a lot of papers for "
        "my English class . - None of the above choices . - I may be able to save money . "
        "Answer: I may write a lot of papers for my English class .",
    ),
    18: (
        "squad_v1",
        "Article: {context}\n\nNow answer this question: {question}",
        {
            "title": "Beyoncé",
            "context": "On April 4, 2008, Beyoncé married Jay Z.",
            "question": "When did Beyoncé get married?",
            "answers": {"text": ["April 4, 2008"]},
        },
        "Article: On April 4, 2008, Beyoncé married Jay Z. Now answer this question: When did Beyoncé get married? "
        "Answer: April 4, 2008",
    ),
    19: (
        "gigaword",
        "{text}\n\nWrite a brief summary in a sentence or less",
        {
            "document": "the head of the united nations nuclear watchdog expressed concern thursday .",
            "summary": "iaea chief concerned about inability to monitor iran nuclear program",
        },
        "the head of the united nations nuclear watchdog expressed concern thursday . Write a brief summary in a "
        "sentence or less Output: iaea chief concerned about inability to monitor iran nuclear program",
    ),
    22: (
        "paws_wiki",
        "Do these mean the same?\n{sentence1}\n{sentence2}\n\n{options_}",
        {"sentence1": "Hoyer toured Canada .", "sentence2": "Hoyer has been touring Canada .", "label": 0},
        "Do these mean the same? Hoyer toured Canada . Hoyer has been touring Canada . OPTIONS: - no - yes answer: no",
    ),
    23: (
        "yelp_polarity_reviews",
        "How might one describe the sentiment of this review?\n{text}\n{options_}",
        {"text": "Ran over a piece of metal. Can't beat that.", "label": 1},
        "How might one describe the sentiment of this review? Ran over a piece of metal. Can't beat that. "
        "OPTIONS: - negative - positive Output: positive",
    ),
    24: (
        "sentiment140",
        "{text}\nHow would the sentiment of this tweet be described?\n{options_}",
        {"text": GOOD_DAY, "polarity": 0},
        f"{GOOD_DAY} How would the sentiment of this tweet be described? "
        "OPTIONS: - negative - positive Output: negative",
    ),
    25: (
        "common_gen",
        "Keywords: {concepts}\n\nWhat is a sentence that includes all these keywords?",
        {
            "concepts": ["cat", "look", "mouse"],
            "target": "a cat is looking at a dead mouse he killed",
            "references": [],
        },
        "Keywords: cat, look, mouse What is a sentence that includes all these keywords? "
        "Answer: a cat is looking at a dead mouse he killed",
    ),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_the_papers_figures_are_among_the_prompts_drawn(figure):
    stem, source, row, printed = FIGURES[figure]
    target = {"gigaword": "{summary}", "common_gen": "{target}"}.get(stem, "{answer}")
    pattern = flan.Pattern("x_0", source, target)
    metric = flan.Metric(registry.catalog("flan")[f"flan.{stem}"].metric)
    drawn = set()
    for number in range(100):
        record = Record(str(number), {"where": "rows:1", "row": row})
        example = flan.render("flan.t", stem, {"x_0": pattern}, record, flan.Template("x_0", metric))
        drawn.add(" ".join("".join(join(example.source, example.target)).split()))
    assert printed in drawn


@pytest.mark.parametrize(
    "source, reason",
    [
        ("PATTERNS = {'rte': [(open('/etc/passwd').read(), '')]}", "PATTERNS is more than texts"),
        ("PATTERNS = __import__('os').environ", "PATTERNS is more than texts"),
        ("PATTERNS = {'rte': [('a', 'b')] * 10 ** 10}", "PATTERNS is more than texts"),
        ("PATTERNS = {'rte': [('a' * 10 ** 10, 'b')]}", "PATTERNS is more than texts"),
        ("PATTERNS = {'rte': ['a']}", "is no list of pairs of texts"),
        ("PATTERNS = {'rte': [('a', 'b', 'c')]}", "is no list of pairs of texts"),
        ("PATTERNS = [1]", "no dictionary PATTERNS"),
        ("OTHER = {}", "no dictionary PATTERNS"),
        ("PATTERNS = {", "templates.py:1: not Python"),
        (b"PATTERNS = {'\xff'}", "not UTF-8 at byte 13"),
        ("PATTERNS = " + "(" * 10_000, "PATTERNS is more than texts|not Python"),
        ("PATTERNS = " + "-" * 100_000 + "1", "PATTERNS is more than texts|not Python"),
        ("#" * (5 << 20), "the official file has"),
    ],
)
def test_a_templates_file_that_is_none_is_refused_by_name(folder, source, reason):
    with pytest.raises(DataError, match=reason) as error:
        registry.discover("flan", folder(source))
    assert "templates.py" in str(error.value) and "\n" not in str(error.value)


def test_nothing_in_a_templates_file_is_run(folder, tmp_path):
    trace = tmp_path / "trace"
    registry.discover("flan", folder(f"open({str(trace)!r}, 'w').write('x')\nPATTERNS = {PATTERNS!r}"))
    assert not trace.exists()


def test_what_cannot_be_rendered_is_named(folder):
    rows = [*RTE[:300], RTE[0] | {"label": -1}, {"premise": "p", "label": 0}]
    (task,) = registry.discover("flan", folder(train=rows)).tasks.values()
    skipped = [
        item for item in (task.render(record, task.templates[0]) for record in _all(task)) if isinstance(item, Skipped)
    ]
    assert [re.sub(".*train", "train", item.where) for item in skipped] == ["train.jsonl:301", "train.jsonl:302"]
    assert [item.reason for item in skipped] == ["the label -1 is none of 2 options", "the row has no field hypothesis"]


def _all(task):
    return [*task.read("train"), *task.read("validation")]
