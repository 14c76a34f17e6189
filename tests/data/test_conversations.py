"""Conversations: one document with several labels has the losses of as many documents that end with one of them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from optiml_jax.data.loader import Loader
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.settings import Data
from optiml_jax.data.store import TokenStore
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.tokenizer import Tokenizer
from tasks.benchmarks.samples import TOKENIZER
from tasks.caching import build, shard
from tasks.example import Example, Record, Template
from tasks.task import Task
from tests.stores import manifest

EOS = 2
# (context, answer) pairs of each conversation
CHATS = [
    [("User: Hi\nAssistant:", "Hello."), ("\nUser: More?\nAssistant:", "No."), ("\nUser: Bye\nAssistant:", "Bye bye.")],
    [("User: alone\nAssistant:", "Yes, alone.")],
    [("User: two\nAssistant:", "one " * 9 + "end"), ("\nUser: and\nAssistant:", "x")],
    [(f"\nUser: {'word ' * n}\nAssistant:", f"answer {n}") for n in (30, 3, 20, 2, 8)],
]


def conversation(name: str, turns: list[tuple[str, str]]) -> Example:
    source = "".join(f"{context} {answer}" for context, answer in turns[:-1]) + turns[-1][0]
    return Example(name, source, turns[-1][1], (turns[-1][1],), earlier_turns=tuple(turns[:-1]))


def task_of(rendered: dict[str, Example]) -> Task:
    def read(split):
        return (Record(name, {}) for name in rendered)

    def render(record, template, worded_as=None):
        return rendered[record.id]

    templates = (Template("own", Metric("rouge_l")),)
    return Task("chat.all", "chat", "chat", "chat", (), ("train",), templates, read, render)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER)


def write(directory: Path, tokenizer: Tokenizer, rendered: dict[str, Example], shards: int = 1) -> TokenStore:
    task = task_of(rendered)
    build.open_store(directory, tokenizer)
    partial = directory / "tasks" / task.name / ".partial"
    parts = [shard.write_shard(partial, task, number, shards, tokenizer) for number in range(shards)]
    content = shard.finish(partial, parts)
    return TokenStore(directory, manifest({task.name: len(rendered)}, content, tokenizer.fingerprint))


@pytest.fixture(scope="module", params=[1, 3])
def stores(tokenizer, tmp_path_factory, request) -> tuple[TokenStore, TokenStore]:
    """The conversations, in one or three shards; and a document for each of their labels."""
    whole = {f"c{i}": conversation(f"c{i}", turns) for i, turns in enumerate(CHATS)}
    apart = {
        f"c{i}.{end}": Example(f"c{i}.{end}", *single(turns[:end]))
        for i, turns in enumerate(CHATS)
        for end in range(1, len(turns) + 1)
    }
    directories = [tmp_path_factory.mktemp(name) for name in ("whole", "apart")]
    return write(directories[0], tokenizer, whole, request.param), write(directories[1], tokenizer, apart)


def single(turns: list[tuple[str, str]]) -> tuple[str, str, tuple[str]]:
    example = conversation("", turns)
    return example.source, example.target, (example.target,)


def predictions(store: TokenStore, **settings) -> Counter:
    """Counts (inputs of the document up to a label position, target of that position) over a pass through the store."""
    count = store.manifest.tasks[0].examples
    data = Data("m", "", **{"batch_rows": 1, "block_draws": count, "prefetch": 0, "row_length": 512} | settings)
    result: Counter = Counter()
    with Loader(store, Manifest("m", store.manifest.tasks), data, pad_id=1, eos_id=EOS) as batches:
        for _ in batches.plan(0).rows:
            arrays = {name: array[0] for name, array in next(batches).arrays.items()}
            for segment in range(1, arrays["segment_ids_BT"].max() + 1):
                here = np.flatnonzero(arrays["segment_ids_BT"] == segment)
                tokens, targets = arrays["tokens_BT"][here].tolist(), arrays["targets_BT"][here].tolist()
                for position in np.flatnonzero(arrays["label_mask_BT"][here]):
                    result[tuple(tokens[: position + 1]), targets[position]] += 1
    return result


@pytest.mark.parametrize("settings", [{}, {"leading_eos": False}, {"max_segments": 1}])
def test_a_conversation_teaches_what_its_documents_teach(stores, settings):
    whole, apart = stores
    want = predictions(apart, **settings)
    assert predictions(whole, **settings) == want and sum(want.values()) > 60
    ends = [target for (_, target), count in want.items() for _ in range(count) if target == EOS]
    assert len(ends) == sum(map(len, CHATS))
    assert whole.stats("chat.all", "train")["tokens"] < 0.6 * apart.stats("chat.all", "train")["tokens"]


def test_a_conversation_longer_than_a_row_loses_its_first_turns(stores, tokenizer):
    """In rows of 64 the last conversation keeps its last turns, whole; each label is that of a document cut there."""
    whole, _ = stores
    index = whole.index("chat.all", "train")
    long = int(np.argmax(index["length"]))
    parts = [ids.tolist() for _, ids in whole.parts("chat.all", "train", long)]
    turns = [a + b for a, b in zip(parts[::2], parts[1::2])]
    room = 64
    remaining = next(turns[start:] for start in range(len(turns)) if sum(map(len, turns[start:])) + 1 <= room)
    assert 1 < len(remaining) < len(turns)
    want: Counter = Counter()
    text = [EOS]
    for context, label in zip(parts[-2 * len(remaining) :: 2], parts[-2 * len(remaining) + 1 :: 2]):
        text += context
        for token in [*label, EOS]:
            want[tuple(text), token] += 1
            if token != EOS:
                text.append(token)
    have = predictions(whole, row_length=room)
    document = (EOS, *(token for turn in remaining for token in turn))
    mine = Counter({key: count for key, count in have.items() if key[0] == document[: len(key[0])]})
    assert mine == want


def test_an_answer_longer_than_a_row_is_cut_as_any_example(tokenizer, tmp_path):
    turns = [("User: a\nAssistant:", "b"), ("\nUser: " + "long " * 40 + "\nAssistant:", "c d")]
    store = write(tmp_path, tokenizer, {"c": conversation("c", turns)})
    have = predictions(store, row_length=16)
    assert sum(have.values()) == len(tokenizer.encode(" c d")) + 1


def test_parts_are_read_as_written(stores, tokenizer):
    whole, _ = stores
    order = [whole.example_id("chat.all", "train", i) for i in range(len(CHATS))]
    assert sorted(order) == [f"c{i}" for i in range(len(CHATS))]
    for i, name in enumerate(order):
        texts = [tokenizer.decode(ids) for _, ids in whole.parts("chat.all", "train", i)]
        assert texts == [text for context, answer in CHATS[int(name[1:])] for text in (context, f" {answer}")]
    counts = whole.stats("chat.all", "train")
    labels = sum(len(tokenizer.encode(f" {answer}")) for turns in CHATS for _, answer in turns)
    assert counts["label_tokens"] == labels and counts["longest_label"] == len(tokenizer.encode(" Yes, alone."))


def test_the_start_of_the_input_is_stored_in_tokens(tokenizer, tmp_path):
    """After a definition, which may have several lines, and the line break that ends it; 0 where there is none, or
    where no token ends there."""
    definitions = {"a": "Say it.\nIn two lines.", "b": "Say it.", "c": "", "d": "Ends in white space \n"}
    rendered = {
        name: Example(name, f"{text}\nInput: {name} Output:", "x", ("x",), input_start=len(text))
        for name, text in definitions.items()
    }
    store = write(tmp_path, tokenizer, rendered)
    starts = store.input_starts("chat.all", "train").tolist()
    want = [len(tokenizer.encode(f"{definitions[name]}\n")) for name in "ab"]
    assert starts == [*want, 0, 0]
    for i, name in enumerate(definitions):
        ids, label_start = store.read("chat.all", "train", i)
        assert ids[:label_start].tolist() == tokenizer.encode(rendered[name].source)
    assert not list(store.content("chat.all").glob("*.spans"))


def test_tasks_without_instructions_or_turns_have_no_further_files(tokenizer, tmp_path):
    store = write(tmp_path, tokenizer, {"a": Example("a", "Q:", "x", ("x",))})
    assert {path.suffix for path in store.content("chat.all").iterdir()} == {".json", ".tokens", ".index", ".ids"}
    assert store.earlier_labels("chat.all", "train") is None and store.input_starts("chat.all", "train") is None
