"""seqio's registries against the token store (same tokens) and against seqio's own rates and rules."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

from optiml_jax.common.errors import UserError
from optiml_jax.data.manifest import EPS, Manifest, TaskSize
from optiml_jax.data.sampling import probabilities
from optiml_jax.data.specification import CacheOptions
from optiml_jax.data.store import TokenStore
from optiml_jax.evaluation.metrics import Metric, rouge_l
from optiml_jax.tokenizer import Tokenizer
from tasks import seqio_tasks
from tasks.benchmarks.samples import TOKENIZER
from tasks.caching import build
from tasks.caching.work_item import Job
from tasks.catalog import mixtures, registry
from tasks.catalog.mixtures import Mixture
from tasks.prompting.subsampling import examples
from tests.stores import only_manifest, opened
from tests.tasks.conftest import NAME, write_splits, write_task
from tests.tasks.prompting.wordings import write

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def registered_anew():
    """Every test starts and ends with the catalog's tasks."""
    seqio_tasks.use_data_dir(None)
    yield
    seqio_tasks.use_data_dir(None)


def same_tokens(store: TokenStore, name: str, split: str, eos: int) -> int:
    """seqio's inputs and targets are the store's source and label, and `</s>`."""
    rows = list(seqio.get_mixture_or_task(name).get_dataset(None, split=split, shuffle=False).as_numpy_iterator())
    assert len(rows) == len(store.lengths(name, split))
    for i, row in enumerate(rows):
        ids, label_start = store.read(name, split, i)
        assert row["inputs"].tolist() == ids[:label_start].tolist()
        assert row["targets"].tolist() == [*ids[label_start:].tolist(), eos]
        assert row["id"].decode() == store.example_id(name, split, i)
    return len(rows)


def test_samples_have_the_tokens_of_the_store(tmp_path):
    tokenizer = Tokenizer.load(TOKENIZER)
    build.run(Job("samples", None, str(tmp_path)), tokenizer)
    store = opened(tmp_path)
    some = mixtures.mixture("samples").tasks(registry.discover("samples"))[::4]
    assert sum(same_tokens(store, task.name, "train", tokenizer.eos_id) for task in some) > 1000


def test_real_tasks_have_the_tokens_of_the_store(shared, tmp_path):
    directory = tmp_path / "data" / NAME
    (directory / "tasks").mkdir(parents=True)
    names = [
        "task1344_glue_entailment_classification",
        "task1566_propara_structured_text_generation",
        "task1557_jfleg_answer_generation",
    ]
    for name in names:
        (directory / "tasks" / f"{name}.json").symlink_to(shared / "data" / NAME / "tasks" / f"{name}.json")
    (directory / "splits" / "default").mkdir(parents=True)
    (directory / "splits" / "default" / "train_tasks.txt").write_text("\n".join(names))
    seqio_tasks.use_data_dir(tmp_path / "data", tokenizer=shared / "tokenizer")
    build.run(Job(NAME, str(tmp_path / "data"), str(tmp_path / "cache")), Tokenizer.load(shared / "tokenizer"))
    store = opened(tmp_path / "cache")
    counts = [
        same_tokens(store, task.name, "train", 2) for task in registry.discover(NAME, tmp_path / "data").tasks.values()
    ]
    assert len(counts) == 3 and sum(counts) == sum(
        store.stats(task.name, "train")["examples"] for task in store.manifest.tasks
    )


def test_rates_are_those_of_seqio_and_of_the_engine(data_dir, tmp_path):
    """seqio's own `mixing_rate_num_examples`, normalised, against the engine's probabilities of the cached manifest."""
    instances = [{"id": str(i), "input": f"q{i}", "output": ["x"]} for i in range(5000)]
    write_task(data_dir / NAME, "task9_large", instances)
    write_splits(data_dir / NAME, train=["task1_one", "task2_two-too", "task9_large"], test=["task3_new"])
    seqio_tasks.use_data_dir(data_dir, tokenizer=TOKENIZER)
    build.run(Job(NAME, str(data_dir), str(tmp_path / "cache")), Tokenizer.load(TOKENIZER))
    manifest = Manifest.read(only_manifest(tmp_path / "cache"))
    mixture = seqio.MixtureRegistry.get(NAME)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {f"{NAME}.task1_one": 5, f"{NAME}.task2_two_too": 150, f"{NAME}.task9_large": 4096}
    ours = probabilities(manifest, EPS)
    assert ours.keys() == rates.keys()
    for name, rate in rates.items():
        assert abs(rate / sum(rates.values()) - ours[name]) < 1e-9


