"""Adapters in the format of `peft`, against `peft` applied by transformers: outputs, training steps and files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft as oracle
import pytest
import torch
import transformers

from optiml_jax import weights
from optiml_jax.common.errors import UserError
from optiml_jax.model import decoder, sharding, trainable
from optiml_jax.model.adapter import Lora, merge
from optiml_jax.model.head import label_nats
from optiml_jax.weights import peft
from tests.hf import VARIANTS, write
from tests.meshes import mesh_of

CONFIG = dataclasses.replace(VARIANTS["pre_norm"], dropout=0.0)
TOKENS_BT = np.random.default_rng(0).integers(4, CONFIG.vocab_size, (2, 24)).astype(np.int32)
SHAPES = [
    Lora(4, 8.0),
    Lora(2, 3.0, targets=("value", "out"), rank_stabilized=True),
]


def logits(params: dict, config=CONFIG) -> np.ndarray:
    ones_BT, positions_BT = np.ones_like(TOKENS_BT), np.tile(np.arange(24, dtype=np.int32), (2, 1))
    hidden_BTD = decoder.forward(params, TOKENS_BT, ones_BT, positions_BT, config)
    return np.asarray(decoder.project_vocabulary(hidden_BTD, params["token_embedding"]))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base") / "weights"
    write(directory, CONFIG)
    return directory


def theirs(base, lora: Lora, seed: int = 0) -> oracle.PeftModel:
    """Their model with adapters that are not zero."""
    model = transformers.OPTForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    names = [peft.MODULES[target].rpartition(".")[2] for target in lora.targets]
    shape = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "use_rslora": lora.rank_stabilized}
    adapted = oracle.get_peft_model(model, oracle.LoraConfig(task_type="CAUSAL_LM", target_modules=names, **shape))
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1)
    return adapted.eval()


def their_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS_BT)).logits.numpy()


@pytest.mark.parametrize("lora", SHAPES)
def test_their_adapter_is_read_and_merged(base, lora, tmp_path):
    model = theirs(base, lora)
    model.save_pretrained(tmp_path / "adapter")
    assert peft.is_adapter(tmp_path / "adapter") and not peft.is_adapter(base)
    read, tree = peft.read(tmp_path / "adapter", CONFIG)
    assert read == lora
    params = trainable.join(weights.load(base, CONFIG), jax.tree.map(jnp.asarray, tree))
    want = their_logits(model)
    np.testing.assert_allclose(logits(params, dataclasses.replace(CONFIG, adapter=lora)), want, atol=2e-5)
    assert np.abs(want - logits(weights.load(base, CONFIG))).max() > 1e-3
    config = weights.read_config(tmp_path / "adapter")  # of the base that it names
    np.testing.assert_allclose(logits(weights.load(tmp_path / "adapter", config)), want, atol=2e-5)
    mesh = mesh_of("2x2x2")

    shardings = sharding.parameter_shardings(decoder.abstract_params(config), mesh)
    placed = weights.load(tmp_path / "adapter", config, shardings)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), placed, weights.load(tmp_path / "adapter", config)
    )


@pytest.mark.parametrize("lora", SHAPES)
def test_our_adapter_is_read_by_them(base, lora, tmp_path):
    rng = np.random.default_rng(1)
    config = dataclasses.replace(CONFIG, adapter=lora)
    like, _ = trainable.split(decoder.abstract_params(config), "lora")
    tree = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), like)
    (tmp_path / "adapter").mkdir()
    peft.write(tmp_path / "adapter", lora, tree, str(base))
    model = oracle.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", attn_implementation="eager").eval()
    params = trainable.join(weights.load(base, CONFIG), jax.tree.map(jnp.asarray, tree))
    np.testing.assert_allclose(logits(params, config), their_logits(model), atol=2e-5)
    np.testing.assert_allclose(logits(merge(params, lora)), their_logits(model), atol=2e-5)
    again, same = peft.read(tmp_path / "adapter", CONFIG)
    assert again == lora
    jax.tree.map(np.testing.assert_array_equal, same, tree)


def test_three_training_steps_equal_theirs(base, tmp_path):
    """The same rows, Adam of torch and of optax; its epsilon is above the rounding of the smallest gradients."""
    lora = Lora(4, 8.0)
    config = dataclasses.replace(CONFIG, adapter=lora)
    model = theirs(base, lora)
    model.save_pretrained(tmp_path / "adapter")
    _, tree = peft.read(tmp_path / "adapter", CONFIG)
    frozen, trained = weights.load(base, CONFIG), jax.tree.map(jnp.asarray, tree)
    torch_optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2, eps=1e-3)
    optimizer = optax.adam(1e-2, eps=1e-3)
    state = optimizer.init(trained)
    targets_BT, mask_BT = np.roll(TOKENS_BT, -1, 1), np.tile(np.arange(24) < 23, (2, 1))
    ones_BT, positions_BT = np.ones_like(TOKENS_BT), np.tile(np.arange(24, dtype=np.int32), (2, 1))

    def loss(trained):
        params = trainable.join(trained, frozen)
        hidden_BTD = decoder.forward(params, TOKENS_BT, ones_BT, positions_BT, config)
        return label_nats(hidden_BTD, params["token_embedding"], targets_BT, mask_BT).sum() / mask_BT.sum()

    with jax.set_mesh(mesh_of("1x1x1")):
        step = jax.jit(jax.value_and_grad(loss))
        for _ in range(3):
            have, gradients = step(trained)
            changes, state = optimizer.update(gradients, state)
            trained = optax.apply_updates(trained, changes)
            torch_optimizer.zero_grad()
            want = model(torch.tensor(TOKENS_BT), labels=torch.tensor(TOKENS_BT, dtype=torch.long)).loss
            want.backward()
            torch_optimizer.step()
            assert abs(float(have) - want.item()) < 1e-5
    model.save_pretrained(tmp_path / "trained")
    _, expected = peft.read(tmp_path / "trained", CONFIG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), trained, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora = True is not supported; write it again"),
        ({"bias": "all"}, "bias = all is not supported"),
        ({"r": "4"}, "r: expected int, got str"),
        ({"r": 3}, r"has shape \(4, \d+\); the model has \(3, "),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is empty"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\] is not supported"),
    ],
)
def test_what_cannot_be_read_is_named(base, change, message, tmp_path):
    theirs(base, SHAPES[0]).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / peft.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message) as error:
        weights.load(tmp_path / "adapter", weights.read_config(tmp_path / "adapter"))
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_model_is_named(base, tmp_path):
    theirs(base, SHAPES[0]).save_pretrained(tmp_path / "adapter")
    other = dataclasses.replace(CONFIG, layers=CONFIG.layers + 1)
    with pytest.raises(UserError, match=r"tensor base_model.*layers\.\d+.* is missing"):
        peft.read(tmp_path / "adapter", other)
    (tmp_path / "adapter" / peft.TENSORS).unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: missing"):
        peft.read(tmp_path / "adapter", CONFIG)
