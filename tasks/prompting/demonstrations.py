"""Solved examples before a question: which ones, and where they stand (paper 2.4)."""

import dataclasses
from collections.abc import Sequence

from optiml_jax.tokenizer import join
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import prompts
from tasks.task import Task

SEPARATOR = "\n\n\n"  # the only one that the paper names: [SEP] of 4.8, three line breaks


def choose(
    pool: Sequence[Record], task: str, record_id: str, count: int, seed: int, drawn: bool = True, own: bool = True
) -> tuple[Record, ...]:
    """`count` different records of the pool, uniformly, in the order drawn; never that of the example itself.

    A pure function of its arguments: order of evaluation, limits, batches and processes change nothing. The first of
    five are those of two.

    Args:
      pool: the records that may be shown.
      record_id: of the example that is asked.
      drawn: False takes the first ones of the pool, as their authors put them.
      own: whether the example may be in the pool. In one of another split a record of its name is another one.

    Returns:
      As many as asked for, or as there are.
    """
    chosen: dict[int, Record] = {}
    itself = record_id if own else None
    left = sum(record.id != itself for record in pool)
    draws = 0
    while len(chosen) < min(count, left):
        place = prompts.draw(f"demonstration {seed} {draws}", task, record_id) % len(pool) if drawn else draws
        if pool[place].id != itself:
            chosen.setdefault(place, pool[place])
        draws += 1
    return tuple(chosen.values())


def render(
    task: Task, record: Record, template: Template, shown: Sequence[Record] = (), separator: str = SEPARATOR
) -> tuple[Example | Skipped, tuple[str, ...]]:
    """An example with others, solved, before it, and the ids of those.

    They come after the instructions of the task where it has some and all share them, before the example where each
    brings its own. They are worded as the example is. One that the template does not fit is left out.

    Args:
      separator: after each demonstration.
    """
    question = task.render(record, template)
    if isinstance(question, Skipped) or not shown:
        return question, ()
    solved = [task.render(one, template, record.id) for one in shown]
    solved = [one for one in solved if isinstance(one, Example)]
    head = question.source[: question.own]
    if any(one.source[: one.own] != head for one in solved):
        head = ""
    source = f"{head}\n" if head else ""
    spans = []
    for one in solved:
        text = "".join(join(one.source[len(head) :].lstrip(), one.target, one.separator)) + separator
        spans.append((len(source), len(source) + len(text)))
        source += text
    source += question.source[len(head) :].lstrip() if solved else question.source[len(head) :]
    return dataclasses.replace(question, source=source, shown=tuple(spans)), tuple(one.id for one in solved)
