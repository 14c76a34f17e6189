"""The report: the same numbers on the terminal, in Markdown and in HTML."""

import dataclasses
import html.parser
import io
import json
import re
import typing

import pytest

from optiml_jax.common import pages
from optiml_jax.evaluation.reports import plots, tables
from optiml_jax.evaluation.reports.files import write_reports
from optiml_jax.evaluation.reports.html import html as html_text
from optiml_jax.evaluation.reports.plain_text import Context, markdown, print_report
from optiml_jax.evaluation.scores import baselines
from optiml_jax.evaluation.scores.aggregation import results
from optiml_jax.evaluation.scores.samples import score_sample
from tests.browser import colours, dom
from tests.evaluation.example_prompts import prompt, sample

CURVE = [[10 * n, 8.0 - 0.06 * n] for n in range(101)]
MADE = {"date": "2026-01-02 03:04 UTC", "command": "python -m x --a=<b>", "configuration": "OPTConfig.layers = 4"}
CONTEXT = Context(training={"first_loss": 8.0, "last_loss": 2.0, "curve": CURVE}, provenance=MADE)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """The samples below are four a task, few enough to reckon by hand."""
    monkeypatch.setattr(baselines, "MIN_QUESTIONS", 4)


@pytest.fixture
def samples():
    ranked = [score_sample(prompt(i), "yes" if i else "no", scores=[-1.5, -1.25]) for i in range(4)]
    where = {"task": "bench.copy|<b>", "category": "copying", "level": "fully_held_out", "metric": "rouge_l"}
    generated = [
        score_sample(prompt(i, candidates=None, references=(f"word {i}",), **where), answer, truncated=cut)
        for i, (answer, cut) in enumerate(
            [("word 0", False), ("", False), ("<script>x</script>", True), ("word", False)]
        )
    ]
    return ranked + generated


@pytest.fixture
def scored(samples):
    return results(
        samples,
        {"weights": "runs/tiny", "tokenizer": "f" * 64, "bos": "</s>", "ranked_by": "sum", "code_version": "0.1.0"},
    )


def test_the_terminal_shows_the_loss_and_score_beside_majority_in_aligned_columns(scored, samples):
    printed = io.StringIO()
    print_report(scored, samples, CONTEXT, printed)
    text = printed.getvalue()
    assert "Training loss 8.000 -> 2.000 nats per label token (-75%)" in text
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines() if line}
    # the level: score, interval of its one task, floor of "yes" and chance, gain
    assert lines["Held-out instances"][-6:] == ["75.0", "–", "100.0", "-25.0", "1", "4"]
    # scores 1, 0, 0 and 2/3 ("word" of "word 3"); any reference as a constant: 1 and three times 1/2
    assert lines["copy|<b>"][3:] == ["rouge_l", "41.7", "62.5", "–", "-20.8", "4", "25.0", "25.0"]
    block = text.split("Levels of generalization\n")[1].split("\n\n")[0].splitlines()
    assert len({len(line) for line in block}) == 1  # right-aligned: every line ends in the same column


def test_the_markdown_tables_are_well_formed_and_say_how_they_were_made(scored, samples):
    text = markdown(scored, samples, CONTEXT)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)\|", row)) - 1 for row in rows]
    levels, categories, benchmarks, tasks = 8, 7, 7, 14
    assert columns == [levels] * 4 + [categories] * 4 + [benchmarks] * 3 + [tasks] * 4
    assert "copy\\|<b>" in text
    assert "- date: `2026-01-02 03:04 UTC`" in text and "```\nOPTConfig.layers = 4\n```" in text


def test_the_html_is_one_well_formed_file_that_escapes_what_models_say(tmp_path, scored, samples):
    write_reports(tmp_path, scored, samples, CONTEXT)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>x" not in text and "copy|&lt;b&gt;" in text and "--a=&lt;b&gt;" in text
    assert not re.search(r"https?:|src=|@import|url\(", text)
    assert "runs/tiny" in text

    class Parser(html.parser.HTMLParser):
        open_tags: typing.ClassVar[list[str]] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "wbr", "input"):
                self.open_tags.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    parser = Parser()
    parser.feed(text)
    parser.close()
    assert not parser.open_tags


