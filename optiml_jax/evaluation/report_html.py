"""report.html: one file without scripts or outside resources, readable from a mail attachment in ten years."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from optiml_jax.evaluation import report
from optiml_jax.evaluation.samples import scored

SHOWN = 3  # right and wrong answers a task; one of each where many tasks would make a huge page
MANY_TASKS = 200
SHORT = 20  # characters of a text that is kept on one line
HEAD, TAIL = 600, 1400  # characters of a long prompt that are shown: how it opens, and what was asked last

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --dim: #667085; --line: #e4e7ec; --page: #fff; --soft: #f6f7f9;
  --score: #3b6fd4; --track: #e9edf4; --right: #18794e; --wrong: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --dim: #98a2b3; --line: #2f3541; --page: #14171d;
  --soft: #1c212a; --score: #6c9bf2; --track: #2a303b; --right: #4cc38a; --wrong: #f97066; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { margin: .2rem 0; }
.dim, th { color: var(--dim); }
.figures { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.4rem 0 0; }
.figure { background: var(--soft); border-radius: .6rem; padding: .7rem 1.1rem; }
.figure b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { font-weight: 500; font-size: .85rem; text-align: left; white-space: nowrap; }
th, td { padding: .38rem .7rem .38rem 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
th.n, td.n { text-align: right; white-space: nowrap; }
td.short { white-space: nowrap; }
td.loss { color: var(--wrong); }
td:first-child { font-weight: 500; min-width: 10rem; }
tr :last-child { padding-right: 0; }
.barcell { width: 18%; min-width: 7rem; }
.bar { position: relative; height: .7rem; background: var(--track); border-radius: .2rem; }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--score); border-radius: .2rem; }
.bar b { position: absolute; top: -.2rem; bottom: -.2rem; width: 2px; margin-left: -1px; background: var(--ink); }
details { border-bottom: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; }
summary span { float: right; color: var(--dim); font-variant-numeric: tabular-nums; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: .8rem;
  margin: .8rem 0; }
.answer { border: 1px solid var(--line); border-left: 4px solid var(--wrong); border-radius: .4rem;
  padding: .6rem .9rem; min-width: 0; overflow-wrap: anywhere; }
.answer.right { border-left-color: var(--right); }
.answer table { margin-top: .3rem; font-size: .9rem; width: auto; }
.answer td { border: 0; padding: .1rem 1rem .1rem 0; vertical-align: top; font-weight: 400; min-width: 0; }
.answer td:first-child { color: var(--dim); white-space: nowrap; }
.mark { font-weight: 600; color: var(--wrong); } .right .mark { color: var(--right); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); border-radius: .3rem; margin: .5rem 0;
  padding: .5rem .7rem; font: .84rem/1.45 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace;
  max-height: 18rem; overflow-y: auto; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
""".strip()


def _bar(row: report.Row) -> str:
    label = f"score {report.per_cent(row.score)}, majority {report.per_cent(row.majority)}"
    tick = "" if row.majority is None else f'<b style="left:{100 * row.majority:.2f}%"></b>'
    return f'<div class="bar" title="{label}"><i style="width:{100 * row.score:.2f}%"></i>{tick}</div>'


def _table(table: report.Table) -> str:
    """The table with a bar of the score, and a tick where the majority baseline stands, after the text columns."""

    def cells(tag, texts, bar):
        made = []
        for place, text in enumerate(texts):
            number, short = place >= table.text_columns, len(text) <= SHORT
            kind = f"n{' loss' if text.startswith('-') else ''}" if number else "short" if short else ""
            kind = f' class="{kind}"' if kind else ""
            text = escape(text) if short else escape(text).replace("_", "_<wbr>")  # long names may break there
            made.append(f"<{tag}{kind}>{text}</{tag}>")
        made.insert(table.text_columns, f'<{tag} class="barcell">{bar}</{tag}>')
        return "<tr>" + "".join(made) + "</tr>"

    head = cells("th", table.columns, "score &#9646;&ensp;majority |")
    body = "\n".join(cells("td", row.cells, _bar(row)) for row in table.rows)
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="scroll"><table>\n<thead>{head}</thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _shortened(text: str) -> str:
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]}\n[... {len(text) - HEAD - TAIL:,} characters ...]\n{text[-TAIL:]}"


