"""metaseq checkpoints in every released layout, written here with torch, against the same Hugging Face model."""

import argparse
import collections
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from optiml_jax import weights
from optiml_jax.common.errors import UserError
from optiml_jax.model import sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.decoder import abstract_params
from tests.hf import VARIANTS, equal, params_of, torch_model
from tests.meshes import mesh_of

RENAMED = {"project_in.": "project_in_dim.", "project_out.": "project_out_dim."}
LAYER_ORDER = ("self_attn.", "self_attn_layer_norm.", "fc1.", "fc2.", "final_layer_norm.")  # as modules register them
ATTENTION_ORDER = ("qkv", "k", "v", "q", "out")


def metaseq_state(config: OPTConfig, combined: bool) -> dict[str, torch.Tensor]:
    """transformers' weights under metaseq's names; `combined` joins the projections, keys first."""
    state = {}
    for name, value in torch_model(config).state_dict().items():
        name = name.removeprefix("model.")
        if name == "lm_head.weight" or name.startswith("decoder.final_layer_norm"):
            name = name.replace("lm_head", "decoder.output_projection").replace("final_layer_norm", "layer_norm")
        for theirs, metaseqs in RENAMED.items():
            name = name.replace(theirs, metaseqs)
        state[name] = value
    if combined:
        for layer in range(config.layers):
            for kind in ("weight", "bias") if config.biases else ("weight",):
                names = [f"decoder.layers.{layer}.self_attn.{x}_proj.{kind}" for x in ("k", "v", "q")]
                state[names[0].replace("k_proj", "qkv_proj")] = torch.cat([state.pop(name) for name in names])
    return state


def part_of(state: dict, part: int, parts: int) -> dict:
    """Returns the tensors of one tensor-parallel rank."""
    held = {}
    for name, value in state.items():
        if "qkv_proj" in name:
            value = torch.cat([third.chunk(parts)[part] for third in value.chunk(3)])
        elif "fc1" in name or "embed_tokens" in name or "output_projection" in name:
            value = value.chunk(parts)[part]
        elif name.endswith(("out_proj.weight", "fc2.weight")):
            value = value.chunk(parts, dim=1)[part]
        held[name] = value.clone()
    return held


def wrappers(state: dict, config: OPTConfig) -> dict[str, list[str]]:
    """Parameters of each FSDP wrapper (every layer, and the rest) in the order of registration."""

    def place(name: str) -> tuple:
        in_attention = [name.startswith(f"self_attn.{x}_proj") for x in ATTENTION_ORDER]
        return [name.startswith(x) for x in LAYER_ORDER].index(True), in_attention[::-1], name.endswith("bias")

    by_name = {}
    for layer in range(config.layers):
        path = f"decoder.layers.{layer}"
        inside = [name.removeprefix(path + ".") for name in state if name.startswith(path + ".")]
        by_name[path] = sorted(inside, key=place)
    order = [
        "embed_tokens.",
        "project_in_dim.",
        "embed_positions.",
        "layer_norm.weight",
        "layer_norm.b",
        "project_out_dim",
    ]
    by_name[""] = [n for key in order for n in state if n.startswith(f"decoder.{key}")]
    return by_name


