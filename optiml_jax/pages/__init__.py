"""HTML pages of one file: readable from a mail attachment in ten years, offline.

Data enter a page as JSON and its script puts them there as text, never as markup; a content security policy admits that
one script and that one style sheet, by their hashes, and nothing else.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEAD, TAIL = 600, 1400  # characters of a long text that are shown: how it opens, and what it ends with


def page(title: str, body: str, data: Mapping[str, Any], assets: Path) -> str:
    """The page as HTML.

    Args:
      body: markup, in which what came from users is escaped.
      data: JSON values, which the script finds as `data`.
      assets: path of the page's own style sheet and script, without ".css" and ".js"; they follow `base.css` and
        `base.js`, which all pages share.
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
    """JSON that cannot end the script element which holds it: without "<", and line ends that JavaScript alone has."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for sign in ("<", "\u2028", "\u2029"):
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def figures(pairs: Sequence[tuple[str, str]]) -> str:
    """Boxes of (name, number), the numbers large."""
    boxes = "".join(f"<div><b>{escape(number)}</b>{escape(name)}</div>" for name, number in pairs)
    return f'<div class="figures">{boxes}</div>'


def shortened(text: str) -> str:
    """A long text without its middle."""
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]}\n[... {len(text) - HEAD - TAIL:,} characters ...]\n{text[-TAIL:]}"