def _answer(sample: Mapping[str, Any]) -> str:
    """One sample: the prompt, what was answered, what was wanted, and the candidates' log-probabilities."""
    rows = [("answer", sample["prediction"] or "(empty)")]
    rows += [("reference", text) for text in sample["references"][:5]]
    if sample["scores"] is not None:
        ranked = sorted(zip(sample["scores"], sample["candidates"]), key=lambda pair: -pair[0])
        rows += [(report.signed(score, ".3f"), text) for score, text in ranked[:10]]
    lines = "".join(
        f'<tr><td>{escape(name)}</td><td class="text">{escape(_shortened(text))}</td></tr>' for name, text in rows
    )
    flags = [
        name
        for name, on in (("cut at the token limit", sample["truncated"]), ("prompt cut", sample["prompt_cut"]))
        if on
    ]
    mark = "right" if sample["correct"] else "wrong" if sample["metric"]["name"] != "rouge_l" else ""
    mark = f'<span class="mark">{mark or "ROUGE-L " + report.per_cent(sample["score"])}</span>'
    where = " · ".join([sample["id"], *flags])
    return (
        f'<div class="answer{" right" if sample["correct"] else ""}">{mark} <span class="dim">{escape(where)}</span>'
        f"<pre>{escape(_shortened(sample['prompt']))}</pre><table>{lines}</table></div>"
    )


def _browser(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> str:
    """Per task a fold with the worst and the best answers; ledger order breaks ties."""
    by_task = defaultdict(list)
    for sample in scored(samples):
        by_task[sample["task"]].append(sample)
    shown = SHOWN if len(by_task) <= MANY_TASKS else 1
    folds = []
    for name, of_task in sorted(by_task.items()):
        right = sorted((s for s in of_task if s["correct"]), key=lambda s: -s["score"])[:shown]
        wrong = sorted((s for s in of_task if not s["correct"]), key=lambda s: s["score"])[:shown]
        task = results["tasks"][name]
        title = escape(report.short_name(name, task["benchmark"]))
        figures = f"{task['metric']} {report.per_cent(task['score'])}, {len(of_task):,} prompts"
        answers = "\n".join(map(_answer, wrong + right))  # what one looks for comes first
        folds.append(
            f"<details><summary>{title} <span>{figures}</span></summary>\n"
            f'<div class="answers">{answers}</div></details>'
        )
    note = (
        f"Up to {shown} wrong and {shown} right answers a task; numbers beside candidates are their log-probabilities, "
        f"{results['ranked_by'].replace('_', ' ')}."
    )
    return f'<h2>Answers</h2>\n<p class="dim">{note} All answers: samples.jsonl.</p>\n' + "\n".join(folds)


def _figures(results: Mapping[str, Any], training: Mapping[str, float] | None) -> str:
    figures = [
        (report.level_name(level), report.per_cent(entry["score"])) for level, entry in results["levels"].items()
    ]
    if len(figures) > 1:
        figures.append(("Average of the levels", report.per_cent(results["average"])))
    if training:
        loss = f"{training['first_loss']:.2f} → {training['last_loss']:.2f}"
        figures.append(("Training loss, nats per label token", loss))
    boxes = "\n".join(f'<div class="figure"><b>{number}</b>{escape(name)}</div>' for name, number in figures)
    return f'<div class="figures">\n{boxes}\n</div>'


def html(
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]] = (),
    training: Mapping[str, float] | None = None,
    coverage: Mapping[str, Any] | None = None,
    dropped: Sequence[str] = (),
) -> str:
    """The text of report.html; arguments as `report_files.write_reports`."""
    tables = (report.level_table(results), report.category_table(results), report.task_table(results, samples))
    about = report.summary(results)[0]
    covered = "\n".join(f'<p class="dim">{escape(text)}</p>' for text in report.scope(coverage, dropped, samples))
    origin = f"tokenizer {results['tokenizer'][:12]} · code {results['code_version']}"
    body = "\n".join(
        [
            "<h1>Evaluation</h1>",
            f'<p>{escape(about)}</p>\n<p class="dim">{escape(origin)}</p>',
            covered,
            _figures(results, training),
            *map(_table, tables),
            f'<p class="dim">{escape(" ".join(report.notes(tables[-1])))}</p>',
            _browser(results, samples) if samples else "",
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evaluation of {escape(results['weights'])}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
