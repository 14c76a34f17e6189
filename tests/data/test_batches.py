"""The rows of batches against rows built in plain Python, and which share of them each benchmark has."""

import numpy as np
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.data.loader import Loader
from optiml_jax.data.manifest import Manifest, TaskSize
from optiml_jax.data.settings import Data
from tests.data.memory_store import EOS, PAD, MemoryStore, make_loader, make_tasks, take


def plain_row(examples, row_length, leading_eos):
    """The layout of a training row, position by position, from the texts of the design."""
    tokens, targets, segments, positions, mask = [], [], [], [], []
    for segment, (source, target) in enumerate(examples, 1):
        room = row_length - leading_eos
        source = source[max(0, len(source) + len(target) - room) :]
        inputs = [EOS] * leading_eos + source + target
        predicted = (source + target if leading_eos else (source + target)[1:]) + [EOS]
        labels = len(target) + 1
        tokens += inputs
        targets += predicted
        segments += [segment] * len(inputs)
        positions += range(len(inputs))
        mask += ([False] * len(inputs) + [True] * labels)[-len(inputs) :]
    padding = row_length - len(tokens)
    assert padding >= 0
    return (
        tokens + [PAD] * padding,
        targets + [PAD] * padding,
        segments + [0] * padding,
        positions + [0] * padding,
        mask + [False] * padding,
    )


@pytest.mark.parametrize("leading_eos", [True, False])
@pytest.mark.parametrize("row_length", [41, 128, 700])
def test_rows_hold_the_examples_as_plain_python_lays_them_out(row_length, leading_eos):
    """41 cuts the source of most examples and all of some, since a label takes up to 40."""
    tasks = make_tasks()
    cut = 0
    for batch in take(make_loader(tasks, row_length=row_length, leading_eos=leading_eos), 20):
        arrays = batch.arrays
        assert list(arrays) == ["tokens_BT", "targets_BT", "segment_ids_BT", "positions_BT", "label_mask_BT"]
        assert [array.dtype for array in arrays.values()] == [np.int32] * 4 + [np.bool_]
        for b, row in enumerate(batch.examples):
            examples = [tasks[task][i] for task, i in row]
            expected = plain_row(examples, row_length, leading_eos)
            for array, values in zip(arrays.values(), expected):
                assert array[b].tolist() == values
            cut += sum(len(source) + len(target) + leading_eos > row_length for source, target in examples)
        assert batch.real_tokens == (arrays["segment_ids_BT"] > 0).sum()
        assert batch.local_label_tokens == arrays["label_mask_BT"].sum()
        assert batch.row_fill == batch.real_tokens / (8 * row_length)
    assert (cut > 0) == (row_length < 700)


def test_without_document_attention_a_row_is_one_document(row_length=128):
    """The same tokens, targets and labels; attention and positions run over the whole row."""
    tasks = make_tasks(longest_source=30)
    loaders = (make_loader(tasks, row_length=row_length, document_attention=way) for way in (True, False))
    for apart, together in zip(*(take(loader, 10) for loader in loaders)):
        assert apart.examples == together.examples and max(map(len, together.examples)) > 1
        real = apart.arrays["segment_ids_BT"] > 0
        for name in ("tokens_BT", "targets_BT", "label_mask_BT"):
            assert (apart.arrays[name] == together.arrays[name]).all()
        assert (together.arrays["segment_ids_BT"] == real).all()
        assert (together.arrays["positions_BT"] == np.where(real, np.arange(row_length), 0)).all()


@pytest.mark.parametrize("leading_eos", [True, False])
def test_a_share_of_the_tokens_is_that_of_the_positions_drawn(leading_eos):
    """Two short tasks and one whose examples are mostly longer than a row, at 5% and 50% of the positions."""
    tasks = {"short.a": make_tasks(1, 1)["task0"], "short.b": make_tasks(2, 1, 30, 5)["task0"]}
    rng = np.random.default_rng(3)
    tasks["text.c"] = [([], rng.integers(3, 99, int(size)).tolist()) for size in rng.integers(40, 128, 50)]
    sizes = tuple(TaskSize(name, name.split(".")[0], "c", len(examples)) for name, examples in tasks.items())
    mixture = Manifest("m", sizes, benchmarks={"short": 1.0, "text": 1.0})
    for share in (0.05, 0.5):
        data = Data("m", "", row_length=128, batch_rows=64, leading_eos=leading_eos, token_shares={"text": share})
        loader = Loader(MemoryStore(tasks), mixture, data, pad_id=PAD, eos_id=EOS)
        drawn = {name: 0 for name in tasks}
        positions = {name: 0 for name in tasks}
        for block in range(4):
            plan = loader.plan(block)
            for name in tasks:
                member = plan.tasks_n == plan.names.index(name)
                drawn[name] += int(member.sum())
                positions[name] += int(plan.lengths_n[member].sum())
        loader.close()
        assert positions["text.c"] / sum(positions.values()) == pytest.approx(share, abs=0.002)
        size = {name: len(examples) for name, examples in tasks.items()}
        assert drawn["short.a"] / drawn["short.b"] == pytest.approx(size["short.a"] / size["short.b"], rel=0.01)


@pytest.mark.parametrize(
    ("token_shares", "message"),
    [
        ({"txt": 0.1}, "token_shares: no task is in txt; did you mean text"),
        ({"text": 1.0}, "must be fractions, and leave a share"),
        ({"text": -0.1}, "must be fractions"),
        ({"text": 5}, "must be fractions"),
        ({"text": 0.1}, "token_shares: text has the proportion 0; give it another, or no share"),
        ({"text": 0.5, "short": 0.2}, "leave a share to benchmarks not named here"),
    ],
)
def test_shares_of_the_tokens_that_cannot_be_are_refused(token_shares, message):
    tasks = {"short.a": [([3], [4])], "text.c": [([], [5, 6])]}
    mixture = Manifest("m", tuple(TaskSize(name, name.split(".")[0], "c", 1) for name in tasks))
    proportions = {"short": 1.0, "text": 0.0} if "proportion 0" in message else None
    data = Data("m", "", row_length=8, batch_rows=1, token_shares=token_shares, proportions=proportions)
    with pytest.raises(UserError, match=message):
        Loader(MemoryStore(tasks), mixture, data, pad_id=PAD, eos_id=EOS)


def test_labels_are_what_follows_the_source():
    """Read back from the arrays alone: the label positions of a document predict target and `</s>`, whole."""
    tasks = make_tasks(longest_source=200)
    for batch in take(make_loader(tasks), 10):
        arrays = batch.arrays
        for b, row in enumerate(batch.examples):
            for segment, (task, i) in enumerate(row, 1):
                document = arrays["segment_ids_BT"][b] == segment
                predicted = arrays["targets_BT"][b][document & arrays["label_mask_BT"][b]]
                assert predicted.tolist() == [*tasks[task][i][1], EOS]


def test_max_segments_bounds_the_documents_of_a_row():
    batches = take(make_loader(make_tasks(longest_source=5, longest_target=3), max_segments=3), 5)
    assert max(len(row) for batch in batches for row in batch.examples) == 3
    assert max(batch.arrays["segment_ids_BT"].max() for batch in batches) == 3
