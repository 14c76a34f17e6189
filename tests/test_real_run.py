"""Super-NaturalInstructions as released, OPT's tokenizer, the shipped gin file: what a user's first real run does."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from optiml_jax.data.batches import assemble_rows
from optiml_jax.data.demonstrations import NONE, separator_ids
from optiml_jax.data.loader import Loader
from optiml_jax.data.settings import Data
from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.prompts.ledger import read_ledger
from optiml_jax.model import decoder, head
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer
from tasks.catalog import registry
from tests.conftest import ROOT
from tests.meshes import mesh_of
from tests.stores import opened
from tests.test_train import run
from tools import cache_tasks

MIXTURE = "super_natural_instructions"


@pytest.fixture(scope="module")
def real_cache(shared, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("real") / "cache"
    command = [sys.executable, "-m", "tools.cache_tasks", f"--mixture={MIXTURE}", f"--data_dir={shared / 'data'}"]
    command += [f"--cache_dir={directory}", f"--tokenizer={shared / 'tokenizer'}"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return directory


@pytest.fixture(scope="module", params=[pytest.param("samples", marks=pytest.mark.slow), MIXTURE])
def cache(request, tmp_path_factory) -> Path:
    """A store of the samples, and one of real tasks where they are at hand."""
    if request.param == MIXTURE:
        return request.getfixturevalue("real_cache")
    directory = tmp_path_factory.mktemp("samples")
    cache_tasks.main(["--mixture=samples", f"--cache_dir={directory}"])
    return directory


def loader(cache: Path, **options) -> Loader:
    store = opened(cache)
    manifest = store.manifest
    data = Data(manifest.name, str(cache), **{"batch_rows": 4, "prefetch": 0} | options)
    encode = Tokenizer.load(store.tokenizer_path).encode
    return Loader(store, manifest, data, pad_id=1, eos_id=2, separators=separator_ids(data, encode))


@pytest.mark.parametrize("demonstrations", [None, 2.0])
def test_rows_of_2048_are_99_per_cent_full(cache, demonstrations):
    """The mean over two blocks: rows of the end of a block are emptier than the others."""
    with loader(cache, batch_rows=256, demonstrations=demonstrations) as batches:
        fill = np.mean([next(batches).row_fill for _ in range(14)])
    assert fill > (0.995 if demonstrations else 0.99)


def test_no_example_is_its_own_demonstration_and_none_is_held_out(cache):
    """Every example of every task, over three passes."""
    with loader(cache, demonstrations=0.3) as batches:
        demonstrator = batches.demonstrator
    store = opened(cache)
    evaluated = {
        (prompt.task, prompt.example_id)
        for path in store.manifest.ledgers.values()
        for prompt in read_ledger(store.directory / path)
    }
    shown = 0
    for index, name in enumerate(demonstrator.names):
        count = len(store.lengths(name, "train"))
        ids = "".join(path.read_text() for path in sorted(store.content(name).glob("*.ids"))).split("\n")[:-1]
        assert len(ids) == count and not evaluated & {(name, id_) for id_ in ids}
        for pass_ in range(3):
            everything = np.full(count, index), np.arange(count), np.full(count, pass_), np.full(count, 10**6)
            drawn = demonstrator.draw(*everything)
            for example, chosen in enumerate(drawn.examples_nK.tolist()):
                names = [ids[i] for i in (example, *chosen) if i != NONE]
                assert len(set(names)) == len(names)
                shown += len(names) - 1
            assert (drawn.counts_n == (drawn.examples_nK != NONE).sum(axis=1)).all()
    assert evaluated and shown > 3 * sum(task.examples for task in store.manifest.tasks)


def test_prompts_with_demonstrations_are_those_of_the_texts(real_cache, shared):
    """Paper 2.4, Figure 6: instructions, then the demonstrations with three line breaks after each, then the example.
    Written as text from what the task renders, and tokenized in one piece: token for token, and label for label."""
    store = opened(real_cache)
    tokenizer = Tokenizer.load(store.tokenizer_path)
    benchmark = registry.discover(MIXTURE, shared / "data", CacheOptions())
    compared = 0
    with loader(real_cache, demonstrations=0.3, batch_rows=256, objective="suffix") as batches:
        batch = next(batches)
    for block, row in batch.rows[::8]:
        position, row_number = 0, batch.rows.index((block, row))
        for document in block.documents(row):
            start, position = position, position + document.length
            if not document.demonstrations:
                continue
            task = benchmark.tasks[document.task]
            ids = [store.example_id(document.task, "train", i) for i in (*document.demonstrations, document.example)]
            records = {record.id: record for record in task.read("train") if record.id in ids}
            *solved, example = (task.render(records[id_], task.templates[0]) for id_ in ids)
            text, first_answer = example.source[: example.input_start] + "\n", None
            for other in solved:
                text += other.source[other.input_start :].lstrip("\n")
                first_answer = first_answer or len(tokenizer.encode(text))
                text += f" {other.target}\n\n\n"
            text += example.source[example.input_start :].lstrip("\n") + f" {example.target}"
            expected = tokenizer.encode(text)
            place = slice(start, position)
            assert batch.arrays["tokens_BT"][row_number, place].tolist() == [2, *expected]
            assert batch.arrays["targets_BT"][row_number, place].tolist() == [*expected, 2]
            labels = batch.arrays["label_mask_BT"][row_number, place].tolist()
            assert labels == [i >= first_answer for i in range(len(expected) + 1)]
            compared += 1
    assert compared > 30


def nats_and_gradients(params: dict, arrays: dict, config: OPTConfig):
    """Nats of every position, and gradients of their sum."""

    def loss(params: dict):
        embedding_VD = params["token_embedding"]
        inputs = (arrays[name] for name in ("tokens_BT", "segment_ids_BT", "positions_BT"))
        hidden_BTD = decoder.forward(params, *inputs, config, embedding_VD=embedding_VD)
        nats_BT = head.label_nats(hidden_BTD, embedding_VD, arrays["targets_BT"], arrays["label_mask_BT"])
        return nats_BT.sum(), nats_BT

    (_, nats_BT), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return nats_BT, gradients


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"demonstrations": 0.5, "objective": "suffix"},
        pytest.param({"objective": "document"}, marks=pytest.mark.slow),
    ],
)
def test_packing_is_invisible(cache, options):
    """Each real example has the label log-probabilities it has alone, and the gradients add up."""
    config = OPTConfig(layers=2, model_dim=64, heads=4, ffn_dim=128, init_scale=0.05)
    row_length = 1024 if MIXTURE in str(list(cache.glob("mixtures/*"))) else 256  # the samples are short
    with loader(cache, row_length=row_length, batch_rows=2, **options) as batches:
        batch = next(batches)
    documents = [document for block, row in batch.rows for document in block.documents(row)]
    store = opened(cache)
    data = Data(MIXTURE, str(cache), row_length=row_length, **options)
    separators = separator_ids(data, Tokenizer.load(store.tokenizer_path).encode)
    alone = assemble_rows([[document] for document in documents], store, data, 1, 2, separators)
    assert any(document.demonstrations for document in documents) == ("demonstrations" in options)
    params = decoder.init_params(jax.random.key(0), config)
    compute = jax.jit(lambda params, arrays: nats_and_gradients(params, arrays, config))
    with jax.set_mesh(mesh_of("1x1x1")):
        packed_BT, packed_gradients = compute(params, batch.arrays)
        parts = [compute(params, {name: x[i : i + 1] for name, x in alone.items()}) for i in range(len(documents))]
    alone_BT = np.concatenate([np.asarray(part[0]) for part in parts])
    assert len(documents) > (4 if options else 8)
    np.testing.assert_allclose(
        np.asarray(packed_BT)[batch.arrays["label_mask_BT"]], alone_BT[alone["label_mask_BT"]], atol=1e-5
    )
    summed = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *(part[1] for part in parts))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(b).max()))),
        packed_gradients,
        summed,
    )


@pytest.mark.slow
def test_twenty_steps_of_the_shipped_run_on_a_cpu(real_cache, shared, tmp_path):
    """OPT-125M's shape from scratch; rows of 1,024 to save time (the longest real label has 560 tokens)."""
    settings = {
        "MODEL_DIR": str(tmp_path),
        "CACHE_DIR": str(real_cache),
        "DATA_DIR": str(shared / "data"),
        "TRAIN_STEPS": 20,
        "WARMUP_STEPS": 5,
        "LEARNING_RATE": 3e-4,
        "ROW_LENGTH": 1024,
        "BATCH_ROWS": 1,
        "PRECISION": "fp32",
        "REMAT": "none",
        "LOG_EVERY": 1,
        "train.evaluate_after": None,
    }
    run("train", settings, gin_file="opt125m_super_natural_instructions.gin")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[0]["loss"] == pytest.approx(np.log(50272), abs=0.3)  # nothing learned yet
    assert np.mean([row["loss"] for row in rows[-5:]]) < rows[0]["loss"] - 1.0
    assert np.mean([row["row_fill"] for row in rows]) > 0.99
