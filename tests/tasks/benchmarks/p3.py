"""P3's rendered pairs back to their rows, so that they can be rendered again.

A template that only puts fields between words is turned into a regular expression; what its groups find in a rendered
pair are the fields. Rows found by one template of a data set are then rendered by its other templates too.
"""

import json
import re
from pathlib import Path
from typing import Any

from jinja2 import nodes

from tasks.benchmarks.promptsource import PromptTemplate
from tasks.prompting import jinja_sandbox

Place = tuple  # of a value in a row: ("answers", "text", 0)


def pairs(file: Path) -> list[tuple[str, str]]:
    """Prompts and completions as the template gave them."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [(line["prompt"].removesuffix("\n"), line["completion"].removesuffix("<|endoftext|>")) for line in lines]


def row_of(template: PromptTemplate, prompt: str, completion: str) -> dict[str, Any] | None:
    """The row that the template made a pair of; None where that cannot be told."""
    parts = _parts(template.jinja)
    bars = [i for i, part in enumerate(parts or ()) if isinstance(part, str) and "|||" in part]
    if len(bars) != 1:
        return None
    before, after = parts[bars[0]].split("|||")
    left, right = [*parts[: bars[0]], before.rstrip()], [after.lstrip(), *parts[bars[0] + 1 :]]
    left[0] = left[0].lstrip() if isinstance(left[0], str) else left[0]
    right[-1] = right[-1].rstrip() if isinstance(right[-1], str) else right[-1]
    groups: dict[Place, str] = {}
    pattern = "".join(_pattern(part, groups) for part in (*left, "|||", *right))
    if (match := re.fullmatch(pattern, f"{prompt}|||{completion}", re.DOTALL)) is None:
        return None
    row: dict[str, Any] = {}
    try:
        for place, group in groups.items():
            value: Any = match[group]
            if place[0] == "answer_choices":
                answers = [
                    text.strip() for text in jinja_sandbox.JinjaTemplate(template.choices).render(row).split("|||")
                ]
                (_, place), value = place, answers.index(value)
                place = (place,)
            _put(row, place, value)
    except (ValueError, TypeError, AttributeError, jinja_sandbox.TemplateError):
        return None
    return row


def _parts(text: str) -> list[str | Place] | None:
    """Words and places, or None where the template does more than that."""
    parts: list[str | Place] = []
    for node in super(jinja_sandbox.Sandbox, jinja_sandbox._ENVIRONMENT)._parse(text, None, None).body:
        if not isinstance(node, nodes.Output):
            return None
        for child in node.nodes:
            part = child.data if isinstance(child, nodes.TemplateData) else _place(child)
            if part is None:
                return None
            parts.append(part)
    return parts


def _place(node: nodes.Node) -> Place | None:
    if isinstance(node, nodes.Name):
        return (node.name,)
    owner = _place(node.node) if isinstance(node, (nodes.Getattr, nodes.Getitem)) else None
    if owner is None:
        return None
    if isinstance(node, nodes.Getattr):
        return (*owner, node.attr)
    if isinstance(node.arg, nodes.Const):
        return None if owner == ("answer_choices",) else (*owner, node.arg.value)
    return (*owner, node.arg.name) if owner == ("answer_choices",) and isinstance(node.arg, nodes.Name) else None


def _pattern(part: str | Place, groups: dict[Place, str]) -> str:
    if isinstance(part, str):
        return re.escape(part)
    if part in groups:
        return f"(?P={groups[part]})"
    groups[part] = f"g{len(groups)}"
    return f"(?P<{groups[part]}>.*?)"


def _put(row: Any, place: Place, value: str) -> None:
    for key, following in zip(place, (*place[1:], None)):
        if isinstance(row, list):
            row.extend([None] * (key + 1 - len(row)))
        empty = value if following is None else [] if isinstance(following, int) else {}
        if isinstance(row, list):
            row[key] = empty if row[key] is None else row[key]
        else:
            row.setdefault(key, empty)
        row = row[key]
