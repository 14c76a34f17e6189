"""Makes the page of a mixture: shares, tasks, prompts, packed rows and lengths in one self-contained file."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optiml_jax.common import pages
from optiml_jax.data.block_plan import Document, plan_block
from optiml_jax.data.sampling import Sampler
from optiml_jax.data.store import SPLIT, TokenStore
from optiml_jax.evaluation.prompts.ledger import Prompt
from optiml_jax.tokenizer import join
from tools.mixture_prompts import Part, Prompts

ASSETS = Path(__file__).with_suffix("")
COLUMNS = (
    ("task", "its registered name"),
    ("benchmark", "benchmark of the task"),
    ("category", "category of the task"),
    ("examples", "to train on"),
    ("capped", "examples that count in the mixing rate (after the cap)"),
    ("natural", "share of the examples"),
    ("drawn", "share of the draws, after capping and weighting"),
    ("tokens", "tokens of all its examples"),
    ("mean length", "mean tokens per example"),
    ("epochs", "expected passes over the task in the run"),
)
GROUPS = {"benchmarks": "benchmark", "categories": "category"}
MOST_BYTES = 4_900_000  # of a page
PROMPT_CHARACTERS = 2_000_000  # of all prompts shown, or what leaves the page small enough
MOST_CHARACTERS = 6_000  # of one
ROWS = 12  # packed rows shown
BINS_PER_DOUBLING = 2


def page(
    mixture: Mapping[str, Any],
    training: Prompts,
    train_tokens: float,
    examples: int,
    ledger: Sequence[Prompt] = (),
) -> str:
    """Returns the page as HTML.

    Args:
      mixture: result of `inspect_mixture.inspect`.
      training: the prompts of a run.
      examples: training prompts per task, fewer if there are many tasks.
      ledger: the prompts of its evaluation; the page shows one per task and number of demonstrations.
    """
    store, data, tasks = training.store, training.data, mixture["tasks"]
    total = sum(task["examples"] for task in tasks)
    lines = [f"{store.directory}; expected epochs are those of a run of {train_tokens:,.0f} tokens"]
    if training.demonstrator is not None:
        lines.append(str(training.demonstrator))
    title = f"Mixture {data.mixture}"
    body = pages.header(title, lines, _figures(mixture, total))
    body += ASSETS.with_suffix(".html").read_text(encoding="utf-8")
    content = {
        "columns": COLUMNS,
        "tasks": [_row(task, total) for task in tasks],
        **{plural: _shares(mixture, plural, key, total) for plural, key in GROUPS.items()},
        "row_length": data.row_length,
        "rows": list(_rows(training, tasks)),
        "lengths": _lengths(store, tasks),
        "caps": mixture["caps"],
    }
    names, room = [task["name"] for task in tasks], PROMPT_CHARACTERS
    while True:
        prompts = [*_train_prompts(training, names, examples, room), *_evaluation_prompts(ledger, names, room)]
        text = pages.page(title, body, content | {"prompts": prompts}, ASSETS)
        if len(text.encode()) <= MOST_BYTES or room < 2 * len(names):
            return text
        room //= 2


def _figures(mixture: Mapping[str, Any], total: int) -> list[tuple[str, str]]:
    tokens = sum(task["tokens"] for task in mixture["tasks"])
    counts = {"tasks": len(mixture["tasks"]), **{plural: len(mixture[plural]) for plural in GROUPS}}
    counts |= {"examples": total, "tokens": tokens}
    return [(name, f"{count:,}") for name, count in counts.items()]


def _row(task: Mapping[str, Any], total: int) -> list:
    keys = ("name", "benchmark", "category", "examples", "capped_examples")
    shares = [task["examples"] / total, task["probability"]]
    lengths = [task["tokens"], task["tokens"] / task["examples"]]
    return [*(task[key] for key in keys), *shares, *lengths, task["expected_epochs"]]


def _shares(mixture: Mapping[str, Any], plural: str, key: str, total: int) -> list[list]:
    rows = []
    for name, share in mixture[plural].items():
        sizes = [task["examples"] for task in mixture["tasks"] if task[key] == name]
        rows.append([name, len(sizes), sum(sizes) / total, share])
    return rows


def _train_prompts(prompts: Prompts, names: Sequence[str], examples: int, room: int) -> Iterator[dict]:
    """Selects training prompts of each task, evenly spaced, in at most `room` characters."""
    room //= len(names)
    store = prompts.store
    for index, name in enumerate(names):
        count = len(store.lengths(name, SPLIT))
        shown = min(examples, count, max(1, room // 600))
        for i in (number * count // shown for number in range(shown)):
            document = prompts.document(name, i)
            parts, labels = prompts.parts(document)
            example = store.example_id(name, SPLIT, i)
            sizes = Counter()
            for kind, ids in store.parts(name, SPLIT, i):
                sizes[kind] += len(ids)
            facts = [["tokens", f"{sizes['source']:,} source + {sizes['target']:,} target"]]
            facts.append(["positions", f"{document.length:,}, {labels:,} of them labels"])
            if document.demonstrations:
                names_shown = (store.example_id(name, SPLIT, number) for number in document.demonstrations)
                facts.append(["demonstrations", ", ".join(names_shown)])
            if "/" in example:
                facts.insert(0, ["template", example.split("/", 1)[1]])
            parts = _fitted(_listed(parts), min(MOST_CHARACTERS, room // shown))
            yield {"task": index, "id": example, "facts": facts, "parts": parts}


def _listed(parts: Sequence[Part]) -> list[list]:
    """Parts as the page reads them: kind, text, and 1 if they have the loss."""
    return [[part.kind, part.text, 1] if part.learned else [part.kind, part.text] for part in parts]


def _evaluation_prompts(ledger: Sequence[Prompt], names: Sequence[str], room: int) -> Iterator[dict]:
    """Selects the first prompt of each task and number of demonstrations, in at most `room` characters."""
    indices = {name: index for index, name in enumerate(names)}
    first: dict[tuple, Prompt] = {}
    for prompt in ledger:
        first.setdefault((prompt.task, prompt.shots), prompt)
    for prompt in first.values():
        texts, end = [], 0
        for start, stop in prompt.demonstration_spans:
            texts += [["source", prompt.prompt[end:start]], ["demonstration", prompt.prompt[start:stop]]]
            end = stop
        source, target = join(prompt.prompt[end:], prompt.references[0], prompt.separator)
        texts += [["source", source], ["target", target]]
        facts = [["evaluation", f"{prompt.suite}, {prompt.shots} shots"], ["template", prompt.template]]
        if prompt.candidates:
            facts.append(["candidates", " | ".join(prompt.candidates[:20])])
        parts = _fitted([text for text in texts if text[1]], min(MOST_CHARACTERS, room // len(first)))
        yield {
            "task": indices.get(prompt.task, -1),
            "name": prompt.task,
            "id": prompt.example_id,
            "facts": facts,
            "parts": parts,
        }


def _fitted(parts: list[list[str]], room: int) -> list[list[str]]:
    """Returns the parts of a prompt; if they are too long, the longest part loses its middle."""
    excess = sum(len(part[1]) for part in parts) - room
    if excess > 0:
        longest = max(parts, key=lambda part: len(part[1]))
        length = max(80, len(longest[1]) - excess)
        text = longest[1]
        removed = len(text) - length
        if removed > 0:
            longest[1] = (
                f"{text[: length // 2]}\n[... {removed:,} characters ...]\n{text[len(text) - (length - length // 2) :]}"
            )
    return parts


def _rows(prompts: Prompts, tasks: Sequence[Mapping[str, Any]]) -> Iterator[list[dict]]:
    """Returns the first rows that a run with this seed trains on."""
    data = prompts.data
    sizes = {task["name"]: task["examples"] for task in tasks}
    rates = {task["name"]: task["probability"] for task in tasks}
    sampler = Sampler(sizes, rates, data.seed, data.block_draws)
    demonstrator = prompts.demonstrator and prompts.demonstrator.only(sampler.names)
    block = plan_block(sampler, prompts.store, data, 0, demonstrator)
    for number in range(min(ROWS, len(block.rows))):
        yield [_document(prompts, document) for document in block.documents(number)]


def _document(prompts: Prompts, document: Document) -> dict:
    parts, labels = prompts.parts(document)
    return {
        "name": document.task,
        "id": prompts.store.example_id(document.task, SPLIT, document.example),
        "length": document.length,
        "label": labels,
        "parts": _fitted(_listed(parts), 1_200),
    }


def _lengths(store: TokenStore, tasks: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, float]]:
    """Returns a histogram of token lengths: (from, share of the examples, share of the draws) of each bin."""
    edges = np.unique(np.floor(2 ** (np.arange(3 * BINS_PER_DOUBLING, 17 * BINS_PER_DOUBLING) / BINS_PER_DOUBLING)))
    everything, drawn = np.zeros(len(edges)), np.zeros(len(edges))
    for task in tasks:
        bins = np.searchsorted(edges, store.lengths(task["name"], "train"), side="right") - 1
        counts = np.bincount(np.maximum(bins, 0), minlength=len(edges))
        everything += counts
        drawn += task["probability"] * counts / counts.sum()
    last = int(np.flatnonzero(everything)[-1])
    shares = everything / everything.sum()
    return [(int(edge), float(a), float(b)) for edge, a, b in zip(edges, shares, drawn)][: last + 1]
