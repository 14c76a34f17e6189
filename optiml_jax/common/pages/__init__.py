"""Self-contained HTML pages: one file without external resources, readable offline and as a mail attachment.

A page's data are JSON that its script inserts as text, never as markup; a content security policy allows only that
script and style sheet, by their hashes.
"""

import base64
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ANSWER_BYTES = 3_500_000  # maximum size of all answers in a page
SHORT = 20  # maximum characters of a cell that is kept on one line
HEAD, TAIL = 600, 1400  # characters shown of the start and end of a long text


def page(title: str, body: str, data: Mapping[str, Any], assets: Path) -> str:
    """Renders a page.

    Args:
      body: markup; text from users must be escaped.
      data: JSON values, available to the script as `data`.
      assets: path of the page's style sheet and script, without ".css" and ".js"; they follow the shared `base.css` and
        `base.js`.
    """
    style, script = (
        "".join(path.with_name(f"{path.name}.{kind}").read_text(encoding="utf-8") for path in (HERE / "base", assets))
        for kind in ("css", "js")
    )
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="application/json" id="data">{_encoded(data)}</script>\n<script>{script}</script>\n'
        "</body>\n</html>\n"
    )


def _encoded(data: Mapping[str, Any]) -> str:
    """JSON without characters that could end its script element or a JavaScript string."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for sign in ("<", "\u2028", "\u2029"):
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def header(title: str, lines: Iterable[str], figures: Iterable[tuple[str, str]]) -> str:
    """Renders a page's title, introductory lines, and boxes of (name, number) with large numbers."""
    about = "".join(f'<p class="dim">{escape(line)}</p>' for line in lines)
    boxes = "".join(f"<div><b>{escape(number)}</b>{escape(name)}</div>" for name, number in figures)
    return f'<header><h1>{escape(title)}</h1>{about}<div class="figures">{boxes}</div></header>\n'


def sections(named: Sequence[tuple[str, str]], before: str = "") -> str:
    """Renders sections of (name, markup), preceded by links to them and by `before`."""
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name, _ in named)
    parts = "\n".join(f'<section id="{name.lower()}">{markup}</section>' for name, markup in named)
    return f"<nav>{links}</nav>\n{before}\n{parts}"


def table(
    title: str,
    columns: Sequence[str],
    text_columns: int,
    rows: Sequence[Sequence[str]],
    bars: Sequence[str],
    bar_title: str,
    meaning: Mapping[str, str],
) -> str:
    """Renders a sortable, filterable table with a bar in each row after the text columns.

    Args:
      bars: markup of each row's bar.
      meaning: explanations of columns, shown as tooltips.
    """

    def cells(tag: str, texts: Sequence[str], bar: str) -> str:
        cells_ = []
        for index, text in enumerate(texts):
            number, short = index >= text_columns, len(text) <= SHORT
            loss = text.startswith("-") and " " not in text
            kind = f"n{' loss' if loss else ''}" if number else "short" if short else ""
            attributes = f' class="{kind}"' if kind else ""
            if tag == "th" and text in meaning:
                attributes += f' title="{escape(meaning[text])}"'
            text = escape(text) if short else escape(text).replace("_", "_<wbr>")  # long names may break there
            cells_.append(f"<{tag}{attributes}>{text}</{tag}>")
        cells_.insert(text_columns, f'<{tag} class="barcell">{bar}</{tag}>')
        return "<tr>" + "".join(cells_) + "</tr>"

    head = cells("th", columns, escape(bar_title))
    body = "\n".join(cells("td", row, bar) for row, bar in zip(rows, bars, strict=True))
    return (
        f'<h2>{escape(title)}</h2>\n<div class="scroll tall"><table class="sorted">\n<thead>{head}</thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def browser(note: str) -> str:
    """Renders the controls of the answer browser, which the script's `browseAnswers` fills."""
    return (
        f'<h2>Answers</h2><p class="dim">{escape(note)}</p><noscript><p>Answers need JavaScript.</p></noscript>'
        '<p class="pick"><select id="of-task" aria-label="task"></select>'
        '<select id="outcome" aria-label="outcome"></select>'
        '<input id="search" type="search" placeholder="Search prompts and answers"> '
        '<span id="matches" class="dim"></span></p>'
        '<div class="split"><ol id="list" class="list"></ol><div id="answer"></div></div>'
    )


def in_turns(groups: Iterable[Sequence[Iterable[Any]]]) -> list[Any]:
    """Takes JSON values from several queues in turn, group by group, until a page is full."""
    room = ANSWER_BYTES
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues) for queues in groups)
    chosen = []
    for value in itertools.chain.from_iterable(turns):
        if value is not None:
            room -= len(json.dumps(value, ensure_ascii=False).encode())
            if room < 0:
                break
            chosen.append(value)
    return chosen


def shortened(text: str) -> str:
    """Removes the middle of a long text."""
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]}\n[... {len(text) - HEAD - TAIL:,} characters ...]\n{text[-TAIL:]}"
