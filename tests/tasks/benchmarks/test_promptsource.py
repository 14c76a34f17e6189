"""PromptSource's own templates, P3's own pairs, jinja2 as the oracle; and template files that mean harm."""

import collections
import csv
import functools
import json
import re
import warnings

import jinja2
import pytest

from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.tokenizer import join
from tasks import suites
from tasks.benchmarks import promptsource
from tasks.catalog import mixtures, registry
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import prompts
from tasks.prompting.subsampling import examples
from tests.tasks import features
from tests.tasks.benchmarks import p3

COPA = {
    "premise": "The rain fell.",
    "choice1": "The grass was wet.",
    "choice2": "The sun was hot.",
    "question": "effect",
    "label": 0,
}


@pytest.fixture(scope="module")
def templates(shared) -> dict[str, tuple[promptsource.PromptTemplate, ...]]:
    """The templates of all files, by the folder."""
    root = shared / "data" / "promptsource" / "templates"
    return {
        str(path.parent.relative_to(root)): promptsource.load(path) for path in sorted(root.rglob(promptsource.FILE))
    }


def rendered(template, row, truncate=False, number="1"):
    task = Template(template.id, Metric("rouge_l"))
    record = Record(number, {"where": "rows:1", "row": row})
    return promptsource.render("promptsource.t", {template.id: template}, truncate, record, task)


def finished(text: str, number: str = "1") -> str:
    """A text of upstream's with the delimiter that the paper puts after it."""
    return prompts.with_delimiter("promptsource.t", number, text)


