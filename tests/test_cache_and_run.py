"""The cache under the eyes of a run: which data it trains and is evaluated on, and that nothing changes under it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.data import cache_paths, readers
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.settings import Data
from optiml_jax.data.specification import CacheOptions
from optiml_jax.data.store import TokenStore
from optiml_jax.evaluation.prompts.ledger import read_ledger
from optiml_jax.evaluation.prompts.selection import ledgers
from optiml_jax.tokenizer import Tokenizer
from optiml_jax.training.token_store import open_store
from tasks.benchmarks.samples import TOKENIZER
from tasks.caching import build
from tasks.caching.work_item import Job
from tasks.reading import fingerprints
from tests.stores import opened
from tests.tasks.conftest import NAME, data_dir, write_splits, write_task  # noqa: F401
from tools import cache_tasks

ROOT = Path(__file__).resolve().parents[1]


def own_file(path: Path, word: str, count: int = 40) -> Path:
    records = [{"instruction": f"Say {word}.", "input": f"{i}", "output": f"{word} {i}"} for i in range(count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def texts(store: TokenStore) -> set[str]:
    """The targets of all training examples."""
    tokenizer = Tokenizer.load(store.tokenizer_path)
    result = set()
    for task in store.manifest.tasks:
        for i in range(task.examples):
            ids, start = store.read(task.name, "train", i)
            result.add(tokenizer.decode(ids[start:]).split()[0])
    return result


def cached(**flags) -> None:
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]
    cache_tasks.main(words)


def own_data(tmp_path: Path, file: Path, **settings) -> Data:
    return Data("jsonl", str(tmp_path / "cache"), str(file), **{"tokenizer": str(TOKENIZER)} | settings)


# which data a run trains on


def test_a_run_trains_on_its_own_file_as_it_is_now(tmp_path, other_tokenizer):
    """A second file in the same CACHE_DIR, an edit of it, other options, and each of them again."""
    first, second = own_file(tmp_path / "first.jsonl", "alpha"), own_file(tmp_path / "second.jsonl", "beta")
    store = open_store(own_data(tmp_path, first))
    assert texts(store) == {"alpha"} and store.manifest.tasks[0].examples == 36
    assert texts(open_store(own_data(tmp_path, second))) == {"beta"}
    own_file(second, "gamma")
    edited = open_store(own_data(tmp_path, second))
    assert texts(edited) == {"gamma"}
    none_held_out = open_store(own_data(tmp_path, second, held_out_instances=0))
    assert none_held_out.manifest.tasks[0].examples == 40 and none_held_out.manifest.ledgers != {}
    assert texts(open_store(own_data(tmp_path, first))) == {"alpha"}
    # the first store is read as before all this, and so is the ledger of its run after another tokenizer's caching
    assert texts(store) == {"alpha"}
    open_store(own_data(tmp_path, second, tokenizer=str(other_tokenizer)))
    (path,) = ledgers(None, None, "jsonl", str(tmp_path / "cache"), store.manifest.ledgers)
    assert {prompt.references[0].split()[0] for prompt in read_ledger(path)} == {"alpha"}
    with pytest.raises(UserError, match=r"suite jsonl has .* several .*LEDGER: .*\.jsonl, .*\.jsonl"):
        ledgers(None, "jsonl", None, str(tmp_path / "cache"))
    # without DATA_DIR nothing says which file is meant
    with pytest.raises(UserError, match=r"(?=.*first\.jsonl)(?=.*second\.jsonl).*DATA_DIR"):
        open_store(Data("jsonl", str(tmp_path / "cache"), tokenizer=str(TOKENIZER)))


def test_a_cached_mixture_is_compared_with_the_settings_of_a_run(data_dir, tmp_path, capsys):  # noqa: F811
    """Without DATA_DIR the store is used as it is, if it is what the settings say."""
    cache = tmp_path / "cache"
    cached(mixture=NAME, data_dir=data_dir, cache_dir=cache, tokenizer=TOKENIZER)
    data = Data(NAME, str(cache))
    assert open_store(data).manifest.name == NAME
    assert open_store(dataclasses.replace(data, row_length=64)).manifest.name == NAME  # decides nothing here
    for change, message in (
        ({"held_out_instances": 5}, "held_out_instances = None, not 5"),
        ({"max_label_tokens": 5}, "max_label_tokens = 0, not 5"),
    ):
        with pytest.raises(UserError, match=message):
            open_store(dataclasses.replace(data, **change))
    review = tmp_path / "review.tsv"
    review.write_text("train\tevaluation\toverlap\town\tdecision\treason\treviewer\n")
    with pytest.raises(UserError, match="review = None, not"):
        open_store(dataclasses.replace(data, review=str(review)))


def test_a_mixture_without_some_benchmarks_is_not_a_whole_one(data_dir, tmp_path):  # noqa: F811
    cache, mixture = tmp_path / "cache", f"{NAME}+crossfit"
    flags = {"mixture": mixture, "data_dir": data_dir, "cache_dir": cache, "tokenizer": TOKENIZER}
    cached(**flags, missing_benchmarks="leave_out")
    with pytest.raises(UserError, match="missing_benchmarks = 'leave_out', not 'refuse'"):
        open_store(Data(mixture, str(cache)))
    assert open_store(Data(mixture, str(cache), missing_benchmarks="leave_out")).manifest.name == mixture


def test_a_mixture_of_two_is_evaluated_on_the_prompts_of_both(data_dir, tmp_path, capsys):  # noqa: F811
    (data_dir / "jsonl").mkdir()
    own_file(data_dir / "jsonl" / "own.jsonl", "alpha")
    cache, mixture = tmp_path / "cache", f"jsonl+{NAME}"
    cached(mixture=mixture, data_dir=data_dir, cache_dir=cache, tokenizer=TOKENIZER)
    store = opened(cache)
    paths = ledgers(None, None, mixture, str(cache), store.manifest.ledgers)
    suites = [{prompt.suite for prompt in read_ledger(path)} for path in paths]
    assert suites == [{"jsonl"}, {NAME}] and len(paths) == 2
    assert [Path(path).exists() for path in ledgers(None, None, mixture, str(cache))] == [True, True]


def test_files_of_equal_names_are_told_apart(tmp_path):
    """MATH has train/algebra/1.json and test/algebra/1.json."""
    files = [tmp_path / "math" / split / "algebra" / "1.json" for split in ("train", "test")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    before = fingerprints.raw_files(files, tmp_path)
    assert list(before) == ["math/train/algebra/1.json", "math/test/algebra/1.json"]
    files[0].write_text("[1]")
    assert not fingerprints.unchanged(files, tmp_path, before)


def test_the_length_of_rows_reaches_the_pieces_of_documents(tmp_path):
    folder = tmp_path / "data" / "pretrain_text"
    folder.mkdir(parents=True)
    (folder / "web.jsonl").write_text(json.dumps({"text": "word " * 3000}) + "\n")
    stores = [
        open_store(Data("pretrain_text", str(tmp_path / "cache"), str(tmp_path / "data"), str(TOKENIZER), row_length=n))
        for n in (64, 512)
    ]
    lengths = [store.lengths(store.manifest.tasks[0].name, "train").max() for store in stores]
    assert lengths[0] <= 65 < lengths[1] <= 513
    assert all(len(store.manifest.tasks) == 1 for store in stores)


# what is stored stays


def test_a_reader_keeps_what_it_opened(data_dir, tmp_path):  # noqa: F811
    """Cached again with another option, after an edit of the raw file, and pruned: shards opened late are the old
    ones."""
    tokenizer, cache = Tokenizer.load(TOKENIZER), tmp_path / "cache"

    def cache_again(**options) -> build.CacheResult:
        return build.run(Job(NAME, str(data_dir), str(cache), CacheOptions(**options)), tokenizer)

    result = cache_again()
    untouched, reader = TokenStore.open(result.path), TokenStore.open(result.path, max_files=1)
    name = f"{NAME}.task2_two_too"
    examples = [(name, i) for i in range(5)]
    before = [ids.tolist() for ids, _ in untouched.read_many("train", examples)]
    write_task(
        data_dir / NAME, "task2_two-too", [{"id": str(i), "input": f"new {i}", "output": ["z"]} for i in range(9)]
    )
    assert len(cache_again().written) == 1 and len(cache_again(max_label_tokens=9).written) == 2
    cached(prune=True, cache_dir=cache)
    assert [ids.tolist() for ids, _ in reader.read_many("train", examples)] == before
    reader.check()
    assert len(TokenStore.open(result.path).lengths(name, "train")) == 9


def test_pruning_removes_what_no_manifest_and_no_reader_needs(data_dir, tmp_path, other_tokenizer, capsys):  # noqa: F811
    tokenizer, cache = Tokenizer.load(TOKENIZER), tmp_path / "cache"
    flags = {"mixture": NAME, "data_dir": data_dir, "cache_dir": cache}
    cached(**flags, tokenizer=TOKENIZER)
    old = opened(cache)
    write_task(data_dir / NAME, "task1_one", [{"id": "1", "input": "new", "output": ["y"]}])
    write_task(data_dir / NAME, "task4_known", [{"id": "1", "input": "q", "output": ["y"]}])
    cached(**flags, tokenizer=TOKENIZER)
    folder = cache / "tasks" / f"{NAME}.task1_one"
    assert len(list(folder.iterdir())) == 2 and len(list((cache / "ledgers" / NAME).glob("*.jsonl"))) == 2
    capsys.readouterr()
    cached(prune=True, cache_dir=cache)
    assert "removed 0 contents" in capsys.readouterr().out and len(list(folder.iterdir())) == 2
    old._reader.close()
    cached(prune=True, cache_dir=cache)
    printed = capsys.readouterr().out
    assert "removed 1 contents" in printed and "removed 2 ledgers" in printed, printed  # with its metadata
    assert [path.name for path in folder.iterdir()] == [Manifest.read(old_path(cache)).tasks[0].content]
    assert not list(build.verify(cache)) and not list(readers.manifests(cache))
    assert not build.run(Job(NAME, str(data_dir), str(cache)), tokenizer).written
    # a reader that was killed counts no more
    code = "import sys, os; from tests.stores import opened; from pathlib import Path\n"
    code += "store = opened(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(cache)], cwd=ROOT)
    assert list((cache / "readers").glob("*.json")) and not list(readers.manifests(cache))
    assert not list((cache / "readers").iterdir())


def test_a_writer_leaves_alone_what_a_starting_reader_writes(data_dir, tmp_path):  # noqa: F811
    cache = tmp_path / "cache"
    job = Job(NAME, str(data_dir), str(cache))
    build.run(job, Tokenizer.load(TOKENIZER))
    files = [cache / "readers" / ".x.json.1.tmp", cache / "mixtures" / NAME / ".x.json.1.tmp", cache / ".x.tmp"]
    files[0].parent.mkdir(exist_ok=True)
    for file in files:
        file.write_text("")
    build.run(job, Tokenizer.load(TOKENIZER))
    assert [file.exists() for file in files] == [True, False, False]


def old_path(cache: Path) -> Path:
    (path,) = cache_paths.manifests(cache)
    return path


def test_specifications_share_the_tasks_in_which_they_do_not_differ(tmp_path):
    """Other templates of one benchmark: the bytes of the other are stored once."""
    (tmp_path / "data" / "jsonl").mkdir(parents=True)
    own_file(tmp_path / "data" / "jsonl" / "own.jsonl", "alpha")
    folder = tmp_path / "data" / "pretrain_text"
    folder.mkdir()
    (folder / "web.jsonl").write_text(json.dumps({"text": "word " * 3000}) + "\n")
    tokenizer, cache = Tokenizer.load(TOKENIZER), tmp_path / "cache"

    def size() -> int:
        return sum(path.stat().st_size for path in (cache / "tasks").rglob("*") if path.is_file())

    def run(row_length: int) -> build.CacheResult:
        options = CacheOptions(row_length=row_length)
        return build.run(Job("jsonl+pretrain_text", str(tmp_path / "data"), str(cache), options), tokenizer)

    first = run(64)
    before = size()
    second = run(512)
    assert [task.name for task in second.written] == ["pretrain_text.documents"]
    contents = [{task.name: task.content for task in result.manifest.tasks} for result in (first, second)]
    assert contents[0]["jsonl.own"] == contents[1]["jsonl.own"]
    text = cache / "tasks" / "pretrain_text.documents" / contents[1]["pretrain_text.documents"]
    assert size() - before == sum(path.stat().st_size for path in text.iterdir())


def test_equal_bytes_have_equal_names(data_dir, tmp_path):  # noqa: F811
    """1,000 random pairs of specifications of small tasks: contents are equal if and only if their names are.

    Raw files, options and their order vary; a third of the options decides nothing.
    """
    tokenizer, rng = Tokenizer.load(TOKENIZER), np.random.default_rng(0)
    seen: dict[tuple, tuple[str, bytes]] = {}
    names: dict[str, bytes] = {}

    def stored(words: int, label_tokens: int, held_out: int | None, row_length: int) -> tuple[str, bytes]:
        setting = words, label_tokens, held_out, row_length
        if setting not in seen:
            folder = tmp_path / "x"
            instances = [{"id": str(i), "input": f"q {i}", "output": ["w " * (i % words + 1)]} for i in range(12)]
            write_task(folder / NAME, "task1_one", instances)
            write_splits(folder / NAME, train=["task1_one"])
            options = CacheOptions(held_out_instances=held_out, max_label_tokens=label_tokens, row_length=row_length)
            result = build.run(Job(NAME, str(folder), str(tmp_path / "cache"), options), tokenizer)
            (task,) = result.manifest.tasks
            content = cache_paths.content_path(tmp_path / "cache", task.name, task.content)
            seen[setting] = task.content, b"".join(path.read_bytes() for path in sorted(content.glob("*-of-*")))
        return seen[setting]

    same = 0
    for _ in range(1000):
        pair = [
            stored(
                int(rng.integers(1, 4)),
                int(rng.integers(3, 7)),
                None if rng.random() < 0.4 else int(rng.integers(0, 3)),
                int(rng.choice([64, 2048])),
            )
            for _ in range(2)
        ]
        (first, first_bytes), (second, second_bytes) = pair
        assert (first == second) == (first_bytes == second_bytes)
        names[first] = first_bytes
        same += first == second
    assert 100 < same < 900 and len(names) > 8