def flatten(state: dict, config: OPTConfig, shards: int, with_metadata: bool) -> list[dict]:
    """FSDP's local state of every shard: flat parameters padded to divide, and fairscale's description of them."""
    models = [{"decoder.version": torch.tensor([3.0])} for _ in range(shards)]
    about = [{"param_metadata": [], "buffer_names": ["decoder.version"]} for _ in range(shards)]
    for path, names in wrappers(state, config).items():
        values = [state[f"{path}.{name}" if path else name] for name in names]
        flat = torch.cat([value.reshape(-1) for value in values])
        for shard, chunk in enumerate(flat.chunk(shards)):
            padding = -(-flat.numel() // shards) - chunk.numel()
            models[shard][f"{path}.flat_param_0" if path else "flat_param_0"] = torch.nn.functional.pad(
                chunk, [0, padding]
            ).clone()
            described = {"names": names, "shapes": [x.size() for x in values], "numels": [x.numel() for x in values]}
            about[shard]["param_metadata"].append(
                {
                    "fsdp_path": path,
                    "params": {"flat_param_0": described | {"padding": padding}},
                    "no_broadcast_optim_state": False,
                    "shared_param_info": [("decoder.embed_tokens.weight", "decoder.output_projection.weight")],
                }
            )
    return [
        {"model": model} | ({"shard_metadata": metadata} if with_metadata else {})
        for model, metadata in zip(models, about)
    ]


def save(file: Path, state: dict, config: OPTConfig, parts: int) -> None:
    """With what else a checkpoint holds: the configuration, counters, an optimizer."""
    model = argparse.Namespace(
        arch="transformer_lm_megatron" if parts > 1 else "transformer_lm",
        decoder_layers=config.layers,
        decoder_embed_dim=config.model_dim,
        decoder_input_dim=config.embedding_width,
        decoder_attention_heads=config.heads,
        decoder_ffn_embed_dim=config.ffn_dim,
        decoder_normalize_before=config.pre_norm,
        activation_fn=config.activation,
        disable_bias=not config.biases,
        share_decoder_input_output_embed=True,
        no_scale_embedding=True,
        decoder_learned_pos=True,
        alibi=False,
        dropout=config.dropout,
        max_target_positions=config.max_positions,
    )
    rest = {
        "cfg": {"model": model, "task": {"tokens_per_sample": config.max_positions}},
        "extra_state": {"val_loss": np.float64(2.5), "train_iterator": collections.OrderedDict(epoch=1)},
        "last_optimizer_state": {"state": {0: {"step": 3, "exp_avg": torch.zeros(5)}}, "loss_scale": 4.0},
    }
    file.parent.mkdir(exist_ok=True)
    torch.save(state | rest, file)


def write(directory: Path, config: OPTConfig, layout: str, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint in `layout`; returns what a user would name."""
    parts = 1 if layout in ("consolidated", "shards", "flat") else 2
    state = {name: value.to(dtype) for name, value in metaseq_state(config, combined=parts > 1).items()}
    if layout == "consolidated":
        save(directory / "restored.pt", {"model": state | {"decoder.version": torch.tensor([3.0])}}, config, parts)
        return directory / "restored.pt"
    for part in range(parts):
        held = part_of(state, part, parts)
        if layout == "parts":
            save(directory / f"checkpoint_1_4000.pt-model_part-{part}.pt", {"model": held}, config, parts)
        elif layout == "parts_and_shards":
            for shard, local in enumerate(flatten(held, config, 3, with_metadata=True)):
                save(directory / f"checkpoint_last-model_part-{part}-shard{shard}.pt", local, config, parts)
        elif layout == "shards":
            for shard, local in enumerate(flatten(held, config, 5, with_metadata=True)):
                save(directory / f"checkpoint_last-shard{shard}.pt", local, config, parts)
        elif layout == "flat_parts":
            save(directory / f"reshard-model_part-{part}.pt", flatten(held, config, 1, False)[0], config, parts)
        elif layout == "flat":
            save(directory / "reshard.pt", flatten(held, config, 1, with_metadata=False)[0], config, parts)
    return directory


LAYOUTS = ("consolidated", "parts", "parts_and_shards", "shards", "flat_parts", "flat")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["pre_norm", "post_norm_projected", "galactica"])
def test_every_released_layout_holds_the_weights_of_transformers(variant, layout, tmp_path):
    config = VARIANTS[variant]
    path = weights.resolve(write(tmp_path / "x", config, layout))
    assert weights.is_metaseq(path) and not weights.is_hf(path)
    assert weights.read_config(path) == config
    equal(weights.load(path, config), params_of(torch_model(config), config))


def test_half_precision_shards_load_onto_a_mesh(tmp_path):
    config = VARIANTS["pre_norm"]
    write(tmp_path, config, "parts_and_shards", torch.float16)
    shardings = sharding.parameter_shardings(abstract_params(config), mesh_of("2x2x2"))
    params = weights.load(tmp_path / "checkpoint_last.pt", config, shardings)
    want = params_of(torch_model(config).half().float(), config)
    equal(params, want)


def test_a_configuration_beside_the_checkpoint_goes_before_its_own(tmp_path):
    config = VARIANTS["pre_norm"]
    write(tmp_path, config, "flat_parts")
    (tmp_path / "config.json").write_text('{"model_type": "opt", "num_hidden_layers": 5, "dropout": 0.25}')
    assert weights.read_config(tmp_path) == OPTConfig(layers=5, dropout=0.25)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("good")
    for layout in ("consolidated", "parts_and_shards", "flat_parts"):
        write(root / layout, VARIANTS["pre_norm"], layout)
    return root


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        weights.load(path, weights.read_config(path))
    assert "\n" not in str(caught.value)


def test_missing_parts_and_shards_are_refused(good, tmp_path):
    for name, part, shard, message in [
        ("shard", 1, 2, "model part 1, shard 2 of .* is missing"),
        ("first", 0, 0, "model part 0, shard 0 of .* is missing"),
    ]:
        directory = shutil.copytree(good / "parts_and_shards", tmp_path / name)
        (directory / f"checkpoint_last-model_part-{part}-shard{shard}.pt").unlink()
        refused(directory, message)
    directory = shutil.copytree(good / "parts_and_shards", tmp_path / "both")
    for part in (0, 1):
        (directory / f"checkpoint_last-model_part-{part}-shard2.pt").unlink()
    refused(directory, r"flat_param_0 has [\d,]+ elements in 2 shards, expected [\d,]+; are shards missing")
    directory = shutil.copytree(good / "flat_parts", tmp_path / "part")
    (directory / "reshard-model_part-1.pt").unlink()
    refused(directory, r"flat_param_0 has [\d,]+ elements in 1 shards, expected [\d,]+")
    shutil.copy(good / "consolidated/restored.pt", directory)
    refused(directory, r"holds 2 checkpoints \(reshard, restored\)")
    with pytest.raises(UserError, match="neither a directory nor a hub name"):
        weights.resolve(tmp_path / "nothing.pt")


class Foreign:
    def __reduce__(self):
        return print, ("was run",)


def test_damaged_checkpoints_are_refused_by_name(good, tmp_path, capsys):
    def change(edit) -> None:
        state = torch.load(good / "consolidated/restored.pt", weights_only=False)
        edit(state)
        torch.save(state, tmp_path / "x.pt")

    fc1 = "decoder.layers.1.fc1.weight"
    for edit, message in [
        (lambda s: s.update(x=Foreign()), "__builtin__.print"),
        (lambda s: s.pop("cfg"), "no cfg"),
        (lambda s: s.pop("model"), "no 'model'"),
        (lambda s: s["model"].update(x=1), "x is not a tensor"),
        (lambda s: s["model"].pop(fc1), "layers.1.fc1.weight is missing"),
        (lambda s: s["model"].update({fc1: s["model"][fc1].T}), r"layers.1.fc1.weight has shape \(64, 96\)"),
        (lambda s: s["model"][fc1].fill_(float("nan")), "layers.1.fc1.weight has NaN or infinite values"),
        (lambda s: setattr(s["cfg"]["model"], "alibi", True), "cfg.model.alibi = True"),
        (lambda s: setattr(s["cfg"]["model"], "decoder_attention_heads", None), "decoder_attention_heads is missing"),
    ]:
        change(edit)
        refused(tmp_path / "x.pt", message)
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-1000])
    refused(tmp_path / "x.pt", "truncated")
    assert "was run" not in capsys.readouterr().out