def test_nested_mixtures_carry_the_stated_proportions(data_dir, monkeypatch):
    nested = Mixture("both", (NAME, "samples"), {NAME: 0.75, "samples": 0.25})
    monkeypatch.setitem(mixtures.MIXTURES, "both", nested)
    seqio_tasks.use_data_dir(data_dir, tokenizer=TOKENIZER)
    mixture = seqio.MixtureRegistry.get("both")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    benchmark = nested.discover(data_dir, CacheOptions())
    sizes = [
        TaskSize(t.name, t.benchmark, t.category, sum(1 for _ in examples(t, "train"))) for t in nested.tasks(benchmark)
    ]
    ours = probabilities(Manifest("both", tuple(sizes), nested.eps, nested.proportions))
    assert rates.keys() == ours.keys() and len(rates) == 14
    for name, rate in rates.items():
        assert abs(rate / sum(rates.values()) - ours[name]) < 1e-9


def test_every_task_and_mixture_of_the_paper_is_there_and_opt_iml_has_its_shares(tmp_path):
    """Whether or not its data are there; with those that are, seqio's rates are the engine's."""
    seqio_tasks.use_data_dir(None)
    assert {row.name for name in mixtures.PROPORTIONS for row in registry.catalog(name).values()} <= set(
        seqio.TaskRegistry.names()
    )
    for name in ("opt_iml", "opt_iml_max", *mixtures.PROPORTIONS, "dialogue"):
        result = mixtures.mixture(name)
        listed = [row for part in result.benchmarks for row in registry.catalog(part).values()]
        assert {task.name for task in seqio.MixtureRegistry.get(name).tasks} == {
            row.name for row in listed if result.exclusion(row) is None
        }
    write(tmp_path / "crossfit", **{"search_qa_train.tsv": "q\ta\n" * 3, "kilt_nq_train.tsv": "q\ta\nr\ta\n"})
    write(tmp_path / "pretrain_text", **{"a.txt": "Some text.\n"})
    seqio_tasks.use_data_dir(tmp_path, TOKENIZER, CacheOptions(missing_benchmarks="leave_out"))
    mixture = seqio.MixtureRegistry.get("opt_iml")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    shares = {name: rate / sum(rates.values()) for name, rate in rates.items()}
    both = 4 * 0.95 + 5  # CrossFit's and pre-training text's, which share what the others had
    expected = {"pretrain_text.documents": 5 / both, "crossfit.search_qa": 3.8 / both / 3}
    expected["crossfit.kilt_nq"] = 2 * expected["crossfit.search_qa"]
    assert shares == pytest.approx(expected, abs=1e-6)


def test_without_data_every_task_of_the_catalog_is_there_and_says_what_is_missing():
    assert len([name for name in seqio.TaskRegistry.names() if name.startswith(f"{NAME}.")]) == 1613
    task = seqio.TaskRegistry.get(f"{NAME}.task1344_glue_entailment_classification")
    assert set(task.output_features) == {"inputs", "targets"} and task.metric_fns[0].__name__ == "rouge_l"
    message = "super_natural_instructions is missing; set OPTIML_DATA_DIR or call tasks.seqio_tasks.use_data_dir"
    with pytest.raises(UserError, match=message):
        task.get_dataset(None, split="test")
    with pytest.raises(UserError, match=message):
        mixture = seqio.MixtureRegistry.get(NAME)
        mixture.get_rate(mixture.tasks[0])


def test_without_a_tokenizer_a_task_says_how_to_name_one(data_dir):
    seqio_tasks.use_data_dir(data_dir)
    with pytest.raises(UserError, match=r"TOKENIZER: set OPTIML_TOKENIZER or call tasks.seqio_tasks.use_data_dir"):
        seqio.TaskRegistry.get(f"{NAME}.task3_new").get_dataset(None, split="test")
    with pytest.raises(UserError, match="DATA_DIR: nowhere is not a folder"):
        seqio_tasks.use_data_dir("nowhere")


