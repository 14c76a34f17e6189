"""Training a part of the parameters: what changes, what is saved, and what goes on."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optiml_jax import weights
from optiml_jax.checkpoints.runs import read_run, read_run_config
from optiml_jax.common.errors import UserError
from optiml_jax.data.settings import Data
from optiml_jax.evaluation.validation import Validation
from optiml_jax.inference.model import load_model
from optiml_jax.model import decoder, int8, sharding, trainable
from optiml_jax.model.adapter import Lora, merge
from optiml_jax.training import start, step
from optiml_jax.training.hooks import Logging
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.run import train
from optiml_jax.training.step import Computation
from optiml_jax.weights import save_hf
from tasks.caching.work_item import Job
from tests.meshes import mesh_of
from tests.tasks.conftest import ask
from tests.training.test_hooks import MODEL, cache  # noqa: F401 - a fixture
from tools import convert_weights

LORA, LOGGING = Lora(rank=4, alpha=8), Logging(log_every=1, checkpoint_every=3)


def leaves(tree: dict) -> dict[str, jax.Array]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("lora", "bf16"),
        ("biases", "fp32"),
        ("embeddings", "bf16"),
        pytest.param("lora", "fp32", marks=pytest.mark.slow),
        pytest.param("lora", "fp16", marks=pytest.mark.slow),
        pytest.param("biases", "bf16", marks=pytest.mark.slow),
    ],
)
def test_only_what_is_trained_changes_and_has_moments(config, batch, name, precision):
    config = dataclasses.replace(config, adapter=LORA if name == "lora" else None)
    settings = Optimization(learning_rate=1e-3, train_steps=10, warmup_steps=1, trainable=name)
    computation, mesh = Computation(precision=precision), mesh_of("1x1x1")
    with jax.set_mesh(mesh):
        state = step.init_state(jax.random.key(0), config, settings, computation, mesh)
        before, moments = jax.tree.map(np.asarray, state), leaves(state.optimizer[1].mu)
        for number in range(2):  # the first update of A is zero, as B is
            state, metrics = step.compiled_step(config, settings, computation, mesh)(
                state, batch, jax.random.fold_in(jax.random.key(1), number)
            )
    trained, frozen = leaves(before.trainable), leaves(before.frozen)
    assert moments.keys() == trained.keys() and not trained.keys() & frozen.keys()
    assert (
        leaves(state.params).keys() == leaves(decoder.abstract_params(config)).keys() == trained.keys() | frozen.keys()
    )
    assert {str(x.dtype) for x in trained.values()} == {"float32"}
    types = {str(x.dtype) for path, x in frozen.items() if "norm" not in path}
    assert types == {{"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[precision]}
    assert all(np.array_equal(leaves(state.frozen)[path], x) for path, x in frozen.items())
    changed = {path for path, x in trained.items() if not np.array_equal(leaves(state.trainable)[path], x)}
    assert changed == trained.keys() and np.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize(
    ("mesh_name", "accumulation"),
    [("1x1x1", 2), ("2x2x2", 1), *(pytest.param(name, 2, marks=pytest.mark.slow) for name in ("2x2x2", "1x1x8"))],
)
def test_meshes_and_microbatches_give_the_same_adapters(config, batch, mesh_name, accumulation):
    config = dataclasses.replace(config, adapter=LORA, dropout=0.0)
    settings = Optimization(learning_rate=1e-2, train_steps=10, warmup_steps=1, trainable="lora", epsilon=1e-4)

    def run(mesh, computation):
        with jax.set_mesh(mesh):
            state = step.init_state(jax.random.key(0), config, settings, computation, mesh)
            for number in range(3):
                key = jax.random.fold_in(jax.random.key(1), number)
                state, metrics = step.compiled_step(config, settings, computation, mesh)(state, batch, key)
        return jax.tree.map(np.asarray, state.trainable), float(metrics["loss"])

    # Microbatches of eight rows are split over four batch parts at most.
    have, loss = run(mesh_of(mesh_name), Computation(precision="fp32", accumulation=accumulation))
    want, want_loss = run(mesh_of("1x1x1"), Computation(precision="fp32"))
    assert abs(loss - want_loss) < 3e-6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), have, want)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Weights to start from."""
    directory = tmp_path_factory.mktemp("base") / "weights"
    params = jax.jit(lambda: decoder.init_params(jax.random.key(7), MODEL))()
    save_hf(jax.tree.map(lambda x: x * 8, params), MODEL, None, directory)
    return directory


