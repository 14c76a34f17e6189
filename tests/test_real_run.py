"""Super-NaturalInstructions as released, OPT's tokenizer, the shipped gin file: what a user's first real run does."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from optiml_jax.data.batches import assemble_rows
from optiml_jax.data.loader import Loader
from optiml_jax.data.settings import Data
from optiml_jax.model import decoder, head
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer
from tasks.benchmarks.samples import TOKENIZER
from tasks.caching import build
from tasks.caching.work_item import Job
from tests.conftest import ROOT
from tests.meshes import mesh_of
from tests.stores import opened
from tests.test_train import run

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
    build.run(Job("samples", None, str(directory)), Tokenizer.load(TOKENIZER))
    return directory


def loader(cache: Path, **options) -> Loader:
    store = opened(cache)
    manifest = store.manifest
    data = Data(manifest.name, str(cache), **{"batch_rows": 4, "prefetch": 0} | options)
    return Loader(store, manifest, data, pad_id=1, eos_id=2)


def test_rows_of_2048_are_99_per_cent_full(cache):
    """The mean over two blocks: rows of the end of a block are emptier than the others."""
    with loader(cache, batch_rows=256) as batches:
        fill = np.mean([next(batches).row_fill for _ in range(14)])
    assert fill > 0.99


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


def test_packing_is_invisible(cache):
    """Each real example has the label log-probabilities it has alone, and the gradients add up."""
    config = OPTConfig(layers=2, model_dim=64, heads=4, ffn_dim=128, init_scale=0.05)
    row_length = 1024 if MIXTURE in str(list(cache.glob("mixtures/*"))) else 256  # the samples are short
    with loader(cache, row_length=row_length, batch_rows=2) as batches:
        batch = next(batches)
    documents = [document for block, row in batch.rows for document in block.documents(row)]
    store = opened(cache)
    alone = assemble_rows(
        [[document] for document in documents], store, Data(MIXTURE, str(cache), row_length=row_length), 1, 2
    )
    params = decoder.init_params(jax.random.key(0), config)
    compute = jax.jit(lambda params, arrays: nats_and_gradients(params, arrays, config))
    with jax.set_mesh(mesh_of("1x1x1")):
        packed_BT, packed_gradients = compute(params, batch.arrays)
        parts = [compute(params, {name: x[i : i + 1] for name, x in alone.items()}) for i in range(len(documents))]
    alone_BT = np.concatenate([np.asarray(part[0]) for part in parts])
    assert len(documents) > 8
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
