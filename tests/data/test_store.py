"""The token store's reader, against arrays written here by hand from the format's description."""

import json
import resource

import numpy as np
import pytest

from optiml_jax.data.store import FORMAT, INDEX_DTYPE, TokenStore, shard_path
from optiml_jax.errors import DataError, UserError

SHARDS = [
    [([5, 6, 7, 65_535], 2, "first"), ([8], 0, "sécond")],
    [([9, 10, 11], 3, "third")],
]


def write_store(directory, task="bench.a_task", split="train", shards=SHARDS):
    """The bytes of the format's description, written without the project's writer."""
    (directory / "store.json").write_text(
        json.dumps({"format": FORMAT, "tokenizer": {"fingerprint": "f" * 64, "vocab_size": 65_536}})
    )
    (directory / "tasks" / task).mkdir(parents=True, exist_ok=True)
    for number, examples in enumerate(shards):
        tokens, index = b"", b""
        for ids, label_start, _ in examples:
            index += np.array([len(tokens) // 2], "<u8").tobytes() + np.array([len(ids), label_start], "<u4").tobytes()
            tokens += np.array(ids, "<u2").tobytes()
        stem = directory / "tasks" / task / f"{split}-{number:05d}-of-{len(shards):05d}"
        stem.with_suffix(".tokens").write_bytes(tokens)
        stem.with_suffix(".index").write_bytes(index)
        stem.with_suffix(".ids").write_text("".join(f"{name}\n" for *_, name in examples), encoding="utf-8")
    stats = {"format": FORMAT, "shards": len(shards), "examples": sum(map(len, shards))}
    (directory / "tasks" / task / f"{split}.json").write_text(json.dumps(stats))


def test_examples_come_back_as_written_across_shards(tmp_path):
    write_store(tmp_path)
    store = TokenStore(tmp_path)
    flat = [example for shard in SHARDS for example in shard]
    assert store.lengths("bench.a_task", "train").tolist() == [len(ids) for ids, *_ in flat]
    for i, (ids, label_start, name) in enumerate(flat):
        read, start = store.read("bench.a_task", "train", i)
        assert read.dtype == np.uint16 and read.tolist() == ids and start == label_start
        assert store.example_id("bench.a_task", "train", i) == name
    assert INDEX_DTYPE.itemsize == 16
    with pytest.raises(IndexError, match="example 3 of 3"):
        store.read("bench.a_task", "train", 3)


def test_more_tasks_than_descriptors_can_be_read(tmp_path):
    """1,545 tasks are common and 1,024 descriptors the usual limit."""
    names = [f"bench.task{i}" for i in range(40)]
    for i, name in enumerate(names):
        write_store(tmp_path, name, shards=[[([i, i + 1], 1, "only")]])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, limits[1]))
        store = TokenStore(tmp_path)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)  # pytest itself needs more
        for _ in range(2):
            assert [store.read(name, "train", 0)[0].tolist() for name in names] == [[i, i + 1] for i in range(40)]
        assert len(store._files) <= 16
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_missing_store_and_another_format_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"store.json: no token store here; write one with"):
        TokenStore(tmp_path)
    (tmp_path / "store.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match="format 0, not 1; cache again in an empty directory"):
        TokenStore(tmp_path)


def test_unknown_tasks_are_named(tmp_path):
    write_store(tmp_path)
    store = TokenStore(tmp_path)
    with pytest.raises(UserError, match=r"nothing/train.json: not in this cache"):
        store.stats("nothing", "train")


def test_files_cut_short_are_data_errors(tmp_path):
    write_store(tmp_path)
    tokens = shard_path(tmp_path, "bench.a_task", "train", 0, 2, "tokens")
    tokens.write_bytes(tokens.read_bytes()[:-2])
    store = TokenStore(tmp_path)
    assert store.read("bench.a_task", "train", 0)[0].tolist() == SHARDS[0][0][0]
    with pytest.raises(DataError, match=r"00000-of-00002.tokens: cut short"):
        store.read("bench.a_task", "train", 1)
    shard_path(tmp_path, "bench.a_task", "train", 1, 2, "index").unlink()
    with pytest.raises(DataError, match="2 of 3 examples"):
        TokenStore(tmp_path).lengths("bench.a_task", "train")
