"""Batches against rows built in plain Python, and their stream against itself: resumed, ahead."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.data.loader import Loader
from optiml_jax.data.manifest import Manifest, TaskSize
from optiml_jax.data.settings import Data
from optiml_jax.data.store import TokenStore
from tests.stores import manifest, write_content

PAD, EOS = 1, 2
FINGERPRINT = "f" * 64


class MemoryStore:
    """A token store of {task: [(source, target), ...]} held in memory."""

    tokenizer_fingerprint = FINGERPRINT

    def __init__(self, tasks):
        self.tasks = tasks

    def stats(self, task, split):
        labels = [len(target) for _, target in self.tasks[task]]
        longest = (
            {"longest_label": max(labels), "longest_label_example": f"{task}-{np.argmax(labels)}"} if labels else {}
        )
        return {"examples": len(labels)} | longest

    def check(self):
        pass

    def earlier_labels(self, task, split):
        return None

    def chunk_flags(self, task, split):
        return None

    def lengths(self, task, split):
        return np.array([len(source) + len(target) for source, target in self.tasks[task]], np.uint32)

    def read(self, task, split, i):
        source, target = self.tasks[task][i]
        return np.array(source + target, np.uint16), len(source)

    def read_many(self, split, examples):
        return [self.read(task, split, i) for task, i in examples]


def make_tasks(seed=0, tasks=12, longest_source=300, longest_target=40):
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return rng.integers(3, 60_000, rng.integers(low, high)).tolist()

    return {
        f"task{i}": [(ids(0, longest_source), ids(1, longest_target)) for _ in range(rng.integers(1, 150))]
        for i in range(tasks)
    }


def manifest_of(tasks, **examples):
    """`examples`: of tasks of which the manifest says something else."""
    return Manifest("m", tuple(TaskSize(t, "b", "c", examples.get(t, len(e))) for t, e in tasks.items()))


def make_loader(tasks, store=None, manifest=None, rows=None, tokenizer_fingerprint=None, **settings):
    data = Data("m", "", **{"row_length": 128, "batch_rows": 8, "seed": 0, "block_draws": 100} | settings)
    store, manifest = store or MemoryStore(tasks), manifest or manifest_of(tasks)
    defaults = {"pad_id": PAD, "eos_id": EOS, "rows": rows, "tokenizer_fingerprint": tokenizer_fingerprint}
    return Loader(store, manifest, data, **defaults)


def take(loader, count):
    with loader:
        return [next(loader) for _ in range(count)]


def assert_same(first, second):
    assert first.state == second.state and first.examples == second.examples
    assert first.arrays.keys() == second.arrays.keys()
    assert all(first.arrays[name].tobytes() == second.arrays[name].tobytes() for name in first.arrays)


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


# rows


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
        ({"text": 0.5, "short": 0.2}, "leave a share to benchmarks not named here"),
    ],
)
def test_shares_of_the_tokens_that_cannot_be_are_refused(token_shares, message):
    tasks = {"short.a": [([3], [4])], "text.c": [([], [5, 6])]}
    mixture = Manifest("m", tuple(TaskSize(name, name.split(".")[0], "c", 1) for name in tasks))
    data = Data("m", "", row_length=8, batch_rows=1, token_shares=token_shares)
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


def test_every_example_comes_once_a_pass():
    tasks = {"only": [([7] * (i % 90), [i + 10]) for i in range(500)]}
    batches = take(make_loader(tasks, block_draws=500, batch_rows=1), 400)
    block = [
        example
        for batch in batches
        if batch.rows[0][0] is batches[0].rows[0][0]
        for row in batch.examples
        for example in row
    ]
    assert sorted(block) == [("only", i) for i in range(500)]


def test_batches_are_alike_in_length_and_task():
    """Packing sorts by length; rows shuffled afterwards make batches differ no more than random rows would."""
    rng = np.random.default_rng(0)
    sizes = np.clip(np.exp(rng.normal(4, 0.8, 8000)), 3, 511).astype(int)
    tasks = {f"task{t}": [([9] * int(n), [8]) for n in sizes[t::8]] for t in range(8)}
    block = make_loader(tasks, row_length=512, block_draws=8000).plan(0)
    rows = [block.documents(r) for r in range(len(block.rows))]
    for feature in [len, lambda row: sum(document.task == "task3" for document in row)]:
        values = np.array([feature(row) for row in rows[: len(rows) // 32 * 32]], float)
        between = values.reshape(-1, 32).mean(axis=1).std()
        assert between < 1.6 * values.std() / np.sqrt(32)  # 30-odd batches: their spread is known to about 13%


# the stream


def test_a_restored_loader_goes_on_byte_for_byte():
    tasks = make_tasks()
    batches = take(make_loader(tasks), 60)
    assert batches[-1].state["block"] > 3
    loader = make_loader(tasks)
    for position in [0, 58, 7, 31]:
        assert type(json.loads(json.dumps(batches[position].state))) is dict
        loader.restore(json.loads(json.dumps(batches[position].state)))
        assert loader.state == batches[position].state
        assert_same(next(loader), batches[position + 1])
        assert loader.state == batches[position + 1].state
    loader.close()


def test_a_far_position_is_reached_by_planning_its_blocks_only():
    """Step 10^6 of 256 rows of the real mixture is block 108,936; what precedes it is never computed."""
    tasks = make_tasks()
    loader = make_loader(tasks, prefetch=0)
    loader.restore({"block": 108_935, "row": 0})
    ahead = [next(loader) for _ in range(30)]
    inside = next(i for i, batch in enumerate(ahead) if batch.state["block"] == 108_936 and batch.state["row"] > 0)
    store = MemoryStore(tasks)
    other = make_loader(tasks, store, prefetch=0)
    calls = []
    store.lengths = lambda task, split: calls.append(task) or MemoryStore.lengths(store, task, split)
    other.restore(ahead[inside].state)
    assert_same(next(other), ahead[inside + 1])
    assert len(calls) <= 2 * len(tasks)  # one block, or two where the batch crosses into the next


def test_small_blocks_and_large_batches_meet():
    """A batch may span several blocks, and a block of one draw may hold none."""
    tasks = make_tasks(tasks=5)
    batches = take(make_loader(tasks, block_draws=1, batch_rows=6, row_length=400), 10)
    assert all(len(batch.examples) == 6 and all(batch.examples) for batch in batches)
    loader = make_loader(tasks, block_draws=1, batch_rows=6, row_length=400)
    loader.restore(batches[3].state)
    assert_same(take(loader, 1)[0], batches[4])


def test_seeds_give_different_streams_and_threads_the_same():
    tasks = make_tasks()
    first = take(make_loader(tasks), 10)
    for batch, other in zip(first, take(make_loader(tasks, prefetch=0), 10)):
        assert_same(batch, other)
    assert first[0].examples != take(make_loader(tasks, seed=1), 1)[0].examples


@pytest.mark.parametrize("state", [{}, {"block": 0}, {"block": 0, "row": -1}, {"block": "0", "row": 0}, {"step": 5}])
def test_a_position_of_another_kind_is_refused(state):
    with pytest.raises(UserError, match="data position"):
        make_loader(make_tasks()).restore(state)


def test_a_position_outside_its_block_is_refused():
    loader = make_loader(make_tasks())
    loader.restore({"block": 3, "row": 10_000})
    with pytest.raises(UserError, match="block 3 has no row 10000"):
        take(loader, 1)


# the thread


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "data"]


def test_the_state_is_that_of_the_batch_in_hand_not_of_those_made_ahead():
    """Waits until the thread has made more than was asked for."""
    tasks = make_tasks()
    store = MemoryStore(tasks)
    expected = take(make_loader(tasks, prefetch=0), 3)
    ahead = threading.Semaphore(0)
    rows_read = []

    def read(task, split, i):
        rows_read.append((task, i))
        if len(rows_read) > sum(len(row) for batch in expected[:2] for row in batch.examples):
            ahead.release()  # the third batch is being made
        return MemoryStore.read(store, task, split, i)

    store.read = read
    with make_loader(tasks, store, prefetch=2) as loader:
        batch = next(loader)
        assert ahead.acquire(timeout=30)
        assert loader.state == batch.state == expected[0].state
        assert_same(next(loader), expected[1])
        assert batch.wait_seconds > 0


@pytest.mark.parametrize("prefetch", [0, 3])
def test_what_fails_in_the_thread_is_raised_to_the_consumer_in_its_place(prefetch):
    tasks = make_tasks()
    store = MemoryStore(tasks)
    good = take(make_loader(tasks, prefetch=0), 3)
    bad = good[2].examples[4][0]
    seen = {example for batch in good[:2] for row in batch.examples for example in row}
    assert bad not in seen

    def read(task, split, i):
        if (task, i) == bad:
            raise OSError("disk gone")
        return MemoryStore.read(store, task, split, i)

    store.read = read
    with make_loader(tasks, store, prefetch=prefetch) as loader:
        assert_same(next(loader), good[0])
        assert_same(next(loader), good[1])
        for _ in range(2):
            with pytest.raises(OSError, match="disk gone"):
                next(loader)
        assert loader.state == good[1].state
    assert not threads()


def test_closing_ends_the_thread_and_restoring_starts_again():
    tasks = make_tasks()
    loader = make_loader(tasks)
    assert not threads()  # nothing runs before the first batch
    first = next(loader)
    assert len(threads()) == 1
    loader.close()
    loader.close()
    assert not threads()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)
    loader.restore({"block": 0, "row": 0})
    assert_same(next(loader), first)
    loader.close()
    assert not threads()


# what is refused before anything is read


def test_a_label_longer_than_a_row_names_task_and_example():
    tasks = {"fine": [([5], [6])], "long": [([5], [6]), ([5], [6] * 127), ([5], [6] * 128)]}
    message = r"long: the label of example long-2 has 128 tokens .*row of 128; raise ROW_LENGTH, .*MAX_LABEL_TOKENS"
    with pytest.raises(UserError, match=message):
        make_loader(tasks)
    make_loader({"fine": tasks["long"][:2]})


def test_a_tokenizer_other_than_the_caches_is_refused():
    tasks = make_tasks()
    make_loader(tasks, tokenizer_fingerprint=FINGERPRINT)
    with pytest.raises(UserError, match=r"another tokenizer \(ffffffffffff, yours is 000000000000\); set TOKENIZER"):
        make_loader(tasks, tokenizer_fingerprint="0" * 64)


def test_a_task_without_examples_is_refused_by_name():
    tasks = make_tasks(tasks=2) | {"hollow": []}
    with pytest.raises(UserError, match="hollow"):
        make_loader(tasks)
    with pytest.raises(UserError, match="hollow: no examples to train on"):
        make_loader(tasks, manifest=manifest_of(tasks, hollow=3))


def test_a_mixture_written_for_another_store_is_refused():
    """Its rates would not be those of the examples that are drawn."""
    tasks = make_tasks(tasks=3)
    have = len(tasks["task1"])
    with pytest.raises(UserError, match=f"mixture m: task1 has 5,000 examples .* {have} in the store"):
        make_loader(tasks, manifest=manifest_of(tasks, task1=5000))


@pytest.mark.parametrize("name", ["row_length", "batch_rows", "block_draws", "max_segments"])
def test_settings_below_one_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        make_loader(make_tasks(), **{name: 0})


# the real store


def test_a_store_on_disk_gives_the_batches_of_the_same_examples_in_memory(tmp_path):
    tasks = make_tasks()
    for task, examples in tasks.items():
        shard = [([*source, *target], len(source), "x") for source, target in examples]
        write_content(tmp_path, task, "hand", [shard])
    store = TokenStore(tmp_path, manifest({name: len(examples) for name, examples in tasks.items()}))
    for ours, expected in zip(take(make_loader(tasks, store), 20), take(make_loader(tasks), 20)):
        assert_same(ours, expected)


def test_loading_needs_neither_jax_nor_tensorflow():
    code = (
        "import sys, optiml_jax.data.loader, optiml_jax.data.store\n"
        "found = {'jax', 'tensorflow', 'seqio', 'tasks'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
