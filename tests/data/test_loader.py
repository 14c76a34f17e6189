"""The stream of batches against itself: resumed, prefetched, refused."""

import gc
import json
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.data.prefetch import Prefetcher
from optiml_jax.data.store import TokenStore
from tests.data.memory_store import FINGERPRINT, MemoryStore, make_loader, make_tasks, manifest_of, take
from tests.stores import manifest, write_content


def assert_same(first, second):
    assert first.state == second.state and first.examples == second.examples
    assert first.arrays.keys() == second.arrays.keys()
    assert all(first.arrays[name].tobytes() == second.arrays[name].tobytes() for name in first.arrays)


def test_what_makes_the_items_is_freed_when_the_thread_has_ended():
    """At once, not when cycles are collected: it may hold the parameters of a model."""

    class Model:
        def prepare(self, number):
            return number

    gc.disable()
    try:
        for depth in (0, 1):
            model = Model()
            prefetcher, alive = Prefetcher(lambda model=model: map(model.prepare, range(2)), depth), weakref.ref(model)
            assert [prefetcher.get()[0] for _ in range(2)] == [0, 1]
            with pytest.raises(StopIteration):
                prefetcher.get()
            prefetcher.close()
            del prefetcher, model
            assert alive() is None
    finally:
        gc.enable()


# the stream


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


def test_equally_long_examples_share_rows_with_others_in_every_block():
    """Eight tasks of one example each, two to a row: 28 possible pairs."""
    loader = make_loader({f"task{i}": [([5] * 30, [6])] for i in range(8)}, row_length=64, block_draws=8)
    blocks = [loader.plan(number) for number in range(40)]
    loader.close()
    pairs = {tuple(sorted(block.tasks_n[row].tolist())) for block in blocks for row in block.rows}
    assert all(len(row) == 2 for block in blocks for row in block.rows) and len(pairs) == 28


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


@pytest.fixture
def threads():
    """Lists the loaders' threads started in this test; other tests of the process may have left theirs."""
    before = set(threading.enumerate())
    return lambda: [thread for thread in threading.enumerate() if thread.name == "data" and thread not in before]


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
def test_what_fails_in_the_thread_is_raised_to_the_consumer_in_its_place(threads, prefetch):
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


def test_closing_ends_the_thread_and_restoring_starts_again(threads):
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
