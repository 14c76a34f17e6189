"""Damaged weights: one line each, naming what is wrong and where."""

import dataclasses
import fnmatch
import itertools
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
import torch

from optiml_jax import weights
from optiml_jax.common.errors import UserError
from optiml_jax.tokenizer import Tokenizer
from optiml_jax.weights import source
from tests.conftest import ROOT
from tests.hf import VARIANTS, write


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A directory with sharded safetensors and its single `.bin` twin."""
    root = tmp_path_factory.mktemp("good")
    write(root / "safetensors", VARIANTS["pre_norm"], sharded=True)
    write(root / "bin", VARIANTS["pre_norm"], form="bin")
    return root


def refused(directory: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        weights.load_hf(directory, VARIANTS["pre_norm"])
    assert "\n" not in str(caught.value)


def edit_index(directory: Path, edit) -> None:
    file = directory / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    edit(index["weight_map"])
    file.write_text(json.dumps(index))


def edit_bin(directory: Path, edit) -> None:
    state = torch.load(directory / "pytorch_model.bin", weights_only=True)
    edit(state)
    torch.save(state, directory / "pytorch_model.bin")


def cut(file: Path, keep: float) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])


@pytest.mark.parametrize("keep", [0, 1e-4, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_truncated_file_is_refused(form, keep, good, tmp_path):
    shutil.copytree(good / form, tmp_path / "x")
    file = sorted((tmp_path / "x").glob(f"*.{form}"))[-1]
    cut(file, keep)
    refused(tmp_path / "x", f"{file.name}: .*(truncated|damaged)")


def test_missing_and_surplus_shards_are_refused(good, tmp_path):
    for name, damage, message in [
        ("missing", lambda d: d.joinpath("model-00002-of-00008.safetensors").unlink(), "00002.*missing, but"),
        (
            "surplus",
            lambda d: shutil.copy(*[d / f"model-0000{n}-of-00008.safetensors" for n in (1, 9)]),
            "00009.*not listed in",
        ),
        ("index", lambda d: d.joinpath("model.safetensors.index.json").unlink(), "index.json: missing beside"),
        ("empty", lambda d: [file.unlink() for file in d.glob("model*")], "no model.safetensors"),
        ("name", lambda d: edit_index(d, lambda m: m.popitem()), "is not in the index"),
        ("path", lambda d: edit_index(d, lambda m: m.update(x="../x.safetensors")), "index.json: damaged"),
        (
            "other",
            lambda d: edit_index(d, lambda m: m.update({"model.decoder.zzz": "model-00001-of-00008.safetensors"})),
            "model.decoder.zzz is missing, but the index names it",
        ),
        (
            "single",
            lambda d: shutil.copy(d / "model-00001-of-00008.safetensors", d / "model.safetensors"),
            "unexpected beside",
        ),
    ]:
        directory = shutil.copytree(good / "safetensors", tmp_path / name)
        assert len(list(directory.glob("*.safetensors"))) == 8
        damage(directory)
        refused(directory, message)


def test_wrong_tensors_are_refused_by_name(good, tmp_path):
    fc1 = "model.decoder.layers.2.fc1.weight"
    embedding = "model.decoder.embed_tokens.weight"

    def nan(state: dict) -> None:
        state[fc1][3, 5] = float("nan")

    for name, edit, message in [
        ("shape", lambda s: s.update({fc1: s[fc1][:-1]}), r"layers.2.fc1.weight has shape \(95, 64\).*\(96, 64\)"),
        ("vocabulary", lambda s: s.update({embedding: s[embedding][:-1]}), r"embed_tokens.*\(159, 64\).*\(160, 64\)"),
        ("missing", lambda s: s.pop(fc1), "layers.2.fc1.weight is missing"),
        ("surplus", lambda s: s.update({fc1.replace("2", "3"): s[fc1]}), "layers.3.fc1.weight is not part"),
        ("twice", lambda s: s.update({fc1.removeprefix("model."): s[fc1]}), "layers.2.fc1.weight .*twice"),
        ("nan", nan, "pytorch_model.bin: tensor layers.2.fc1.weight .*NaN"),
        ("integer", lambda s: s.update({fc1: s[fc1].long()}), "fc1.weight is int64"),
        ("untied", lambda s: s.update({"lm_head.weight": s[embedding] + 1}), "lm_head.weight differs"),
        ("list", lambda s: s.update(x=[1]), "not a state dictionary"),
    ]:
        directory = shutil.copytree(good / "bin", tmp_path / name)
        edit_bin(directory, edit)
        refused(directory, message)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["embed_tokens", "layers.1.fc2", "layers.0.self_attn.q_proj", "final_layer_norm"])
def test_values_that_are_not_finite_are_refused_wherever_they_are(good, tmp_path, value, name):
    """In the first, a middle and the last element, for stacked layers, layers of their own, and integers."""
    for place in (0, 1234, -1):
        directory = shutil.copytree(good / "bin", tmp_path / str(place))

        def edit(state: dict) -> None:
            tensor = state[f"model.decoder.{name}.weight"].view(-1)
            tensor[place % len(tensor)] = value  # noqa: B023

        edit_bin(directory, edit)
        config = weights.read_config(directory)
        for separate, kernels in itertools.product((False, True), ("float", "int8")):
            with pytest.raises(UserError, match=f"{name}.weight has NaN or infinite values"):
                weights.load(directory, dataclasses.replace(config, kernels=kernels), separate=separate)


def test_weights_too_large_for_the_dtype_are_refused(good, tmp_path):
    directory = shutil.copytree(good / "bin", tmp_path / "x")
    edit_bin(directory, lambda state: state["model.decoder.layers.0.fc2.bias"].fill_(1e5))
    params = weights.load_hf(directory, VARIANTS["pre_norm"])
    with pytest.raises(UserError, match=r"layers.0.fc2.bias .*NaN or infinite.*float16"):
        weights.load_hf(directory, VARIANTS["pre_norm"], dtype=jnp.float16)
    with pytest.raises(UserError, match=r"layers.0.fc2.bias .*too large for float16"):
        weights.save_hf(params, VARIANTS["pre_norm"], None, tmp_path / "out", dtype=jnp.float16)
    assert not list(tmp_path.glob("out*"))


class Foreign:
    def __reduce__(self):
        return os.mkdir, ("was_run",)


def test_a_pickle_is_not_run(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = shutil.copytree(good / "bin", tmp_path / "x")
    edit_bin(directory, lambda state: state.update(x=Foreign()))
    refused(directory, r"pytorch_model.bin: .*posix.mkdir.*not run")
    assert not (tmp_path / "was_run").exists()
    torch.save({"x": Foreign()}, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    refused(directory, r"pytorch_model.bin: .*posix.mkdir.*not run")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("keep", [1e-4, 0.02, 0.5, 0.999])
def test_a_truncated_file_of_torch_before_1_6_is_refused(keep, good, tmp_path):
    directory = shutil.copytree(good / "bin", tmp_path / "x")
    file = directory / "pytorch_model.bin"
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    weights.load_hf(directory, VARIANTS["pre_norm"])
    cut(file, keep)
    refused(directory, "pytorch_model.bin: .*(truncated|damaged)")
    file.write_bytes(pickle.dumps({"a": 1}))
    refused(directory, "a pickle that is not torch's")


def test_a_damaged_safetensors_header_is_refused(good, tmp_path):
    directory = tmp_path / "x"
    directory.mkdir()
    for header, message in [
        (b"{", "header is damaged"),
        (b"[]", "header is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "does not match"),
        (b'{"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}', "tensor a is I64"),
        (b'{"a": {"dtype": "F32", "shape": [2]}}', "header is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}', "header is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', "header is damaged"),
        (b"{}", "longer than its header says"),
    ]:
        (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
        refused(directory, f"model.safetensors: .*{message}")


def test_an_architecture_that_is_not_ours_is_refused(tmp_path):
    file = tmp_path / "config.json"
    for content, message in [
        ({"model_type": "llama"}, "architecture 'llama' is unknown"),
        ([], "architecture 'list' is unknown"),
        ({"architectures": ["OPTForSequenceClassification"]}, "'OPTForSequenceClassification' is unknown"),
        ({"activation_function": "silu"}, "'silu' is unknown"),
        ({"layer_norm_elementwise_affine": False}, "layer norms without scale"),
        ({"tie_word_embeddings": False}, "output projection"),
        ({"_remove_final_layer_norm": True}, "without the final norm"),
        ({"num_attention_heads": 7}, "not a multiple of heads 7"),
        ({"num_hidden_layers": "12"}, "num_hidden_layers is '12'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ]:
        file.write_text(json.dumps({"model_type": "opt"} | content if isinstance(content, dict) else content))
        with pytest.raises(UserError, match=f"config.json: .*{message}"):
            weights.read_config(tmp_path)
    file.write_text('{"model_type": "opt"')
    with pytest.raises(UserError, match="not readable as JSON"):
        weights.read_config(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"config.json: missing"):
        weights.read_config(tmp_path)


def test_code_beside_a_model_is_never_run(tmp_path):
    """The configuration, model and tokenizer name Python classes in the folder ("auto_map", as on the hub)."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    config = VARIANTS["pre_norm"]
    write(folder, config)
    shutil.copytree(ROOT / "tasks" / "samples" / "tokenizer", folder, dirs_exist_ok=True)
    code = f"open({str(ran)!r}, 'w').close()\n"
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil", "setup", "conftest", "__init__"):
        (folder / f"{name}.py").write_text(code)
    maps = {"AutoConfig": "configuration_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    for name, auto_map in (
        ("config", maps),
        ("tokenizer_config", {"AutoTokenizer": ["tokenization_evil.Tokens", None]}),
    ):
        file = folder / f"{name}.json"
        content = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(content | {"auto_map": auto_map, "trust_remote_code": True}))
    assert weights.read_config(folder).layers == config.layers
    weights.load(folder, config)
    Tokenizer.load(folder)
    words = [sys.executable, "-m", "tools.convert_weights", f"--source={folder}", f"--target={tmp_path / 'run'}"]
    subprocess.run([*words, "--to=orbax"], cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)
    assert not ran.exists()


def test_only_data_are_downloaded_from_the_hub():
    patterns = [*source.SMALL_FILES, *source.SAFETENSORS, *source.BIN]
    files = ["modeling_evil.py", "tokenizer_evil.py", "tokenization.so", "handler.py", "pytorch_model.bin.py"]
    assert not any(fnmatch.fnmatch(file, pattern) for file in files for pattern in patterns)
