"""Demonstrations: solved examples before a question, how they are chosen and where they are placed (paper 2.4)."""

import dataclasses
from collections.abc import Sequence

from optiml_jax.tokenizer import join
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import prompts
from tasks.task import Task

SEPARATOR = "\n\n\n"  # the only separator that the paper states ([SEP] of 4.8)


def choose(
    pool: Sequence[Record], task: str, record_id: str, count: int, seed: int, drawn: bool = True, exclude: bool = True
) -> tuple[Record, ...]:
    """Chooses `count` different records of the pool, uniformly, in the order drawn; never the example itself.

    A pure function of its arguments, independent of evaluation order, limits, batches and processes. The first of five
    demonstrations are those of two.

    Args:
      pool: the records that may be used as demonstrations.
      record_id: of the example.
      drawn: False takes the first ones of the pool, in the order of their authors.
      exclude: whether to exclude the record with the id of the example. In a pool of another split, that is a
        different record.

    Returns:
      `count` records, or fewer if the pool is smaller.
    """
    chosen: dict[int, Record] = {}
    excluded = record_id if exclude else None
    available = sum(record.id != excluded for record in pool)
    draws = 0
    while len(chosen) < min(count, available):
        index = prompts.draw(f"demonstration {seed} {draws}", task, record_id) % len(pool) if drawn else draws
        if pool[index].id != excluded:
            chosen.setdefault(index, pool[index])
        draws += 1
    return tuple(chosen.values())


def render(
    task: Task, record: Record, template: Template, chosen: Sequence[Record] = (), separator: str = SEPARATOR
) -> tuple[Example | Skipped, tuple[str, ...]]:
    """Renders an example with demonstrations before it; also returns the ids of those.

    Demonstrations are inserted after the instructions of the task if all examples share them, and before the example
    if each has its own. They are worded like the example. Records that do not fit the template are left out.

    Args:
      chosen: the records of the demonstrations.
      separator: after each demonstration.
    """
    question = task.render(record, template)
    if isinstance(question, Skipped) or not chosen:
        return question, ()
    rendered = [task.render(demonstration, template, record.id) for demonstration in chosen]
    solved = [example for example in rendered if isinstance(example, Example)]
    head = question.source[: question.input_start]
    if any(example.source[: example.input_start] != head for example in solved):
        head = ""
    source = f"{head}\n" if head else ""
    spans = []
    for example in solved:
        text = "".join(join(example.source[len(head) :].lstrip(), example.target, example.separator)) + separator
        spans.append((len(source), len(source) + len(text)))
        source += text
    source += question.source[len(head) :].lstrip() if solved else question.source[len(head) :]
    return dataclasses.replace(question, source=source, demonstration_spans=tuple(spans)), tuple(
        example.id for example in solved
    )