def run(
    cache,  # noqa: F811
    directory,
    base,
    steps=6,
    adapter=LORA,
    name="lora",
    hooks=(),
    kernels="float",
    logging=LOGGING,
    **options,
):
    data = Data("samples", cache, row_length=128, batch_rows=2, block_draws=64)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    optimization = Optimization(learning_rate=3e-2, train_steps=steps, warmup_steps=1, trainable=name)
    model = dataclasses.replace(MODEL, adapter=adapter, kernels=kernels)
    settings = model, optimization, Computation(precision="fp32"), data, mesh, logging
    return train(*settings, str(directory), None if base is None else str(base), hooks=hooks, **options)


@pytest.mark.parametrize("name", ["all", "lora", "biases", "embeddings"])
@pytest.mark.parametrize("from_run", [False, True])
def test_frozen_parameters_are_loaded_in_the_compute_dtype(base, finished, name, from_run):
    """Trained parameters are float32 and equal the stored ones; the frozen parameters of the same load are bfloat16."""
    source = str(finished[0] if from_run else base)
    exact = load_model(source).params if from_run else weights.load(base, MODEL)
    optimization = Optimization(trainable=name)
    config = dataclasses.replace(MODEL, adapter=LORA if name == "lora" else None)
    dtypes = step.abstract_state(config.base, optimization, Computation(precision="bf16")).params
    fingerprint = read_run_config(finished[0])[1]["settings"]["tokenizer"]
    params = start.read_weights(source, config, mesh_of("1x1x1"), fingerprint, dtypes)
    trained, frozen = map(leaves, trainable.split(params, name))
    assert len(trained) + len(frozen) == len(leaves(exact)) and bool(trained) == (name != "lora")
    assert {x.dtype.name for path, x in frozen.items() if "norm" not in path} == ({"bfloat16"} if frozen else set())
    for path, leaf in trained.items():
        assert leaf.dtype == jnp.float32 and np.array_equal(leaf, leaves(exact)[path]), path


@pytest.fixture(scope="module")
def finished(cache, base, tmp_path_factory):  # noqa: F811
    directory, seen = tmp_path_factory.mktemp("lora") / "run", {}
    record = run(
        cache, directory, base, hooks=[(6, lambda number, params: seen.update(jax.tree.map(np.asarray, params)))]
    )
    return directory, record, seen


@pytest.mark.parametrize("start", ["weights", pytest.param("random", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(cache, base, finished, tmp_path, start):  # noqa: F811
    if start == "weights":
        whole, record, _ = finished
    else:
        base, whole = None, tmp_path / "whole"
        record = run(cache, whole, None)
    shutil.copytree(whole, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "6")
    again = run(cache, tmp_path / "again", base)
    assert [row["loss"] for row in again.metrics] == [row["loss"] for row in record.metrics]
    for directory in (whole, tmp_path / "again"):
        model = load_model(directory)
        assert model.config == MODEL
    jax.tree.map(np.testing.assert_array_equal, load_model(whole).params, load_model(tmp_path / "again").params)


def test_a_checkpoint_holds_the_adapters_and_is_read_merged_and_not(finished, base):
    directory, _, seen = finished
    step_folder = directory / "checkpoints" / "6"
    size = sum(path.stat().st_size for path in step_folder.rglob("*") if path.is_file())
    assert size < 0.8 * sum(path.stat().st_size for path in base.glob("*.safetensors"))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    config, apart, _ = read_run(directory, mesh, merged=False)
    assert config == dataclasses.replace(MODEL, adapter=LORA)
    jax.tree.map(np.testing.assert_array_equal, apart, seen)
    model = load_model(directory)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), model.params, merge(apart, LORA))
    tokens_BT = np.random.default_rng(0).integers(4, 1500, (2, 40)).astype(np.int32)
    ones_BT, positions_BT = np.ones_like(tokens_BT), np.tile(np.arange(40, dtype=np.int32), (2, 1))
    logits = [
        decoder.project_vocabulary(decoder.forward(p, tokens_BT, ones_BT, positions_BT, c), p["token_embedding"])
        for p, c in ((apart, config), (model.params, MODEL))
    ]
    np.testing.assert_allclose(*logits, atol=1e-5 * float(jnp.abs(logits[0]).max()))


def test_validation_keeps_the_best_adapters(cache, base, finished, tmp_path):  # noqa: F811
    """The whole model is validated; `best` holds what was trained, and is read like the run."""
    ask(Job("samples", None, cache))
    validation = Validation(every=3, mixture="samples", cache_dir=cache, limit=1, max_new_tokens=2)
    run(cache, tmp_path / "run", base, validation=validation)
    best = load_model(tmp_path / "run" / "best")
    assert best.config == MODEL and leaves(best.params).keys() == leaves(decoder.abstract_params(MODEL)).keys()


def test_another_base_is_refused_by_name(cache, base, finished, tmp_path):  # noqa: F811
    directory, _, _ = finished
    shutil.copytree(directory, tmp_path / "run")
    other = tmp_path / "weights"
    save_hf(decoder.init_params(jax.random.key(8), MODEL), MODEL, None, other)
    with pytest.raises(UserError, match=r"was started with train\.init_weights = .*, now it is .*weights"):
        run(cache, tmp_path / "run", other, steps=9)
    shutil.copytree(base, tmp_path / "moved")
    run(cache, tmp_path / "run", tmp_path / "moved", steps=9)  # the same weights elsewhere
    shutil.rmtree(tmp_path / "moved")
    for change in (lambda: None, lambda: shutil.copytree(other, tmp_path / "moved")):
        change()
        with pytest.raises(
            UserError, match=r"trained a part of the parameters of .*moved, which is not there or has changed"
        ):
            load_model(tmp_path / "run")
    with pytest.raises(UserError, match=r"OPTConfig\.adapter = .*'rank': 4.*, now it is .*'rank': 8"):
        run(cache, directory, base, adapter=Lora(rank=8, alpha=8))
    with pytest.raises(UserError, match=r"Optimization\.trainable is 'all'; to train adapters set both"):
        run(cache, tmp_path / "new", base, name="all")


@pytest.mark.parametrize("start", ["weights", pytest.param("run", marks=pytest.mark.slow), "peft"])
def test_a_run_on_int8_kernels_resumes_to_the_bit_and_is_merged(cache, base, finished, tmp_path, start):  # noqa: F811
    """The merged model has the int8 kernels that were trained on, not the float weights before rounding."""
    if start == "run":
        base = finished[0]
    elif start == "peft":
        words = [f"--source={finished[0]}", f"--target={tmp_path / 'peft'}", "--to=peft"]
        convert_weights.main(words)
        base = tmp_path / "peft"
    steps, seen = (6, {}) if start == "weights" else (3, {})
    hooks = [(steps, lambda number, params: seen.update(jax.tree.map(np.asarray, params)))]
    record = run(cache, tmp_path / "run", base, steps, kernels="int8", hooks=hooks)
    assert seen["blocks"]["up"]["kernel"].dtype == np.int8
    model = load_model(tmp_path / "run")
    assert model.config == MODEL
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)  # noqa: E731
    jax.tree.map(close, model.params, merge(seen, LORA))
    params = weights.load(base, MODEL) if start == "weights" else load_model(finished[0]).params
    float_kernel = params["blocks"]["up"]["kernel"]
    rounded = merge(int8.quantize_blocks({"blocks": {"up": {"kernel": float_kernel}}}, seen), None)
    close(
        seen["blocks"]["up"]["kernel"] * seen["blocks"]["up"]["kernel_scale"][:, None],
        rounded["blocks"]["up"]["kernel"],
    )
    if start == "weights":
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
        again = run(cache, tmp_path / "run", base, kernels="int8")
        assert [row["loss"] for row in again.metrics] == [row["loss"] for row in record.metrics]
        with pytest.raises(UserError, match=r"OPTConfig\.kernels = int8, now it is float"):
            run(cache, tmp_path / "run", base)
        with pytest.raises(UserError, match=r"OPTConfig\.kernels: int8 matrices cannot be trained"):
            run(cache, tmp_path / "new", base, adapter=None, name="all", kernels="int8")


def test_what_more_steps_do_to_the_learning_rate_is_printed(cache, base, finished, tmp_path, capsys):  # noqa: F811
    """After step 6 of 8, with one of warm-up, 2 / 7 of the peak of 0.03 are left."""
    shutil.copytree(finished[0], tmp_path / "run")
    run(cache, tmp_path / "run", base, steps=6)
    assert "TRAIN_STEPS" not in capsys.readouterr().out
    run(cache, tmp_path / "run", base, steps=8)
    assert "TRAIN_STEPS was 6 and is 8" in (out := capsys.readouterr().out)
    assert "goes on at step 6 with 0.0086 instead of 0\n" in out


def test_a_run_may_start_from_one_with_adapters(cache, finished, tmp_path):  # noqa: F811
    directory, _, _ = finished
    first = {}
    hooks = [(1, lambda number, params: first.setdefault("loss", number))]
    record = run(cache, tmp_path / "next", directory, steps=1, adapter=None, name="biases", hooks=hooks)
    assert first and np.isfinite(record.metrics[0]["loss"])
    kernel = load_model(tmp_path / "next").params["blocks"]["query"]["kernel"]
    np.testing.assert_array_equal(kernel, load_model(directory).params["blocks"]["query"]["kernel"])


def test_parts_are_joined_to_the_whole(config):
    params = decoder.abstract_params(dataclasses.replace(config, adapter=LORA))
    for name in trainable.TRAINABLE:
        trained, frozen = trainable.split(params, name)
        assert leaves(trainable.join(trained, frozen)).keys() == leaves(params).keys()
        assert bool(leaves(frozen)) == (name != "all") and leaves(trained)
