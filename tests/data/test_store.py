"""The token store's reader, against arrays written here by hand from the format's description."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optiml_jax.common.errors import DataError, UserError
from optiml_jax.data import store as store_module
from optiml_jax.data.cache_paths import manifest_path
from optiml_jax.data.store import INDEX_DTYPE, TokenStore, shard_path
from optiml_jax.data.verify import check_store
from tests.stores import manifest, write_content

ROOT = Path(__file__).resolve().parents[2]
TASK = "bench.a_task"
SHARDS = [
    [([5, 6, 7, 65_535], 2, "first"), ([8], 0, "sécond")],
    [([9, 10, 11], 3, "third")],
]


def write_store(directory, task=TASK, shards=SHARDS) -> TokenStore:
    """A store of one task, written by hand."""
    write_content(directory, task, "hand", shards)
    return TokenStore(directory, manifest({task: sum(map(len, shards))}))


def reopened(directory) -> TokenStore:
    return TokenStore(directory, manifest({TASK: 3}))


def content(directory) -> Path:
    return directory / "tasks" / TASK / "hand"


def test_examples_come_back_as_written_across_shards(tmp_path):
    write_store(tmp_path)
    store = reopened(tmp_path)
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


def descriptors(folder: Path) -> int:
    """Counts this process's open files inside `folder`; others may be opened and collected at any time."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            count += link.readlink().is_relative_to(folder)
    return count


def test_more_tasks_than_descriptors_can_be_read(tmp_path):
    """1,545 tasks are common and 1,024 descriptors the usual limit."""
    names = [f"bench.task{i}" for i in range(40)]
    for i, name in enumerate(names):
        write_store(tmp_path, name, shards=[[([i, i + 1], 1, "only")]])
    assert descriptors(tmp_path) == 0
    store = TokenStore(tmp_path, manifest(dict.fromkeys(names, 1)), max_files=16)
    for _ in range(2):
        assert [store.read(name, "train", 0)[0].tolist() for name in names] == [[i, i + 1] for i in range(40)]
    many = store.read_many("train", [(name, 0) for name in names])  # more at once than may be open
    assert [ids.tolist() for ids, _ in many] == [[i, i + 1] for i in range(40)]
    store.check()  # which opens files too
    assert descriptors(tmp_path) == 16 + 1  # its registration as a reader
    del store
    assert descriptors(tmp_path) == 0


def test_the_soft_limit_of_descriptors_is_raised(tmp_path):
    """In a process of its own: 512 descriptors for 1,545 tasks would be opened and closed at every other read."""
    write_store(tmp_path)
    code = (
        "import resource as r, sys; from pathlib import Path; from optiml_jax.data.store import MAX_FILES\n"
        "from tests.data.test_store import reopened\n"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (64, hard))\n"
        "store = reopened(Path(sys.argv[1])); want = 2 * MAX_FILES if hard < 0 else min(2 * MAX_FILES, hard)\n"
        "assert r.getrlimit(r.RLIMIT_NOFILE) == (want, hard) and store._max_files == want // 2"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, cwd=ROOT)


def test_a_missing_store_and_another_format_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"store\.json: no token store"):
        reopened(tmp_path)
    (tmp_path / "store.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match=r"format 0, this version reads 3.*tools\.cache_tasks"):
        reopened(tmp_path)


def test_unknown_tasks_are_named(tmp_path):
    write_store(tmp_path)
    store = reopened(tmp_path)
    with pytest.raises(UserError, match="mixture m: no task nothing"):
        store.stats("nothing", "train")


def test_a_truncated_or_missing_file_is_refused_by_name_when_its_split_is_opened(tmp_path):
    write_store(tmp_path)
    tokens, index = (shard_path(content(tmp_path), "train", 0, 2, kind) for kind in ("tokens", "index"))
    whole = tokens.read_bytes(), index.read_bytes()
    for path, wrong, message in (
        (tokens, whole[0][:-2], r"00000-of-00002.tokens: 8 bytes, .*index says 10"),
        (tokens, whole[0] + b"ab", r"00000-of-00002.tokens: 12 bytes, .*index says 10"),
        (index, whole[1][:-3], r"00000-of-00002.index: damaged"),
        (index, whole[1][:16], r"00000-of-00002.index: damaged"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=message):
            reopened(tmp_path).lengths("bench.a_task", "train")
        tokens.write_bytes(whole[0])
        index.write_bytes(whole[1])
    store = reopened(tmp_path)
    store.read("bench.a_task", "train", 0)
    store.check()  # in the background, which else may find it first
    tokens.write_bytes(whole[0][:-2])  # after it was opened
    assert store.read("bench.a_task", "train", 0)[0].tolist() == SHARDS[0][0][0]
    with pytest.raises(DataError, match=r"00000-of-00002.tokens: truncated"):
        store.read("bench.a_task", "train", 1)
    for path in (tokens, index):
        path.unlink()
        with pytest.raises(DataError, match=f"{path.name}: missing"):
            reopened(tmp_path).lengths("bench.a_task", "train")


def test_stats_of_other_files_are_refused(tmp_path):
    write_store(tmp_path)
    path = content(tmp_path) / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"examples": 4}))
    with pytest.raises(DataError, match="3 of 4 examples"):
        reopened(tmp_path).lengths("bench.a_task", "train")


def test_every_flipped_bit_is_found(tmp_path):
    """In any file of the store that a checksum covers; in the index already when the split is opened."""
    write_store(tmp_path)
    rng = np.random.default_rng(0)
    assert not list(check_store(tmp_path))
    for path in sorted((content(tmp_path)).glob("*-of-*")):
        whole = path.read_bytes()
        for bit in rng.choice(8 * len(whole), 8, replace=False).tolist():
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            (fault,) = check_store(tmp_path)
            assert fault.startswith(f"{path}: damaged (checksum "), bit
            if path.suffix == ".index":
                with pytest.raises(DataError, match=f"{path.name}: damaged"):
                    reopened(tmp_path).read("bench.a_task", "train", 0)
        path.write_bytes(whole[:-1])
        assert [fault.split(":")[0] for fault in check_store(tmp_path)] == [str(path)]
        path.unlink()
        assert list(check_store(tmp_path)) == [f"{path}: missing; remove its folder and cache the mixture again"]
        path.write_bytes(whole)
    assert not list(check_store(tmp_path))


def test_damaged_counts_and_manifests_of_another_store_are_found(tmp_path):
    store = write_store(tmp_path)
    path = content(tmp_path) / "train.json"
    counts = json.loads(path.read_text())
    for wrong in ("{", "[]", '{"shards": 1}', json.dumps(counts | {"tokens": 9})):
        path.write_text(wrong)
        (fault,) = check_store(tmp_path)
        assert fault.startswith(f"{path}: "), fault
    path.write_text(json.dumps(counts))
    place = manifest_path(tmp_path, "m", store.manifest.specification.key)
    store.manifest.write(place)
    assert not list(check_store(tmp_path))
    manifest({TASK: 4}).write(place)
    assert list(check_store(tmp_path)) == [f"{place}: bench.a_task has 3 examples, not 4; cache the mixture again"]
    manifest({"bench.gone": 4}).write(place)
    (fault,) = check_store(tmp_path)
    assert "bench.gone" in fault


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
    result = reopened(tmp_path).read_many("train", [("bench.a_task", i) for i in (1, 2, 0)])
    assert [(ids.tolist(), start) for ids, start in result] == [flat[i][:2] for i in (1, 2, 0)]
    assert [bool(flags) for flags in calls] == [True] * 3 * (how != "another system") + [False] * 3


def test_a_flipped_token_stops_whoever_reads_it(tmp_path):
    """Every bit of the tokens; the read that finds the shard goes on, the wait before a checkpoint does not."""
    write_store(tmp_path)
    path = shard_path(content(tmp_path), "train", 0, 2, "tokens")
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        store = reopened(tmp_path)
        store.read("bench.a_task", "train", 0)
        for later in (store.check, lambda store=store: store.read("bench.a_task", "train", 2)):
            with pytest.raises(DataError, match=f"{path.name}: damaged"):
                later()
    path.write_bytes(whole)
    store = reopened(tmp_path)
    store.check()
    store.read("bench.a_task", "train", 0)
    store.check()