def test_the_page_draws_its_bars_and_lets_one_look_through_the_answers(tmp_path, scored, samples):
    """Headless Chromium: the file needs nothing but itself, and what a model says stays text."""
    write_reports(tmp_path, scored, samples, CONTEXT)
    page = tmp_path / "report.html"
    pixels = colours(page, 1200, 1300)
    assert pixels.get((0x3B, 0x6F, 0xD4), 0) > 5_000 and pixels.get((0xE9, 0xED, 0xF4), 0) > 1_000
    page_content = dom(page)
    assert (
        "8 prompts" in page_content
        and "&lt;script&gt;x&lt;/script&gt;" in page_content
        and "<script>x" not in page_content
    )
    assert (
        len(re.findall("<li[ >]", page_content)) == 8 and "<h3>Prompt</h3>" in page_content
    )  # the first answer is open
    assert (
        'class="curve"' in page_content and 'class="whisker"' not in page_content
    )  # too few questions for an interval


def test_the_losses_of_training_and_validation_share_their_axes(scored, samples):
    training = CONTEXT.training | {"validation_loss": [[500, 4.0], [1000, 12.0]]}
    page = html_text(scored, samples, dataclasses.replace(CONTEXT, training=training))
    drawn = re.search(r'<svg class="plot"[^>]*><title>Loss: training \(line\), validation.*?</svg>', page, re.S)[0]
    line = [tuple(map(float, point.split(","))) for point in re.search('points="(.*?)"', drawn)[1].split()]
    circles = [tuple(map(float, xy)) for xy in re.findall('class="validated" cx="(.*?)" cy="(.*?)"', drawn)]
    assert len(circles) == 2 and circles[0][0] == line[50][0] and circles[1][0] == line[100][0]
    pixels = (line[100][1] - line[0][1]) / (8.0 - 2.0)  # per nat, downwards
    assert circles[0][1] == pytest.approx(line[0][1] + 4 * pixels, abs=0.2)
    assert circles[1][1] == pytest.approx(line[0][1] - 4 * pixels, abs=0.2)


def test_the_large_bars_have_whiskers_where_there_is_an_interval():
    row = tables.TableRow((), score=0.5, interval=(0.4, 0.7))
    with_interval, without = (
        plots.levels([("a level", each)]) for each in (row, dataclasses.replace(row, interval=None))
    )
    assert with_interval.count('class="whisker"') == 3 and 'class="whisker"' not in without


def test_a_majority_of_two_prompts_is_no_baseline(samples, monkeypatch):
    monkeypatch.setattr(baselines, "MIN_QUESTIONS", 9)
    report = results(
        samples, {"weights": "w", "tokenizer": "f" * 64, "bos": "</s>", "ranked_by": "sum", "code_version": "0"}
    )
    by_title = {table.title: table for table in tables.tables(report, samples)}
    tasks, levels = by_title["Tasks"], by_title["Levels of generalization"]
    assert {row.cells[tasks.columns.index("majority")] for row in tasks.rows} == {"–"}
    # The generated answers have no floor then, and neither has their level; the ranked ones have that of chance.
    floors = {row.cells[0]: row.cells[levels.columns.index("floor")] for row in levels.rows}
    assert floors == {"Fully held-out": "–", "Held-out instances": "50.0"}


def test_nothing_that_rounds_to_zero_has_a_minus():
    cases = [(-1e-9, "+.1f"), (-0.0004, ".3f"), (-0.06, "+.1f"), (0.0, "+.1f"), (-0.0006, ".3f")]
    assert [tables.signed(x, form) for x, form in cases] == ["+0.0", "0.000", "-0.1", "+0.0", "-0.001"]


def test_wrong_and_right_answers_take_turns_and_a_page_holds_as_many_as_it_may(scored, samples, monkeypatch):
    def shown() -> list[tuple]:
        text = re.search(r'id="data">(.*?)</script>', html_text(scored, samples))[1]
        return [(item["task"], item["score"]) for item in json.loads(text)["samples"]]

    # task by task in turn: of copying 0 (wrong), 1 (right), 0, 2/3; of the sky one wrong, then the right ones
    assert shown()[:4] == [(0, 0.0), (1, 0.0), (0, 1.0), (1, 1.0)] and len(shown()) == 8
    monkeypatch.setattr(pages, "ANSWER_BYTES", 1200)
    assert 1 <= len(shown()) < 8 and f"{len(shown())} of 8 answers" in html_text(scored, samples)


