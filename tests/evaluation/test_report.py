"""The report: the same numbers on the terminal, in Markdown and in HTML."""

import html.parser
import io
import re
import shutil
import subprocess
import typing

import pytest

from optiml_jax.evaluation import report
from optiml_jax.evaluation.aggregation import results
from optiml_jax.evaluation.report import degeneration, markdown, print_report
from optiml_jax.evaluation.report_files import write_reports
from optiml_jax.evaluation.report_html import html as html_text
from optiml_jax.evaluation.samples import score_sample
from tests.evaluation.prompts import prompt

TRAINING = {"first_loss": 8.0, "last_loss": 2.0}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """The samples below are four a task, few enough to reckon by hand."""
    monkeypatch.setattr(report, "FEW_PROMPTS", 4)


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
    return results(samples, weights="runs/tiny", tokenizer="f" * 64, bos="</s>", ranked_by="sum", code_version="0.1.0")


def test_empty_and_cut_answers_are_counted_where_answers_are_generated(samples):
    assert degeneration(samples) == {"bench.copy|<b>": {"empty": 0.25, "cut": 0.25}}


def test_the_terminal_shows_the_loss_and_score_beside_majority_in_aligned_columns(scored, samples):
    printed = io.StringIO()
    print_report(scored, samples=samples, training=TRAINING, file=printed)
    text = printed.getvalue()
    assert "Training loss 8.000 -> 2.000 nats per label token (-75%)" in text
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines() if line}
    assert lines["Held-out instances"][-5:] == ["75.0", "100.0", "-25.0", "1", "4"]
    # scores 1, 0, 0 and 2/3 ("word" of "word 3"); any reference as a constant: 1 and three times 1/2
    assert lines["copy|<b>"][3:] == ["rouge_l", "41.7", "62.5", "-20.8", "–", "4", "25.0", "25.0"]
    block = text.split("Levels of generalization\n")[1].split("\n\n")[0].splitlines()
    assert len({len(line) for line in block}) == 1  # right-aligned: every line ends in the same column


def test_the_markdown_tables_are_well_formed(scored, samples):
    text = markdown(scored, samples, TRAINING)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert len(rows) == 3 * 2 + 2 + 2 + 2 and set(columns) == {8, 7, 11}
    assert "copy\\|<b>" in text


def test_the_html_is_one_well_formed_file_that_escapes_what_models_say(tmp_path, scored, samples):
    write_reports(tmp_path, scored, samples, training=TRAINING)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;x&lt;/script&gt;" in text and "<script" not in text
    assert not re.search(r"https?:|src=|@import|url\(", text)
    assert "-1.250" in text and "runs/tiny" in text

    class Parser(html.parser.HTMLParser):
        open_tags: typing.ClassVar[list[str]] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "wbr"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    parser = Parser()
    parser.feed(text)
    parser.close()
    assert not parser.open_tags


def test_the_html_renders_in_a_browser(tmp_path, scored, samples):
    """Headless Chromium draws bars of the score's width: the file needs nothing but itself."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium")
    image = pytest.importorskip("PIL.Image")
    write_reports(tmp_path, scored, samples, training=TRAINING)
    offline = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *offline, "--window-size=1200,1000")
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    places = (f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", page.as_uri())
    subprocess.run([chromium, *options, *places], check=True, capture_output=True, timeout=120)
    with image.open(shot) as picture:
        assert picture.size == (1200, 1000)
        colours = dict((colour, count) for count, colour in picture.convert("RGB").getcolors(1 << 24))
    widths = [0.417, 0.75] * 3  # levels, categories, tasks
    blue, track = colours.get((0x3B, 0x6F, 0xD4), 0), colours.get((0xE9, 0xED, 0xF4), 0)
    assert blue / (blue + track) == pytest.approx(sum(widths) / len(widths), abs=0.05)  # ticks hide a little of each


def test_a_majority_of_two_prompts_is_no_baseline(samples, monkeypatch):
    monkeypatch.setattr(report, "FEW_PROMPTS", 5)
    found = results(samples, weights="w", tokenizer="f" * 64, bos="</s>", ranked_by="sum", code_version="0")
    for table in (report.level_table(found), report.category_table(found), report.task_table(found, samples)):
        start = table.columns.index("majority")
        assert all(row.cells[start : start + 2] == ("–", "–") and row.majority is None for row in table.rows)
    assert '<b style="left' not in html_text(found, samples)


def test_nothing_that_rounds_to_zero_has_a_minus():
    cases = [(-1e-9, "+.1f"), (-0.0004, ".3f"), (-0.06, "+.1f"), (0.0, "+.1f"), (-0.0006, ".3f")]
    assert [report.signed(x, form) for x, form in cases] == ["+0.0", "0.000", "-0.1", "+0.0", "-0.001"]


def test_wrong_answers_come_first_and_short_names_do_not_break(scored, samples):
    text = html_text(scored, samples)
    fold = text[text.index("<summary>sky") :]
    assert fold.index('class="answer"') < fold.index('class="answer right"')
    assert '<td class="short">rouge_l</td>' in text and "exact_<wbr>match" not in text
    assert "held_<wbr>" not in text.split("<h2>Answers")[0]


def test_overlap_with_training_and_what_a_review_took_out_are_told(samples, tmp_path):
    """Three of four contaminated prompts of the ranked task; the score of the fourth stands beside that of all."""
    for number, sample in enumerate(samples):
        sample["contaminated"] = number != 1 if number < 4 else None
    found = results(samples, weights="runs/tiny", tokenizer="f" * 64, bos="</s>", ranked_by="sum", code_version="0.1.0")
    printed = io.StringIO()
    print_report(found, samples=samples, dropped=["bench.sea: copies (bench.a)"], file=printed)
    lines = {line.split("  ")[0]: line.split() for line in printed.getvalue().splitlines() if line}
    assert lines["sky"][-4:] == ["75.0", "100.0", "–", "–"] and lines["copy|<b>"][-4:-2] == ["–", "–"]
    write_reports(tmp_path, found, samples, dropped=["bench.sea: copies (bench.a)"])
    for text in (printed.getvalue(), *((tmp_path / f"report.{kind}").read_text("utf-8") for kind in ("md", "html"))):
        assert "Left out: bench.sea: copies (bench.a)" in text and report.OVERLAP in text


def test_a_category_at_no_level_has_its_row():
    """BIG-Bench Hard counts for itself alone, and is what is looked for in the table."""
    samples = [
        score_sample(prompt(i, task="bbh.snarks", category="big_bench_hard", level=None), "yes") for i in range(4)
    ]
    found = results(samples, weights="w", tokenizer="f" * 64, bos="</s>", ranked_by="sum", code_version="0.1.0")
    (row,) = report.category_table(found).rows
    assert row.cells == ("big_bench_hard", "(no level)", "100.0", "100.0", "+0.0", "1") and found["average"] is None
