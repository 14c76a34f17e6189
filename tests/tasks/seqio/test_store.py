"""Cached mixtures in seqio against the loader that training uses: the same examples at the same rates."""

import collections
import dataclasses
from pathlib import Path

import pytest
import seqio

from optiml_jax.common.errors import DataError, UserError
from optiml_jax.data.batches import assemble_rows
from optiml_jax.data.demonstrations import separator_ids
from optiml_jax.data.loader import Loader
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.sampling import probabilities
from optiml_jax.data.settings import Data
from optiml_jax.data.store import TokenStore
from optiml_jax.data.subset import selected
from optiml_jax.tokenizer import Tokenizer
from tasks import seqio_tasks
from tasks.benchmarks.samples import TOKENIZER
from tasks.caching import build
from tasks.caching.work_item import Job
from tasks.seqio_tasks import to_seqio
from tests.stores import only_manifest
from tests.tasks.conftest import NAME, write_splits, write_task

EOS = 2


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Returns the store of the samples."""
    cache_dir = tmp_path_factory.mktemp("samples")
    build.run(Job("samples", None, str(cache_dir)), Tokenizer.load(TOKENIZER))
    return only_manifest(cache_dir)


@pytest.fixture(scope="module")
def sized(tmp_path_factory) -> Path:
    """Returns a store with tasks of many sizes."""
    folder = tmp_path_factory.mktemp("sized")
    sizes = (5, 90, 150, 201, 333, 700)
    for size in sizes:
        instances = [{"id": str(i), "input": f"q{i}", "output": ["x"]} for i in range(size)]
        write_task(folder / "data" / NAME, f"task{size}", instances)
    write_splits(folder / "data" / NAME, train=[f"task{size}" for size in sizes])
    build.run(Job(NAME, str(folder / "data"), str(folder / "cache")), Tokenizer.load(TOKENIZER))
    return only_manifest(folder / "cache")


def get_dataset(name: str, **options):
    """As a t5x user calls it."""
    return seqio.get_dataset(
        mixture_or_task_name=name,
        task_feature_lengths={"inputs": 512, "targets": 64},
        dataset_split="train",
        feature_converter=seqio.PassThroughFeatureConverter(),
        **{"shuffle": False, "num_epochs": 1} | options,
    ).as_numpy_iterator()


def loader_documents(manifest: Path, count: int) -> set[tuple]:
    """(inputs, targets) of what the training loader emits, from its arrays alone, until `count` are known."""
    items = set()
    store = TokenStore.open(manifest)
    data = Data("samples", "", row_length=512, batch_rows=16, seed=3, prefetch=0)
    with Loader(store, Manifest.read(manifest), data, pad_id=1, eos_id=EOS) as batches:
        for _ in range(100):
            arrays = next(batches).arrays
            for targets, segments, labels in zip(
                arrays["targets_BT"], arrays["segment_ids_BT"], arrays["label_mask_BT"]
            ):
                for segment in range(1, segments.max() + 1):
                    document = segments == segment
                    items.add((tuple(targets[document & ~labels]), tuple(targets[document & labels])))
            if len(items) == count:
                return items
    return items


def test_seqio_gives_the_examples_that_training_reads(manifest):
    mixture = to_seqio(manifest)
    assert mixture.name == "cached:samples"
    theirs = [(tuple(row["inputs"]), tuple(row["targets"])) for task in mixture.tasks for row in get_dataset(task.name)]
    assert len(theirs) == sum(task.examples for task in Manifest.read(manifest).tasks)
    assert loader_documents(manifest, len(set(theirs))) == set(theirs)
    drawn = [(tuple(row["inputs"]), tuple(row["targets"])) for row in get_dataset(mixture.name, shuffle=True, seed=0)]
    assert len(drawn) > 500 and set(drawn) <= set(theirs)


def test_a_registered_mixture_gives_the_examples_of_its_cache(manifest):
    """By name seqio renders and tokenises; by manifest it reads what was cached."""
    seqio_tasks.use_data_dir(None)
    named, cached = to_seqio("samples"), to_seqio(manifest)
    assert named is seqio.MixtureRegistry.get("samples")
    tasks_ = sorted(task.name for task in named.tasks)
    assert sorted(task.name for task in cached.tasks) == [f"cached:{name}" for name in tasks_]
    for name in tasks_[::5]:
        rows = [[(*row["inputs"], 0, *row["targets"]) for row in get_dataset(n)] for n in (name, f"cached:{name}")]
        assert rows[0] == rows[1] and len(rows[0]) == 368


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eps": 100},
        {"proportions": {"one": 0.7, "two": 0.2, "three": 0.1}},
        {"proportions": {"one": 3, "two": 0, "three": 2}, "eps": 150},
        {"proportions": "natural", "eps": 128},
    ],
)
@pytest.mark.parametrize("stated", [None, {"one": 0.25, "two": 0.25, "three": 0.5}])
def test_rates_are_those_of_training(sized, options, stated):
    """Over three benchmarks, as stated in the manifest or in the call; their tasks are below and above the caps."""
    parts = [
        dataclasses.replace(task, benchmark=("one", "two", "three")[min(i // 2, 2)])
        for i, task in enumerate(Manifest.read(sized).tasks)
    ]
    content = Manifest("three", tuple(parts), 200, stated, specification=Manifest.read(sized).specification)
    path = sized.with_name("three.json")
    content.write(path)
    mixture = to_seqio(path, **options)
    rates = {task.name.removeprefix("cached:"): mixture.get_rate(task) for task in mixture.tasks}
    ours = probabilities(content, options.get("eps", 200), options.get("proportions"))
    assert rates.keys() == {name for name, p in ours.items() if p > 0}
    for name, rate in rates.items():
        assert abs(rate / sum(rates.values()) - ours[name]) < 1e-9


@pytest.mark.parametrize(
    ("demonstrations", "objective"), [(1.0, "label"), (1.0, "suffix"), (2.0, "document"), (None, "document")]
)
def test_demonstrations_and_objectives_are_those_of_training(sized, demonstrations, objective):
    """The first two passes over the tasks, example by example: tokens, and which of them are targets."""
    run = Data(NAME, "", row_length=400, batch_rows=4, seed=3, prefetch=0, block_draws=300, leading_eos=True)
    run = dataclasses.replace(run, demonstrations=demonstrations, objective=objective, max_demonstrations=3)
    store, manifest = TokenStore.open(sized), Manifest.read(sized)
    ours = collections.defaultdict(list)
    encode = Tokenizer.load(store.tokenizer_path).encode
    separators = separator_ids(run, encode)
    with Loader(store, manifest, run, pad_id=1, eos_id=EOS, separators=separators) as batches:
        block = 0
        while any(
            len(ours[task.name, i]) < 2 for task in manifest.tasks if task.examples < 200 for i in range(task.examples)
        ):
            plan = batches.plan(block)
            documents = [[document] for row in range(len(plan.rows)) for document in plan.documents(row)]
            arrays = assemble_rows(documents, store, run, 1, EOS, separators)
            for (document,), targets, labels in zip(documents, arrays["targets_BT"], arrays["label_mask_BT"]):
                tokens = targets[: document.length]
                first = document.length - labels.sum()
                ours[document.task, document.example].append((tuple(tokens[:first]), tuple(tokens[first:])))
            block += 1
    mixture = to_seqio(sized, run=run)
    different = 0
    for task in manifest.tasks:
        if task.examples >= 200:
            continue
        theirs = list(get_dataset(f"cached:{task.name}", num_epochs=2))
        assert len(theirs) == 2 * task.examples
        for number, example in enumerate(theirs):
            row = tuple(example["inputs"]), tuple(example["targets"])
            assert row in ours[task.name, number % task.examples]
            again = theirs[number % task.examples]
            different += row != (tuple(again["inputs"]), tuple(again["targets"]))
    assert (different > 20) == (demonstrations is not None)
    assert {task.name for task in mixture.tasks} == {f"cached:{task.name}" for task in manifest.tasks}


def test_a_run_has_its_tasks_and_rates_in_seqio(sized):
    run = Data(NAME, "", eps=100, scale_tasks=3, proportions="natural")
    mixture = to_seqio(sized, run=run)
    chosen = selected(Manifest.read(sized), run)
    ours = probabilities(chosen, 100, "natural")
    rates = {task.name.removeprefix("cached:"): mixture.get_rate(task) for task in mixture.tasks}
    assert rates.keys() == ours.keys() and len(rates) == 3
    assert all(abs(rate / sum(rates.values()) - ours[name]) < 1e-9 for name, rate in rates.items())
    with pytest.raises(UserError, match="token_shares"):
        to_seqio(sized, run=dataclasses.replace(run, token_shares={NAME: 0.5}))


def test_what_cannot_be_found_or_read_is_said(manifest, tmp_path):
    with pytest.raises(UserError, match=r"sample; did you mean samples.*CACHE_DIR"):
        to_seqio("sample")
    with pytest.raises(UserError, match=r"nothing/mixtures/m/m\.json"):
        to_seqio(tmp_path / "nothing" / "mixtures" / "m" / "m.json")
    with pytest.raises(UserError, match=r"eps, proportions and run.*manifest"):
        to_seqio("samples", eps=3)
    path = next(manifest.parents[2].glob("tasks/samples.sample001*/*/train-*.index"))
    content = path.read_bytes()
    mixture = to_seqio(manifest)
    try:
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(DataError, match=f"{path.name}: damaged"):
            next(get_dataset(next(task.name for task in mixture.tasks if "sample001" in task.name)))
    finally:
        path.write_bytes(content)


def test_a_source_of_more_tokens_than_a_byte_counts_is_read(tmp_path):
    instances = [{"id": str(i), "input": "word " * 400, "output": ["x"]} for i in range(3)]
    write_task(tmp_path / "data" / NAME, "task1_long", instances)
    write_splits(tmp_path / "data" / NAME, train=["task1_long"])
    build.run(Job(NAME, str(tmp_path / "data"), str(tmp_path / "cache")), Tokenizer.load(TOKENIZER))
    name = to_seqio(only_manifest(tmp_path / "cache")).name
    task = seqio.MixtureRegistry.get(name).tasks[0]
    read = list(task.source.get_dataset("train", shuffle=False).as_numpy_iterator())
    assert len(read) == 3 and all(len(example["inputs"]) > 256 for example in read)
