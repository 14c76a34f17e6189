"""Weights from and to Hugging Face, against transformers and the tree written out by hand."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from optiml_jax import weights
from optiml_jax.common.errors import UserError
from optiml_jax.model import sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.decoder import abstract_params, init_params
from optiml_jax.tokenizer import Tokenizer
from optiml_jax.weights import stored
from tests.conftest import ROOT
from tests.hf import TORCH, VARIANTS, equal, our_logits, params_of, torch_model, write
from tests.meshes import mesh_of


@pytest.mark.parametrize("variant", VARIANTS)
def test_loaded_weights_give_the_logits_of_transformers(variant, tmp_path):
    config = VARIANTS[variant]
    write(tmp_path, config)
    model = transformers.OPTForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    read = weights.read_config(tmp_path)
    assert read == OPTConfig(**vars(config) | {"dropout": 0.0})
    params = weights.load_hf(tmp_path, read)
    equal(params, params_of(model, config))
    tokens_BT = np.random.default_rng(0).integers(4, config.vocab_size, (2, 32)).astype(np.int32)
    with torch.no_grad():
        want = model(torch.tensor(tokens_BT)).logits.numpy()
    have = our_logits(params, tokens_BT, np.ones_like(tokens_BT), np.arange(32)[None].repeat(2, 0), config)
    np.testing.assert_allclose(have, want, atol=2e-5)  # float32, logits of size 1-10


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", TORCH)
def test_every_tensor_survives_the_round_trip_to_the_bit(dtype, form, sharded, tmp_path):
    config = VARIANTS["pre_norm"]
    state = write(tmp_path / "theirs", config, dtype, form, sharded)
    params = weights.load_hf(tmp_path / "theirs", config)
    weights.save_hf(params, config, None, tmp_path / "ours", dtype=dtype, max_shard_bytes=60_000 if sharded else 5e9)
    files = list((tmp_path / "ours").glob("*.safetensors"))
    assert (len(files) > 1) == sharded
    back = {name: value for file in files for name, value in load_file(file).items()}
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].dtype == TORCH[dtype]
        assert torch.equal(back[name], value), name


WRAPPED = {
    "module": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "inside": lambda name: name.replace("model.decoder.", "model._orig_mod.decoder."),
    "fsdp": lambda name: f"_fsdp_wrapped_module.{name}".replace("layers.0.", "layers.0._fsdp_wrapped_module."),
    "decoder": lambda name: name.removeprefix("model."),
    "bare": lambda name: name.removeprefix("model.decoder."),
}


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_checkpoints_of_wrapped_models_and_of_old_torch_hold_the_same_tensors(wrapper, form, tmp_path):
    config = VARIANTS["pre_norm"]
    state = write(tmp_path / "plain", config, form="bin")
    want = weights.load_hf(tmp_path / "plain", config)
    wrapped = {WRAPPED[wrapper](name): value for name, value in state.items()}
    shutil.copytree(tmp_path / "plain", tmp_path / "x", ignore=lambda *_: ["pytorch_model.bin"])
    if form == "safetensors":
        save_file({name: value.contiguous() for name, value in wrapped.items()}, tmp_path / "x" / "model.safetensors")
    else:
        torch.save(wrapped, tmp_path / "x" / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
    equal(weights.load_hf(tmp_path / "x", config), want)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_float64_is_rounded_to_float32(form, tmp_path):
    config = VARIANTS["pre_norm"]
    state = {name: value.double() * (1 + 1e-9) for name, value in write(tmp_path / "x", config, form="bin").items()}
    (tmp_path / "x" / "pytorch_model.bin").unlink()
    if form == "safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "x" / "model.safetensors")
    else:
        torch.save(state, tmp_path / "x" / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
    params = weights.load_hf(tmp_path / "x", config)
    want = state["model.decoder.embed_tokens.weight"].numpy().astype(np.float32)
    np.testing.assert_array_equal(params["token_embedding"], want)
    assert weights.stored_dtype(tmp_path / "x", config) == jnp.float32


@pytest.mark.parametrize("variant", ["pre_norm", "post_norm_projected"])
def test_a_mesh_holds_what_one_device_holds(variant, tmp_path):
    config = VARIANTS[variant]
    write(tmp_path / "theirs", config, "float16", sharded=True)
    mesh = mesh_of("2x2x2")
    shardings = sharding.parameter_shardings(abstract_params(config), mesh)
    params = weights.load_hf(tmp_path / "theirs", config, shardings)
    jax.tree.map(lambda leaf, expected: np.testing.assert_equal(leaf.sharding, expected), params, shardings)
    equal(params, weights.load_hf(tmp_path / "theirs", config))
    for source, target in ((params, "a"), (jax.tree.map(np.asarray, params), "b")):
        weights.save_hf(source, config, None, tmp_path / target)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_finite_half_precision_value_survives_the_cast_to_float32(dtype):
    """Subnormals too, which a flush to zero on the device would lose."""
    bits = np.arange(2**16, dtype=np.uint16)
    values = bits.view(stored.FLOATS[dtype])
    values = values[np.isfinite(values.astype(np.float32))]
    params = jax.jit(lambda x: x.astype(jnp.float32))(values)
    back = np.asarray(jax.jit(lambda x: x.astype(values.dtype))(params))
    np.testing.assert_array_equal(back.view(np.uint16), values.view(np.uint16))


@pytest.mark.parametrize("prefix", ["", "decoder.", "model.decoder."])
def test_every_class_that_may_have_been_saved_is_read(prefix, tmp_path):
    config = VARIANTS["pre_norm"]
    state = write(tmp_path, config)
    (tmp_path / "model.safetensors").unlink()
    state = {prefix + name.removeprefix("model.decoder."): value for name, value in state.items()}
    if prefix == "model.decoder.":  # tied, as the released `.bin` files have it; and transposed in storage
        state["lm_head.weight"] = state["model.decoder.embed_tokens.weight"]
        name = "model.decoder.layers.1.fc1.weight"
        state[name] = state[name].T.contiguous().T
    torch.save(state, tmp_path / "pytorch_model.bin")
    equal(weights.load_hf(tmp_path, config), params_of(torch_model(config), config))


@pytest.mark.parametrize("which", ["ours", "opt"])
def test_transformers_loads_an_export_and_its_tokenizer(which, request, tmp_path):
    config = OPTConfig(vocab_size=50_272, layers=1, model_dim=32, heads=2, ffn_dim=48, max_positions=32)
    ours = ROOT / "tasks" / "samples" / "tokenizer"
    tokenizer = Tokenizer.load(ours if which == "ours" else request.getfixturevalue("shared") / "tokenizer")
    params = init_params(jax.random.key(0), config)
    weights.save_hf(params, config, tokenizer, tmp_path / "model", dtype=jnp.float16)
    theirs, info = transformers.OPTForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.dtype == torch.float16
    assert theirs.generation_config.eos_token_id == theirs.config.bos_token_id == 2
    assert weights.read_config(tmp_path / "model") == config
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert their_tokenizer.pad_token_id == tokenizer.pad_id
    for text in ("Hello world", " two  spaces ", "a\n\nb\t", "naïve café 你好 🙂", "I'll don't", ""):
        ids = tokenizer.encode(text)
        assert their_tokenizer(text).input_ids == [2, *ids]
        assert their_tokenizer.decode(ids) == text
    assert Tokenizer.load(tmp_path / "model").fingerprint == tokenizer.fingerprint


def test_a_name_is_found_in_the_local_hub_cache(tmp_path, monkeypatch):
    config = VARIANTS["pre_norm"]
    snapshot = tmp_path / "models--acme--tiny/snapshots/0123abc"
    write(snapshot, config)
    (tmp_path / "models--acme--tiny/refs").mkdir()
    (tmp_path / "models--acme--tiny/refs/main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert weights.resolve("acme/tiny") == snapshot
    assert weights.is_hf(snapshot) and not weights.is_hf(tmp_path)
    with pytest.raises(UserError, match=r"no_such: .*directory.*hub name"):
        weights.resolve("no_such")


def test_an_interrupted_download_is_fetched_again(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--acme--tiny/snapshots/0123abc"
    write(snapshot, VARIANTS["pre_norm"])
    (snapshot / "model.safetensors").unlink()
    (tmp_path / "models--acme--tiny/refs").mkdir()
    (tmp_path / "models--acme--tiny/refs/main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    requests = []
    monkeypatch.setattr("optiml_jax.weights.source._download", lambda name: requests.append(name) or snapshot)
    weights.resolve("acme/tiny")
    assert requests == ["acme/tiny"]


def test_the_released_350m_configuration_is_read(tmp_path):
    """facebook/opt-350m: norms after, width 512, no final norm."""
    released = {"model_type": "opt", "hidden_size": 1024, "word_embed_proj_dim": 512, "do_layer_norm_before": False}
    released |= {"num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096, "_remove_final_layer_norm": False}
    (tmp_path / "config.json").write_text(json.dumps(released))
    want = OPTConfig(layers=24, model_dim=1024, heads=16, ffn_dim=4096, pre_norm=False, embedding_dim=512)
    assert weights.read_config(tmp_path) == want


def test_an_export_is_complete_or_not_there(tmp_path, monkeypatch):
    config = VARIANTS["pre_norm"]
    params = init_params(jax.random.key(0), config)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.json").write_text("{}")
    with pytest.raises(UserError, match="theirs: exists"):
        weights.save_hf(params, config, None, tmp_path / "theirs")
    (tmp_path / "out.partial").mkdir()  # of an export that was killed
    (tmp_path / "out").mkdir()
    weights.save_hf(params, config, None, tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").read_bytes()
    changed = jax.tree.map(lambda leaf: leaf + 1, params)

    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
        with pytest.raises(UserError, match=r"out: .*0\.00 GB .*0\.00 GB"):
            weights.save_hf(changed, config, None, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("optiml_jax.weights.save._write_json", _disk_full)
        with pytest.raises(UserError, match=r"out: cannot be written \(No space left"):
            weights.save_hf(changed, config, None, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    weights.save_hf(changed, config, None, tmp_path / "out")
    equal(weights.load_hf(tmp_path / "out", config), changed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "theirs"]


def _disk_full(*_) -> None:
    raise OSError(28, "No space left on device")
