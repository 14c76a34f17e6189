"""The token store's reader, against arrays written here by hand from the format's description."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from optiml_jax.common.errors import DataError, UserError
from optiml_jax.data import store as store_module
from optiml_jax.data.store import FORMAT, INDEX_DTYPE, TokenStore, shard_path
from optiml_jax.data.verify import check_store

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
    folder = directory / "tasks" / task
    stats = {
        "format": FORMAT,
        "task": task,
        "split": split,
        "shards": len(shards),
        "examples": sum(map(len, shards)),
        "tokens": sum(len(ids) for shard in shards for ids, *_ in shard),
        "checksums": {
            path.name: f"{zlib.crc32(path.read_bytes()):08x}" for path in sorted(folder.glob(f"{split}-*-of-*"))
        },
    }
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
    many = store.read_many("train", [("bench.a_task", i) for i in (2, 0, 2, 1)])
    assert [(ids.tolist(), start) for ids, start in many] == [flat[i][:2] for i in (2, 0, 2, 1)]
    with pytest.raises(IndexError, match="example 3 of 3"):
        store.read("bench.a_task", "train", 3)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_more_tasks_than_descriptors_can_be_read(tmp_path):
    """1,545 tasks are common and 1,024 descriptors the usual limit."""
    names = [f"bench.task{i}" for i in range(40)]
    for i, name in enumerate(names):
        write_store(tmp_path, name, shards=[[([i, i + 1], 1, "only")]])
    before = descriptors()
    store = TokenStore(tmp_path, max_files=16)
    for _ in range(2):
        assert [store.read(name, "train", 0)[0].tolist() for name in names] == [[i, i + 1] for i in range(40)]
    many = store.read_many("train", [(name, 0) for name in names])  # more at once than may be open
    assert [ids.tolist() for ids, _ in many] == [[i, i + 1] for i in range(40)]
    store.check()  # which opens files too
    assert descriptors() - before == 16
    del store
    assert descriptors() == before


def test_the_soft_limit_of_descriptors_is_raised(tmp_path):
    """In a process of its own: 512 descriptors for 1,545 tasks would be opened and closed at every other read."""
    write_store(tmp_path)
    code = (
        "import resource as r, sys; from optiml_jax.data.store import MAX_FILES, TokenStore\n"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (64, hard))\n"
        "store = TokenStore(sys.argv[1]); want = 2 * MAX_FILES if hard < 0 else min(2 * MAX_FILES, hard)\n"
        "assert r.getrlimit(r.RLIMIT_NOFILE) == (want, hard) and store._max_files == want // 2"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)


def test_a_missing_store_and_another_format_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"store\.json: no token store"):
        TokenStore(tmp_path)
    (tmp_path / "store.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match="format 0, not 1"):
        TokenStore(tmp_path)


def test_unknown_tasks_are_named(tmp_path):
    write_store(tmp_path)
    store = TokenStore(tmp_path)
    with pytest.raises(UserError, match=r"nothing/train.json: not in this cache"):
        store.stats("nothing", "train")


def test_a_truncated_or_missing_file_is_refused_by_name_when_its_split_is_opened(tmp_path):
    write_store(tmp_path)
    tokens, index = (shard_path(tmp_path, "bench.a_task", "train", 0, 2, kind) for kind in ("tokens", "index"))
    whole = tokens.read_bytes(), index.read_bytes()
    for path, content, message in (
        (tokens, whole[0][:-2], r"00000-of-00002.tokens: 8 bytes, .*index says 10"),
        (tokens, whole[0] + b"ab", r"00000-of-00002.tokens: 12 bytes, .*index says 10"),
        (index, whole[1][:-3], r"00000-of-00002.index: truncated"),
        (index, whole[1][:16], r"00000-of-00002.index: damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            TokenStore(tmp_path).lengths("bench.a_task", "train")
        tokens.write_bytes(whole[0])
        index.write_bytes(whole[1])
    store = TokenStore(tmp_path)
    store.read("bench.a_task", "train", 0)
    store.check()  # in the background, which else may find it first
    tokens.write_bytes(whole[0][:-2])  # after it was opened
    assert store.read("bench.a_task", "train", 0)[0].tolist() == SHARDS[0][0][0]
    with pytest.raises(DataError, match=r"00000-of-00002.tokens: truncated"):
        store.read("bench.a_task", "train", 1)
    for path in (tokens, index):
        path.unlink()
        with pytest.raises(DataError, match=f"{path.name}: missing"):
            TokenStore(tmp_path).lengths("bench.a_task", "train")


def test_stats_of_other_files_are_refused(tmp_path):
    write_store(tmp_path)
    path = tmp_path / "tasks" / "bench.a_task" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"examples": 4}))
    with pytest.raises(DataError, match="3 of 4 examples"):
        TokenStore(tmp_path).lengths("bench.a_task", "train")


def test_every_flipped_bit_is_found(tmp_path):
    """In any file of the store that a checksum covers; in the index already when the split is opened."""
    write_store(tmp_path)
    rng = np.random.default_rng(0)
    assert not list(check_store(tmp_path))
    for path in sorted((tmp_path / "tasks" / "bench.a_task").glob("*-of-*")):
        whole = path.read_bytes()
        for bit in rng.choice(8 * len(whole), 8, replace=False).tolist():
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            (fault,) = check_store(tmp_path)
            assert fault.startswith(f"{path}: damaged (checksum "), bit
            if path.suffix == ".index":
                with pytest.raises(DataError, match=f"{path.name}: damaged"):
                    TokenStore(tmp_path).read("bench.a_task", "train", 0)
        path.write_bytes(whole[:-1])
        assert [fault.split(":")[0] for fault in check_store(tmp_path)] == [str(path)]
        path.unlink()
        assert list(check_store(tmp_path)) == [f"{path}: missing; remove the task's folder and cache it again"]
        path.write_bytes(whole)
    assert not list(check_store(tmp_path))


def test_damaged_stats_and_manifests_of_another_store_are_found(tmp_path):
    write_store(tmp_path)
    path = tmp_path / "tasks" / "bench.a_task" / "train.json"
    stats = json.loads(path.read_text())
    for wrong in ("{", "[]", '{"format": 1}', json.dumps(stats | {"split": "test"}), json.dumps(stats | {"tokens": 9})):
        path.write_text(wrong)
        (fault,) = check_store(tmp_path)
        assert fault.startswith(f"{path}: "), fault
    path.write_text(json.dumps(stats))
    manifest = tmp_path / "mixtures" / "m.json"
    manifest.parent.mkdir()
    tasks = [{"name": "bench.a_task", "benchmark": "bench", "category": "c", "examples": 3}]
    whole = {"format": 1, "name": "m", "eps": 4096, "benchmarks": None, "tasks": tasks}
    manifest.write_text(json.dumps(whole))
    assert not list(check_store(tmp_path))
    manifest.write_text(json.dumps(whole | {"tasks": [tasks[0] | {"examples": 4}]}))
    assert list(check_store(tmp_path)) == [f"{manifest}: bench.a_task has 3 examples, not 4; cache the mixture again"]


@pytest.mark.parametrize("how", ["not in the page cache", "half in it", "another system"])
def test_reading_many_at_once_does_not_depend_on_the_page_cache(tmp_path, monkeypatch, how):
    write_store(tmp_path)
    flat = [example for shard in SHARDS for example in shard]
    read, calls = os.preadv, []

    def preadv(descriptor, buffers, offset, flags=0):
        calls.append(flags)
        if flags and how == "not in the page cache":
            raise BlockingIOError
        return read(descriptor, [buffers[0][: len(buffers[0]) // 2]] if flags else buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    if how == "another system":
        monkeypatch.setattr(store_module, "_NOWAIT", None)
    result = TokenStore(tmp_path).read_many("train", [("bench.a_task", i) for i in (1, 2, 0)])
    assert [(ids.tolist(), start) for ids, start in result] == [flat[i][:2] for i in (1, 2, 0)]
    assert [bool(flags) for flags in calls] == [True] * 3 * (how != "another system") + [False] * 3


def test_a_flipped_token_stops_whoever_reads_it(tmp_path):
    """Every bit of the tokens; the read that finds the shard goes on, the wait before a checkpoint does not."""
    write_store(tmp_path)
    path = shard_path(tmp_path, "bench.a_task", "train", 0, 2, "tokens")
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        store = TokenStore(tmp_path)
        store.read("bench.a_task", "train", 0)
        for later in (store.check, lambda store=store: store.read("bench.a_task", "train", 2)):
            with pytest.raises(DataError, match=f"{path.name}: damaged"):
                later()
    path.write_bytes(whole)
    store = TokenStore(tmp_path)
    store.check()
    store.read("bench.a_task", "train", 0)
    store.check()


def test_counts_of_single_shards_are_no_splits(tmp_path):
    """Files that the workers of a task above 64 MB leave behind do not make a store damaged (regression test)."""
    write_store(tmp_path)
    for number in (0, 1):
        (tmp_path / "tasks" / "bench.a_task" / f"train-{number:05d}-of-00002.json").write_text('{"examples": 1}')
    assert not list(check_store(tmp_path))
