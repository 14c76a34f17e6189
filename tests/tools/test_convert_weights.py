"""Converting weights there and back: no bit changes, every kind is recognised, and mistakes leave nothing behind."""

import contextlib
import dataclasses
import shutil

import jax
import numpy as np
import pytest
import torch
from transformers import OPTForCausalLM

import optiml_jax
from optiml_jax import weights
from optiml_jax.checkpoints.orbax import Checkpoints
from optiml_jax.checkpoints.runs import INIT_CONTENT, INIT_WEIGHTS, TRAINABLE, content
from optiml_jax.inference.model import Model
from optiml_jax.model import decoder, trainable
from optiml_jax.model.adapter import Lora, merge
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.hf import torch_model
from tests.meshes import mesh_of
from tests.weights.test_metaseq import write as write_metaseq
from tools import convert_weights

TOKENIZER = ROOT / "tasks" / "samples" / "tokenizer"
CONFIG = OPTConfig(vocab_size=1536, layers=2, model_dim=32, heads=2, ffn_dim=64, max_positions=64, dropout=0.0)


@pytest.fixture(scope="module")
def model():
    params = decoder.init_params(jax.random.key(3), CONFIG)
    return Model(CONFIG, params, Tokenizer.load(TOKENIZER), mesh_of("1x1x1"), source="random")


def convert(source, target, to, *more):
    convert_weights.main([f"--source={source}", f"--target={target}", f"--to={to}", *more])


def test_there_and_back_no_bit_changes(model, tmp_path, capsys):
    model.save(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", "orbax")
    convert(tmp_path / "b", tmp_path / "c", "hf")
    assert (
        "a: Hugging Face directory" in (output := capsys.readouterr().out)
        and "b: run of this project, step 0" in output
    )
    for name in ("model.safetensors", "config.json", "vocab.json", "merges.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name
    loaded = optiml_jax.load_model(tmp_path / "b")
    assert loaded.leading_eos and loaded.tokenizer.fingerprint == model.tokenizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("layout", ["consolidated", "flat_parts"])
def test_metaseq_becomes_hugging_face_in_the_type_it_has(layout, tmp_path, capsys):
    config = OPTConfig(vocab_size=160, layers=2, model_dim=64, heads=4, ffn_dim=96, max_positions=64)
    (tmp_path / "metaseq").mkdir()
    source = write_metaseq(tmp_path / "metaseq", config, layout, torch.float16)
    convert(source, tmp_path / "out", "hf")
    assert "metaseq checkpoint" in (output := capsys.readouterr().out) and "hf, float16, without a tokenizer" in output
    have, want = OPTForCausalLM.from_pretrained(tmp_path / "out").state_dict(), torch_model(config).state_dict()
    for name, tensor in want.items():
        assert have[name].dtype == torch.float16 and torch.equal(have[name], tensor.half()), name


def test_mistakes_take_one_line_and_leave_nothing(model, tmp_path, monkeypatch, capsys):
    model.save(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "run", "orbax")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("x")
    config = OPTConfig(vocab_size=160, layers=2, model_dim=64, heads=4, ffn_dim=96, max_positions=64)
    (tmp_path / "metaseq").mkdir()
    metaseq = write_metaseq(tmp_path / "metaseq", config, "consolidated")

    def refused(message, *words):
        with pytest.raises(SystemExit) as end:
            convert_weights.main(list(words))
        stderr = capsys.readouterr().err
        assert end.value.code == 2 and message in stderr and stderr.count("\n") == 1, stderr

    source, target = f"--source={tmp_path / 'a'}", f"--target={tmp_path / 'b'}"
    refused("neither a directory nor a hub name", "--source=no/where/x", target, "--to=hf")
    refused("invalid choice: 'torch'", source, target, "--to=torch")
    refused("--dtype applies only to --to=hf", source, target, "--to=orbax", "--dtype=float16")
    refused("used: exists and is not an earlier export", source, f"--target={tmp_path / 'used'}", "--to=hf")
    refused("has no tokenizer; pass one with --tokenizer", f"--source={metaseq}", target, "--to=orbax")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**4))
        patch.setattr(convert_weights, "read", None)  # the disk is looked at before anything is read
        patch.setattr(convert_weights, "read_run", None)
        for kind in ("a", "run"):
            words = f"--source={tmp_path / kind}", target, "--to=hf"
            refused("b: the export needs 0.00 GB and the disk has 0.00 GB free", *words)
        refused("b: the export needs 0.00 GB and the disk has 0.00 GB free", source, target, "--to=orbax")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", full)
    refused("b: cannot be written (No space left on device)", source, target, "--to=orbax")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "metaseq", "run", "used"]


def test_the_adapter_of_a_run_is_written_for_peft_and_merged_for_transformers(tmp_path):
    """Adapters of a run that started from exported weights."""
    lora, config = Lora(2, 4.0, targets=("query", "down")), CONFIG
    params = decoder.init_params(jax.random.key(0), dataclasses.replace(config, adapter=lora))
    trained, frozen = trainable.split(jax.tree.map(lambda x: x + 0.01, params), "lora")
    weights.save_hf(frozen, config, None, tmp_path / "base")
    settings = {INIT_WEIGHTS: str(tmp_path / "base"), INIT_CONTENT: content(str(tmp_path / "base")), TRAINABLE: "lora"}
    vocabulary = Tokenizer.load(TOKENIZER)
    settings |= {"tokenizer": vocabulary.fingerprint, "Data.leading_eos": True}
    vocabulary.save(tmp_path / "run" / "tokenizer")
    with contextlib.closing(Checkpoints(tmp_path / "run", keep=1)) as checkpoints:
        model = dataclasses.asdict(dataclasses.replace(config, adapter=lora))
        checkpoints.save_weights(3, trained, {"settings": settings, "model": model})
        checkpoints.wait()
    for to in ("peft", "hf"):
        convert_weights.main([f"--source={tmp_path / 'run'}", f"--target={tmp_path / to}", f"--to={to}"])
    want = merge(jax.tree.map(lambda x: x + 0.01, params), lora)
    for source in ("peft", "hf"):
        have = weights.load(tmp_path / source, weights.read_config(tmp_path / source))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), have, want)
    with pytest.raises(SystemExit):
        convert_weights.main([f"--source={tmp_path / 'base'}", f"--target={tmp_path / 'x'}", "--to=peft"])
    convert_weights.main(
        [f"--source={tmp_path / 'run'}", f"--target={tmp_path / 'peft'}", "--to=peft"]
    )  # replaces its own
