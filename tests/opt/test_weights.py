"""Weights from and to Hugging Face, against transformers and the tree written out by hand."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from optiml_jax.opt import weights
from optiml_jax.opt.config import OPTConfig
from tests.opt.hf import VARIANTS, our_logits, params_of, torch_model

TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def write(directory: Path, config: OPTConfig, dtype="float32", form="safetensors", sharded=False) -> dict:
    """What transformers (or, for `.bin`, the torch that wrote the released files) saves; returns the state."""
    model = torch_model(config).to(TORCH[dtype])
    limit = 60_000 if sharded else 10**9
    model.save_pretrained(directory, max_shard_size=limit)
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    if form == "bin":
        for file in directory.glob("model*safetensors*"):
            if file.suffix == ".json":
                text = file.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
                (directory / "pytorch_model.bin.index.json").write_text(text)
            else:
                held = {name: state[name] for name in load_file(file)}
                torch.save(held, directory / ("pytorch_" + file.stem + ".bin"))
            file.unlink()
    return state


def equal(have: dict, want: dict) -> None:
    """The same tree to the bit."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), have, want)


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