def test_overlap_with_training_and_what_a_review_took_out_are_told(samples, tmp_path):
    """Three of four contaminated prompts of the ranked task; the score of the fourth stands beside that of all."""
    for number, item in enumerate(samples):
        item["contaminated"] = number != 1 if number < 4 else None
    report = results(
        samples,
        {"weights": "runs/tiny", "tokenizer": "f" * 64, "bos": "</s>", "ranked_by": "sum", "code_version": "0.1.0"},
    )
    printed = io.StringIO()
    context = Context(dropped=["bench.sea: copies (bench.a)"])
    print_report(report, samples, context, printed)
    lines = {line.split("  ")[0]: line.split() for line in printed.getvalue().splitlines() if line}
    assert lines["sky"][-4:] == ["75.0", "100.0", "–", "–"] and lines["copy|<b>"][-4:-2] == ["–", "–"]
    write_reports(tmp_path, report, samples, context)
    for text in (printed.getvalue(), *((tmp_path / f"report.{kind}").read_text("utf-8") for kind in ("md", "html"))):
        assert "Left out: bench.sea: copies (bench.a)" in text and tables.MEANING["shared"] in text
    (level,) = tables.overlap_table(samples).rows
    assert level.cells == ("Held-out instances", "75.0", "75.0", "100.0", "4")
    leaked = [sample | {"contaminated": True} for sample in samples[:4]]
    assert tables.overlap_table(leaked).rows[0].cells[3] == "–", "there is no clean prompt to score"


def test_a_category_at_no_level_has_its_row():
    """BIG-Bench Hard counts for itself alone, and is what is looked for in the table."""
    samples = [
        score_sample(prompt(i, task="bbh.snarks", category="big_bench_hard", level=None), "yes") for i in range(4)
    ]
    report = results(
        samples, {"weights": "w", "tokenizer": "f" * 64, "bos": "</s>", "ranked_by": "sum", "code_version": "0.1.0"}
    )
    (row,) = tables.category_table(report).rows
    assert row.cells == ("big_bench_hard", "(no level)", "100.0", "–", "100.0", "+0.0", "1")
    assert report["average"] == 1.0 and "level_average" not in report["averages"]


def test_several_wordings_have_a_line_with_their_spread():
    scores = {"a": [1, 1, 1, 0], "b": [1, 0, 0, 0], "c": [1, 1, 0, 0]}
    samples = [sample(float(x), number=n, template=t) for t, group in scores.items() for n, x in enumerate(group)]
    report = results(
        samples, {"weights": "w", "tokenizer": "f" * 64, "bos": "</s>", "ranked_by": "sum", "code_version": "0"}
    )
    (row,) = tables.template_table(report).rows
    assert row.cells == ("sky", "0", "3", "50.0", "25.0", "25.0", "75.0") and sorted(row.dots) == [0.25, 0.5, 0.75]
    assert html_text(report).count('class="dot"') == 3


def test_tasks_have_a_column_for_each_number_of_demonstrations():
    samples = [
        score_sample(prompt(i, shots=k), "yes" if i < 3 - k else "no", scores=[-1.5, -1.25])
        for k in (0, 2)
        for i in range(4)
    ]
    scored = results(samples, {"weights": "w", "tokenizer": "f", "bos": "", "ranked_by": "sum", "code_version": "1"})
    table = tables.task_table(scored, samples)
    (row,) = table.rows
    cells = dict(zip(table.columns, row.cells, strict=True))
    (task,) = scored["tasks"].values()
    assert table.columns[3:6] == ("0-shot", "2-shot", "score")
    assert [cells["0-shot"], cells["2-shot"]] == [tables.per_cent(task["shots"][k]) for k in ("0", "2")]
    assert cells["0-shot"] != cells["2-shot"]
    assert not {"0-shot", "2-shot"} & {*tables.task_table(scored, short=True).columns}