def test_every_file_parses_and_counts_as_the_catalog_has_it(templates, shared):
    with (shared / "catalog" / "promptsource.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == len(templates) == 279
    original = [item for originals in templates.values() for item in originals if item.original_task]
    assert sum(map(len, templates.values())) == 2085 and len(original) == 1535
    assert sum(item.choices is not None for item in original) == 959
    catalog, reviewed = registry.catalog("promptsource"), registry.reviewed_templates("promptsource")
    assert len(catalog) == 279 and all(decision == "keep" and reason for decision, reason in reviewed.values())
    for row in rows:
        place = f"{row['dataset']}/{row['subset']}" if row["subset"] else row["dataset"]
        originals = [item for item in templates[place] if item.original_task]
        assert [len(templates[place]), len(originals)] == [int(row["n_templates"]), int(row["n_original_task"])]
        entry = catalog[registry.task_name("promptsource", place.replace("/", "__"))]
        assert entry.category == registry.slug(row["proposed_category"]) and entry.source == place
        retained = [
            item for item in templates[place] if f"{place}/{item.id}" in reviewed
        ]  # of two that the paper evaluates, and one of a figure
        assert entry.metric == (promptsource.scoring(originals or retained)[0] if originals or retained else "rouge_l")
        assert (entry.split == "no_template") == (not originals and not retained)


def test_real_rows_are_rendered_by_all_their_templates(shared):
    benchmark = registry.discover("promptsource", shared / "data", CacheOptions())
    assert len(benchmark.tasks) == 13 and not benchmark.left_out
    reasons, count = collections.Counter(), 0
    for task in benchmark.tasks.values():
        for split in task.splits:
            for record in task.read(split):
                for template in task.templates:
                    example = task.render(record, template)
                    if isinstance(example, Skipped):
                        reasons[task.name, example.reason] += 1
                    else:
                        count += 1
                        assert example.target in example.references and example.source == example.source.strip()
    # COPA: four templates ask of causes or of effects alone
    assert count == 29_716 and reasons == {("promptsource.super_glue__copa", "no target"): 400}


@functools.cache
def plain(text):
    environment = jinja2.Environment()
    environment.globals["zip"] = zip
    environment.filters["most_frequent"] = promptsource.jinja_sandbox._most_frequent
    return environment.from_string(text)


def as_upstream(template, row, truncate):
    """Applies a template like `Template.apply` of promptsource 7dab96a3, with plain jinja2; None if it fails."""
    text = template.jinja.replace("}}", " | string | truncate(2048) }}") if truncate else template.jinja
    protect = {k: v.replace("|||", promptsource.PROTECTED) if isinstance(v, str) else v for k, v in row.items()}

    def parts(text, **values):
        result = plain(text).render(**json.loads(json.dumps(protect)), **values).split("|||")
        return [part.replace(promptsource.PROTECTED, "|||").strip() for part in result]

    try:
        answers = parts(template.choices) if template.choices else None
        return parts(text, answer_choices=answers)
    except Exception:  # whatever a template does wrong
        return None


def test_rows_of_every_kind_render_as_upstream_renders_them(templates):
    """Compares all 279 files on rows made for their fields: the same text, or no example on either side."""
    fitting = compared = 0
    for group in templates.values():
        texts = [text for item in group for text in (item.jinja, item.choices) if text]
        made = list(features.rows(texts, 6))
        for item in group:
            random = promptsource.jinja_sandbox.RANDOM.search(item.jinja + (item.choices or ""))
            fits = False
            for number, row in enumerate(made):
                example = rendered(item, row, number=str(number))
                fits |= isinstance(example, Example)
                if not random:
                    compared += 1
                    expected = as_upstream(item, row, False)
                    if isinstance(example, Example):
                        assert [example.source, example.target] == [finished(expected[0], str(number)), expected[1]], (
                            item
                        )
                    elif example.reason in ("no target", "no source"):
                        assert len(expected) != 2 or not all(expected), item
                    elif "has no field" not in example.reason:  # there upstream leaves a gap in the text
                        assert expected is None, (item, example)
            fitting += fits
    assert fitting >= 1900 and compared > 10_000


def test_p3s_pairs_are_reproduced_character_for_character(templates, shared):
    """T0's own data, cut as T0 cut it. Not reproduced: templates whose rows cannot be told from their texts."""
    files = {_plain(file.stem): file for file in (shared / "data" / "promptsource" / "p3_rendered").glob("*.jsonl")}
    whole, across = [], []
    for place, group in templates.items():
        named = {item: files[name] for item in group if (name := _plain(place + item.id)) in files}
        rows = {item: [p3.row_of(item, *pair) for pair in p3.pairs(file)] for item, file in named.items()}
        published = [row for by_name in rows.values() for row in by_name if row is not None]
        for item, file in named.items():
            pairs = [(finished(prompt), target) for prompt, target in p3.pairs(file)]
            made = [rendered(item, row, truncate=True) if row else None for row in rows[item]]
            if made and all(isinstance(example, Example) for example in made):
                assert [(example.source, example.target) for example in made] == pairs, item
                whole.append(item)
                continue
            others = (rendered(item, row, truncate=True) for row in published)
            met = {example.source: example.target for example in others if isinstance(example, Example)}
            present = [(prompt, target) for prompt, target in pairs if prompt in met]
            assert all(met[prompt] == target for prompt, target in present), item
            across += [item] * bool(present)
    assert len(whole) >= 105 and len(across) >= 25


def _plain(text):
    return re.sub(r"[^a-z0-9]", "", text.lower())


# The paper's figures of PromptSource prompts: template, row and what is printed (spaces as in the typeset text)
FIGURES = {
    34: (
        "amazon_reviews_multi/en",
        {
            "product_category": "shoes",
            "review_body": "Smaller than expected",
            "review_title": "Smaller than expected",
            "stars": 3,
        },
        "Rate the product by the number of stars based on the review below: (1 being the lowest and 5 the highest) === "
        "Smaller than expected. Smaller than expected Product category: shoes answer: 3",
    ),
    27: (
        "subjqa/electronics",
        {
            "question": "How great it's the sound?",
            "context": "When hubby was at work, I would often turn on a computer radio program.",
            "answers": {"text": [], "answer_start": []},
        },
        "How great it's the sound? Answer using extracts from the following context. If you can't find an answer, "
        "return Unanswerable Context: When hubby was at work, I would often turn on a computer radio program. "
        "Answer: Unanswerable",
    ),
    28: (
        "drop",
        {
            "question": "How many punts were returned for a score?",
            "passage": "Coming off their Thanksgiving win over the Raiders.",
            "answers_spans": {"spans": ["1"]},
        },
        "Question: How many punts were returned for a score? Answer based on following passage. "
        "Coming off their Thanksgiving win over the Raiders. Answer: 1",
    ),
    33: (
        "amazon_us_reviews/Wireless_v1_00",
        {"review_body": "Really liked the case at first but it was less $", "star_rating": 3},
        "Given the following review: Really liked the case at first but it was less $ predict the associated rating "
        "from the following choices (1 being lowest and 5 being highest) - 1 - 2 - 3 - 4 - 5 answer: 3",
    ),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_the_papers_figures_are_among_the_prompts_drawn(templates, figure):
    place, row, printed = FIGURES[figure]
    drawn = set()
    for template in templates[place]:
        for number in range(60):
            example = rendered(template, row, number=str(number))
            if isinstance(example, Example):
                drawn.add(" ".join("".join(join(example.source, example.target)).split()))
    assert printed in drawn


@pytest.fixture
def folder(tmp_path):
    """A folder of one data set, "copa" by "mine", with two templates and rows of two splits."""

    def write(templates=TWO, rows=None, **more):
        directory = tmp_path / "promptsource"
        place = directory / "templates" / "mine" / "copa"
        place.mkdir(parents=True, exist_ok=True)
        place.joinpath("templates.yaml").write_bytes(templates if isinstance(templates, bytes) else templates.encode())
        data = directory / "rows" / "mine" / "copa"
        data.mkdir(parents=True, exist_ok=True)
        for split, group in {"train": rows or [COPA] * 4, **more}.items():
            (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in group))
        return tmp_path

    return write


def template(name, jinja, original="true", choices="'{{choice1}} ||| {{choice2}}'"):
    return f"""
  {name}: !Template
    answer_choices: {choices}
    id: {name}
    jinja: {json.dumps(jinja)}
    metadata: !TemplateMetadata
      metrics: [Accuracy]
      original_task: {original}
    name: {name}
    reference: ''"""


HEAD = "dataset: mine\nsubset: copa\ntemplates:"
ASK = "{{ premise }} So? ||| {{ answer_choices[label] }}"
TWO = HEAD + template("ask", ASK) + template("invert", "{{ choice1 }} ||| {{ premise }}", "false")
NAME = "promptsource.mine__copa"


def first_task(folder, **options):
    (task,) = registry.discover("promptsource", folder, CacheOptions(**options)).tasks.values()
    return task


def test_only_templates_of_the_original_task_are_taken_unless_asked(folder):
    task = first_task(folder())
    assert task.name == NAME and [group.id for group in task.templates] == ["ask"]
    assert [group.id for group in first_task(folder(), all_templates=True).templates] == ["ask", "invert"]
    (first, *_) = examples(task, "train")
    assert first.candidates == ("The grass was wet.", "The sun was hot.") and first.target == "The grass was wet."
    assert first.source.startswith("The rain fell. So?")


def test_bars_in_the_data_are_no_bars_of_the_template(folder):
    row = COPA | {"premise": "a ||| b", "choice1": "c ||| d"}
    (example, *_) = examples(first_task(folder(rows=[row])), "train")
    assert example.source.startswith("a ||| b So?") and example.target == "c ||| d" in example.candidates


def test_fields_are_cut_only_for_parity_with_t0(folder):
    row = COPA | {"premise": "word " * 1000}
    (whole, *_) = examples(first_task(folder(rows=[row])), "train")
    (cut, *_) = examples(first_task(folder(rows=[row]), t0_truncation=True), "train")
    assert len(whole.source) > 4900 and "... So?" in cut.source and len(cut.source) < 2100


def test_a_hidden_label_is_counted_and_named(folder):
    (skipped, *rest) = examples(first_task(folder(rows=[COPA | {"label": "x"}, COPA, COPA])), "train")
    assert "train.jsonl:1 by template ask" in skipped.where and len(rest) == 2


def test_a_row_without_a_field_that_the_template_reads_is_named(folder):
    row = {key: value for key, value in COPA.items() if key != "premise"}
    (skipped, *_) = examples(first_task(folder(rows=[row, COPA])), "train")
    assert skipped.reason == "the row has no field premise"


def test_evaluations_ask_by_templates_that_fit_every_row(folder, monkeypatch):
    effects = "{% if question == 'effect' %}{{ premise }} ||| {{ answer_choices[label] }}{% endif %}"
    data = folder(
        HEAD + template("ask", ASK) + template("effects", effects), validation=[COPA, COPA | {"question": "cause"}]
    )
    task = first_task(data)
    assert promptsource.applicable(task, "validation") == ("ask",)
    monkeypatch.setattr(promptsource, "SCARCE", (task.source,))
    assert promptsource.applicable(task, "validation") == ("ask", "effects")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not list(suites.suite("promptsource").parts(registry.discover("promptsource", data)))


def test_what_has_no_train_split_is_only_evaluated(folder):
    data = folder(validation=[COPA])
    (data / "promptsource" / "rows" / "mine" / "copa" / "train.jsonl").unlink()
    benchmark = registry.discover("promptsource", data)
    assert benchmark.tasks[NAME].splits == ("validation",) and not mixtures.mixture("promptsource").tasks(benchmark)


@pytest.mark.parametrize(
    "content, reason",
    [
        (HEAD.encode() + b"\n  x: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        (HEAD.encode() + b"\n  x: !Other {}", "could not determine a constructor"),
        (b"templates: [\xff", "not UTF-8 at byte 12"),
        (b"templates: [", "not YAML"),
        (b"templates: 3", "no mapping templates"),
        (b"", "no mapping templates"),
        (HEAD.encode() + b"\n  x: {name: y}", "template x has no texts name and jinja"),
        (b"a: &a {x: 1}\nb: &b\n  <<: [*a, *a, *a]\ntemplates: {}", "a merge key"),
        (b"[" * 100_000, "not YAML"),
        (b"x: " + b"y" * (5 << 20), "a template file has some thousand"),
    ],
)
def test_a_template_file_that_is_none_is_named_and_the_others_are_read(folder, content, reason):
    data = folder(content)
    good = data / "promptsource" / "templates" / "good"
    good.mkdir()
    (good / "templates.yaml").write_text(TWO)
    rows = data / "promptsource" / "rows" / "good"
    rows.mkdir()
    (rows / "train.jsonl").write_text(json.dumps(COPA) + "\n")
    benchmark = registry.discover("promptsource", data)
    (left_out,) = benchmark.left_out
    assert reason in left_out.reason and "mine/copa/templates.yaml" in left_out.where and "\n" not in left_out.reason
    assert benchmark.tasks.keys() == {"promptsource.good"}


def test_aliases_that_would_blow_up_take_no_memory(folder):
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    task = first_task(folder(bomb + TWO))
    assert len(task.templates) == 1


@pytest.mark.parametrize(
    "text", ["{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "{{ x.y ||| "]
)
def test_a_template_that_never_ends_or_is_none_is_left_out_and_named(folder, text):
    benchmark = registry.discover("promptsource", folder(HEAD + template("ask", ASK) + template("bad", text + ASK)))
    (left_out,) = benchmark.left_out
    assert left_out.where.endswith("templates.yaml#bad") and left_out.reason.startswith("template left out: ")
    assert [group.id for group in benchmark.tasks[NAME].templates] == ["ask"]
