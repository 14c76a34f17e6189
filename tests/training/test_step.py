"""The training step: the same on every mesh, with and without accumulation, in every precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optiml_jax.model import decoder
from optiml_jax.model.config import OPTConfig
from optiml_jax.training import loss_scale, step
from optiml_jax.training.optimizer import Optimization, learning_rate
from optiml_jax.training.step import Computation
from tests.meshes import EVERY_MESH, mesh_of

SETTINGS = Optimization(learning_rate=1e-3, train_steps=100, warmup_steps=2)
FP32 = Computation(precision="fp32", remat="full")


def losses(config, batch, mesh_name, computation=FP32, steps=4, rows=None):
    mesh = mesh_of(mesh_name)
    with jax.set_mesh(mesh):
        state = step.init_state(jax.random.key(0), config, SETTINGS, computation, mesh)
        run = step.compiled_step(config, SETTINGS, computation, mesh)
        history = []
        for i in range(steps):
            state, metrics = run(state, batch, jax.random.fold_in(jax.random.key(1), i))
            history.append(float(metrics["loss"]))
        assert run._cache_size() == 1, "the step compiled twice"
    return np.array(history), state


def dense_loss(params, batch, config, key):
    hidden = decoder.forward(
        params, batch["tokens_BT"], batch["segment_ids_BT"], batch["positions_BT"], config, dropout_key=key
    )
    log_BTV = jax.nn.log_softmax(hidden @ params["token_embedding"].T)
    nats_BT = -jnp.take_along_axis(log_BTV, batch["targets_BT"][..., None], -1)[..., 0]
    return jnp.where(batch["label_mask_BT"], nats_BT, 0).sum() / batch["label_mask_BT"].sum()


@pytest.mark.parametrize("mesh_name", EVERY_MESH)
def test_loss_and_gradients_equal_the_dense_single_device_ones_on_every_mesh(config, batch, mesh_name):
    """With dropout on: its masks do not depend on the mesh. Tolerances of the issue: 3e-6 and 1e-6."""
    key = jax.random.key(5)
    want, want_grads = jax.value_and_grad(dense_loss)(
        decoder.init_params(jax.random.key(0), config), batch, config, key
    )
    mesh = mesh_of(mesh_name)
    with jax.set_mesh(mesh):
        state = step.init_state(jax.random.key(0), config, SETTINGS, FP32, mesh)
        have, have_grads = jax.jit(lambda p, b: step.gradients(p, b, config, FP32, key))(state.params, batch)
    assert abs(float(have) - float(want)) < 3e-6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), have_grads, want_grads)


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(config, batch):
    single, _ = losses(config, batch, "1x1x1")
    eight, _ = losses(config, batch, "2x2x2")
    np.testing.assert_allclose(eight, single, atol=1e-5)
    assert single[-1] < single[0]


def test_accumulated_gradients_equal_those_of_the_whole_batch(config, batch):
    quiet = config.__class__(**{**config.__dict__, "dropout": 0.0})  # a microbatch draws its own dropout
    whole, _ = losses(quiet, batch, "1x1x1")
    parts, _ = losses(quiet, batch, "1x1x1", Computation(precision="fp32", accumulation=4))
    spread, _ = losses(quiet, batch, "2x2x2", Computation(precision="fp32", accumulation=2))
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    np.testing.assert_allclose(spread, whole, atol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_fp16_loses_no_gradient_at_the_labels_of_a_large_batch(accumulation):
    """78,720 labels, about those of a 30B batch, at OPT's initial scale 4: cotangents of 4, not of 4 / labels.

    Against float32; dividing before the backward pass lost elements. A small model: fp16 is slow on a CPU.
    """
    config = OPTConfig(vocab_size=16, layers=1, model_dim=8, heads=2, ffn_dim=8, max_positions=32)
    tokens_BT = np.random.default_rng(0).integers(4, 16, (2460, 32)).astype(np.int32)
    batch = {
        "tokens_BT": tokens_BT,
        "targets_BT": np.roll(tokens_BT, -1, 1),
        "segment_ids_BT": np.ones_like(tokens_BT),
        "positions_BT": np.broadcast_to(np.arange(32, dtype=np.int32), tokens_BT.shape),
        "label_mask_BT": np.ones(tokens_BT.shape, bool),
    }
    mesh = mesh_of("1x1x1")
    with jax.set_mesh(mesh):
        params = step.init_state(jax.random.key(0), config, SETTINGS, FP32, mesh).params

        def grads(precision, scale):
            computation = Computation(precision=precision, accumulation=accumulation, attention="dense")
            result = jax.jit(lambda p, b: step.gradients(p, b, config, computation, None, scale))(params, batch)[1]
            return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result)])

        want, have = grads("fp32", 1.0), grads("fp16", loss_scale.INITIAL)
    present = want != 0
    assert np.isfinite(have).all() and np.count_nonzero(have[present] == 0) == 0
    assert np.median(np.abs(have - want)[present] / np.abs(want[present])) < 0.005


def test_optimizer_state_is_sharded_like_its_parameters(config):
    mesh = mesh_of("2x2x2")
    with jax.set_mesh(mesh):
        state = step.init_state(jax.random.key(0), config, SETTINGS, FP32, mesh)
    moments = state.optimizer[1].mu
    jax.tree.map(
        lambda m, p: m.sharding == p.sharding or pytest.fail(f"{m.sharding} {p.sharding}"), moments, state.params
    )
    assert moments["blocks"]["up"]["kernel"].sharding.shard_shape((3, 64, 128)) == (3, 32, 64)


def test_an_update_is_adam_with_clipping_in_float64(config, batch):
    """Against Adam written out in float64 from the step's own gradients."""
    mesh = mesh_of("1x1x1")
    with jax.set_mesh(mesh):
        state = step.init_state(jax.random.key(0), config, SETTINGS, FP32, mesh)
        before = jax.tree.map(np.asarray, state.params)
        key = jax.random.key(3)
        _, grads = jax.jit(lambda p: step.gradients(p, batch, config, FP32, key))(state.params)
        grads = jax.tree.map(lambda g: np.asarray(g, np.float64), grads)
        state, metrics = step.compiled_step(config, SETTINGS, FP32, mesh)(state, batch, key)
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    rate = 1e-3 / 2
    assert float(metrics["learning_rate"]) == pytest.approx(rate)

    def adam(parameter, gradient):
        g = gradient / max(norm, 1.0)
        return parameter - rate * g / (np.abs(g) + 1e-8)  # first step: bias-corrected moments are g and g*g

    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, adam(old, g), atol=2e-6), state.params, before, grads
    )