def test_a_folder_of_test_tasks_alone_registers_them_without_a_mixture(data_dir):
    write_splits(data_dir / NAME, test=["task3_new"])
    seqio_tasks.use_data_dir(data_dir, tokenizer=TOKENIZER)
    assert f"{NAME}.task3_new" in seqio.TaskRegistry.names() and NAME not in seqio.MixtureRegistry.names()


def test_an_unreadable_file_is_raised_as_our_error(data_dir):
    seqio_tasks.use_data_dir(data_dir, tokenizer=TOKENIZER)
    (data_dir / NAME / "tasks" / "task3_new.json").write_text("{")
    with pytest.raises(UserError, match=r"task3_new.json: not JSON"):
        seqio.TaskRegistry.get(f"{NAME}.task3_new").get_dataset(None, split="test")


def test_targets_are_all_references_and_metrics_are_means_over_examples(data_dir):
    seqio_tasks.use_data_dir(data_dir, tokenizer=TOKENIZER)
    task = seqio.TaskRegistry.get(f"{NAME}.task3_new")
    rows = list(task.get_dataset(None, split="test", shuffle=False).as_numpy_iterator())[:3]
    targets = [task.postprocess_fn(row["targets_pretokenized"], example=row, is_target=True) for row in rows]
    assert targets == [["yes", "Yes."]] * 3
    predictions = [
        task.postprocess_fn(text, example=row, is_target=False) for text, row in zip((" yes", "no", "yes it is"), rows)
    ]
    want = np.mean([rouge_l(prediction, ["yes", "Yes."]) for prediction in predictions])
    assert task.metric_fns[0](targets, predictions) == {"rouge_l": pytest.approx(want)} and 0 < want < 1


def test_a_metric_over_the_task_is_computed_over_the_task():
    score = seqio_tasks.metric_fn(Metric("macro_f1"))
    assert score([["A"]] * 9 + [["B"]], ["A"] * 10) == {"macro_f1": pytest.approx((2 * 9 / 19 + 0) / 2)}


def test_the_vocabulary_encodes_and_decodes_in_python_and_in_graphs():
    vocabulary, tokenizer = seqio_tasks.OptVocabulary(TOKENIZER), Tokenizer.load(TOKENIZER)
    assert (vocabulary.vocab_size, vocabulary.eos_id, vocabulary.pad_id) == (tokenizer.vocab_size, 2, 1)
    text = "The stairs were lovely.\n</s> é"
    ids = vocabulary.encode(text)
    assert ids == tokenizer.encode(text) and vocabulary.decode([*ids, 2, 5, 6]) == text
    graph = tf.function(vocabulary.encode_tf, input_signature=[tf.TensorSpec((), tf.string)])
    assert graph(tf.constant(text)).numpy().tolist() == ids
    batch = tf.constant([[*ids, 2, 5], [*ids, 2, 1]])
    assert [t.decode() for t in tf.function(vocabulary.decode_tf)(batch).numpy()] == [text, text]
    assert vocabulary == seqio_tasks.OptVocabulary(str(TOKENIZER)) and vocabulary != seqio_tasks.OptVocabulary(None)


def test_importing_seqio_tasks_registers_them_and_the_environment_says_where(data_dir):
    """In a fresh process, as t5x does; `import tasks` and all that the two jobs import are without seqio."""
    code = """
import tasks.seqio_tasks, seqio
mixture = seqio.get_mixture_or_task("super_natural_instructions")
row = next(iter(mixture.get_dataset(None, "train", shuffle=False, num_epochs=1)))
print(len(mixture.tasks), row["targets"][-1].numpy())
"""
    environment = {**os.environ, "OPTIML_DATA_DIR": str(data_dir), "OPTIML_TOKENIZER": str(TOKENIZER)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "2"], done.stderr  # two tasks; a target ends in </s>
    code = (
        "import sys, tasks, tasks.caching.build, tasks.suites.ledger_job, tools.cache_tasks;"
        "print(bool({'seqio', 'tensorflow', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr
