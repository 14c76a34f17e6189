"""A token store in memory, and loaders of it, that the tests of batches share."""

import numpy as np

from optiml_jax.data.loader import Loader
from optiml_jax.data.manifest import Manifest, TaskSize
from optiml_jax.data.settings import Data

PAD, EOS = 1, 2
SEP = ((50, 51), (52,))  # two separators of demonstrations, of two tokens and of one
FINGERPRINT = "f" * 64


class MemoryStore:
    """A token store of {task: [(source, target), ...]} held in memory."""

    tokenizer_fingerprint = FINGERPRINT

    def __init__(self, tasks, inputs=None, records=None):
        """`inputs`, `records`: `TokenStore.input_starts` and `record_starts` of some tasks."""
        self.tasks = tasks
        self.inputs, self.records = inputs or {}, records or {}

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

    def label_starts(self, task, split):
        return np.array([len(source) for source, _ in self.tasks[task]], np.uint32)

    def input_starts(self, task, split):
        return self.inputs.get(task)

    def record_starts(self, task, split):
        return self.records.get(task)

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


def make_loader(tasks, store=None, manifest=None, rows=None, tokenizer_fingerprint=None, separators=(), **settings):
    data = Data("m", "", **{"row_length": 128, "batch_rows": 8, "seed": 0, "block_draws": 100} | settings)
    store, manifest = store or MemoryStore(tasks), manifest or manifest_of(tasks)
    defaults = {"pad_id": PAD, "eos_id": EOS, "rows": rows, "tokenizer_fingerprint": tokenizer_fingerprint}
    defaults["separators"] = [np.array(ids, np.uint16) for ids in separators]
    return Loader(store, manifest, data, **defaults)


def take(loader, count):
    with loader:
        return [next(loader) for _ in range(count)]