def test_weight_decay_is_adamw_and_none_changes_no_state(config, batch):
    """Against optax's AdamW over several updates; all parameters decay, as in OPT's training."""
    settings = dataclasses.replace(SETTINGS, weight_decay=0.1)
    params = {"kernel": jnp.linspace(-1, 1, 12).reshape(3, 4), "bias": jnp.ones(4)}
    ours = step.make_optimizer(settings)
    peer = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            lambda count: learning_rate(settings, count),
            settings.beta1,
            settings.beta2,
            settings.epsilon,
            weight_decay=0.1,
        ),
    )
    states, values = [ours.init(params), peer.init(params)], [params, params]
    for n in range(5):
        for side, optimizer in enumerate((ours, peer)):
            gradients = jax.tree.map(jnp.cos, optax.tree.scale(n + 1.0, values[side]))
            updates, states[side] = optimizer.update(gradients, states[side], values[side])
            values[side] = optax.apply_updates(values[side], updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *values)
    assert int(step.update_count(states[0])) == 5
    plain = step.make_optimizer(SETTINGS).init(params)
    assert jax.tree.structure(plain) == jax.tree.structure(
        step.make_optimizer(dataclasses.replace(settings, weight_decay=0.0)).init(params)
    )
    assert len(plain) == 3 and len(states[0]) == 4


def test_the_schedule_rises_to_the_peak_and_falls_to_zero():
    settings = Optimization(learning_rate=5e-5, train_steps=4_000, warmup_steps=60)
    rates = np.array([float(learning_rate(settings, jnp.int32(n))) for n in (0, 29, 59, 60, 2_030, 3_999, 4_000)])
    np.testing.assert_allclose(rates, 5e-5 * np.array([1 / 60, 0.5, 1, 1, 0.5, 1 / 3_940, 0]), rtol=1e-5)


def test_bf16_keeps_float32_parameters_and_moments(config, batch):
    history, state = losses(config, batch, "2x2x2", Computation(precision="bf16"))
    reference, _ = losses(config, batch, "1x1x1")
    np.testing.assert_allclose(history, reference, atol=3e-2)  # bf16 has 8 bits of mantissa
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.optimizer[1].mu))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("mesh_name", ["1x1x1", pytest.param("2x2x2", marks=pytest.mark.slow)])
def test_an_fp16_overflow_skips_the_update_and_halves_the_scale(config, batch, mesh_name):
    mesh, fp16 = mesh_of(mesh_name), Computation(precision="fp16")
    with jax.set_mesh(mesh):
        state = step.init_state(jax.random.key(0), config, SETTINGS, fp16, mesh)
        state = state._replace(scale=state.scale._replace(scale=jnp.float32(2.0**40)))
        before = jax.tree.map(np.asarray, (state.params, state.optimizer))
        run = step.compiled_step(config, SETTINGS, fp16, mesh)
        state, metrics = run(state, batch, jax.random.key(1))
        jax.tree.map(np.testing.assert_array_equal, (state.params, state.optimizer), before)
        assert float(state.scale.scale) == 2.0**39 and int(metrics["updates"]) == 0
        state = state._replace(scale=loss_scale.initial("fp16"))
        state, metrics = run(state, batch, jax.random.key(1))
        assert int(metrics["updates"]) == 1 and np.isfinite(float(metrics["loss"]))


def test_the_loss_scale_doubles_after_256_good_steps_and_stops_at_the_floor():
    state = loss_scale.initial("fp16")
    for _ in range(255):
        state = loss_scale.adjust(state, jnp.bool_(True))
    assert float(state.scale) == 4
    state = loss_scale.adjust(state, jnp.bool_(True))
    assert (float(state.scale), int(state.good)) == (8, 0)
    for _ in range(20):
        state = loss_scale.adjust(state, jnp.bool_(False))
    assert float(state.scale) == 2.0**-5


def test_optax_chain_keeps_adams_count_where_the_schedule_reads_it():
    state = step.make_optimizer(SETTINGS).init({"a": jnp.zeros(2)})
    assert isinstance(state[1], optax.ScaleByAdamState) and int(step.update_count(state)) == 0


def test_fp16_clips_gradients_that_are_divided_by_the_loss_scale(config, batch):
    """The first moment is 1 - beta1 of the gradients after clipping, whatever the scale of the loss."""
    fp16, config = Computation(precision="fp16"), dataclasses.replace(config, layers=1)
    with jax.set_mesh(mesh_of("1x1x1")):
        params = decoder.init_params(jax.random.key(0), config)
        _, grads = jax.jit(lambda p: step.gradients(p, batch, config, FP32, jax.random.key(1)))(params)
    norm = float(optax.tree.norm(grads))
    for clip_norm, scale in ((0.01, 64.0), (0.01, 1.0), (1e6, 64.0)):
        settings = dataclasses.replace(SETTINGS, clip_norm=clip_norm)
        mesh = mesh_of("1x1x1")
        with jax.set_mesh(mesh):
            state = step.init_state(jax.random.key(0), config, settings, fp16, mesh)
            state = state._replace(scale=state.scale._replace(scale=jnp.float32(scale)))
            state, metrics = step.compiled_step(config, settings, fp16, mesh)(state, batch, jax.random.key(1))
        assert int(metrics["updates"]) == 1 and float(metrics["grad_norm"]) == pytest.approx(norm, rel=0.02)
        clipped = min(float(metrics["grad_norm"]), clip_norm)
        moment = float(optax.tree.norm(state.optimizer[1].mu))
        np.testing.assert_allclose(moment, (1 - settings.beta1) * clipped, rtol=1e-5)


def test_each_microbatch_has_dropout_of_its_own(config, batch):
    """Two microbatches of equal rows: their gradient is the mean of two, of different masks."""
    assert config.dropout > 0
    key, rows = jax.random.key(5), jax.tree.map(lambda x_BT: x_BT[1:3], batch)
    params = decoder.init_params(jax.random.key(0), config)
    twice = jax.tree.map(lambda x_BT: np.repeat(x_BT, 2, 0), rows)  # microbatch i takes every second row
    with jax.set_mesh(mesh_of("1x1x1")):
        microbatch = jax.jit(lambda p, key: step.gradients(p, rows, config, FP32, key))
        alone = [microbatch(params, jax.random.fold_in(key, i)) for i in range(2)]
        twofold = dataclasses.replace(FP32, accumulation=2)
        both = jax.jit(lambda p: step.gradients(p, twice, config, twofold, key))(params)
    want = jax.tree.map(lambda a, b: (a + b) / 2, *alone)
    jax.tree.map(lambda have, mean: np.testing.assert_allclose(have, mean, atol=1e-6), both, want)
    assert abs(float(alone[0][0] - alone[1][0])) > 1e-3
