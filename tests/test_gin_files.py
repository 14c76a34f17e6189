"""The shipped gin files: what they say is written down, and the model sizes are the published ones.

After a change on purpose: python -m tests.test_gin_files
"""

import dataclasses
import inspect
import re
from pathlib import Path

import gin
import jax
import pytest
import torch
import transformers

from optiml_jax import gin_cli
from optiml_jax.evaluation.run import evaluate
from optiml_jax.model import decoder
from optiml_jax.model.config import OPTConfig
from optiml_jax.weights import save_hf
from tasks import suites

GIN = gin_cli.SEARCH_PATH
GOLDEN = Path(__file__).parent / "data" / "golden"
PARTS = ("model", "optimization", "computation", "data", "logging")
RUNS = sorted(path.name for path in GIN.glob("*.gin") if path.name not in ("train.gin", "evaluate.gin"))
# Zhang et al. 2022, table 1, and the parameters that Hugging Face counts in facebook/opt-*
PUBLISHED = {
    "125m": 125_239_296,
    "350m": 331_196_416,
    "1_3b": 1_315_758_080,
    "2_7b": 2_651_596_800,
    "6_7b": 6_658_473_984,
    "13b": 12_853_473_280,
    "30b": 29_974_540_288,
    "66b": 65_719_701_504,
    "175b": 174_604_468_224,
}


# the mixture is that of the run, and the engine knows no name of a task
ONLY_IN_GIN = {("validation", "mixture"), ("data", "always_tasks"), ("data", "always_categories")}


def in_force(file: str) -> tuple[dict[str, str], dict[str, str]]:
    """Every setting in force, and the defaults of those that have one, by name."""
    settings = gin_cli.read_settings([f"--gin_file={file}"], "tests")
    values = {f"{part}.{name}": value for part in PARTS for name, value in dataclasses.asdict(settings[part]).items()}
    values |= {name: settings[name] for name in ("mesh", "model_dir", "init_weights")}
    values["evaluates"] = "evaluate_after" in settings
    defaults = {f"{part}.{field.name}": field.default for part in PARTS for field in dataclasses.fields(settings[part])}
    return {name: repr(value) for name, value in values.items()}, {name: repr(x) for name, x in defaults.items()}


@pytest.mark.parametrize("file", RUNS)
def test_a_shipped_run_has_the_settings_written_down_for_it(file):
    """A setting that is newer than the file must have its default."""
    golden = GOLDEN / f"{Path(file).stem}.txt"
    assert golden.exists(), "write it down with python -m tests.test_gin_files, and read it before committing"
    written = dict(line.split(" = ", 1) for line in golden.read_text(encoding="utf-8").splitlines())
    values, defaults = in_force(file)
    newer = {name: defaults.get(name) for name in values.keys() - written.keys()}
    assert values == written | newer


def test_every_suite_of_the_paper_has_a_gin_file():
    """Its name is that of the suite; `test.gin` asks all but the validation suites, and no task twice."""
    suites_by_file = {}
    for path in GIN.glob("suites/*.gin"):
        gin_cli.read_settings([f"--gin_file=suites/{path.name}"], "tests")
        suites_by_file[path.stem] = gin.query_parameter("SUITE/macro.value")
    every = suites_by_file.pop("test").split(",")
    assert all(name == suite for name, suite in suites_by_file.items()) and set(suites_by_file) == {
        *every,
        "validation",
        "validation_table_20",
    }
    without_file = {
        "samples",
        "small_study",
        "jsonl",
        "super_natural_instructions",
        "super_natural_instructions_xlingual",
    }
    assert set(suites_by_file) == set(suites.names()) - without_file


def test_the_defaults_of_the_gin_files_are_those_of_the_python_functions():
    """A default, such as those of the paper, may be changed in one place only if this test notices the other."""
    settings = gin_cli.read_settings(["--gin_file=train.gin", "--gin_file=models/opt_125m.gin"], "tests")
    compared = []
    for part in ("optimization", "computation", "data", "logging", "validation"):
        for field in dataclasses.fields(settings[part]):
            if field.default is dataclasses.MISSING or (part, field.name) in ONLY_IN_GIN:
                continue
            assert getattr(settings[part], field.name) == field.default, (part, field.name)
            compared.append(field.name)
    assert len(compared) > 25
    gin_cli.read_settings(["--gin_file=train.gin", "--gin_file=models/opt_125m.gin", "--gin.WEIGHTS=None"], "tests")
    text = (GIN / "evaluate.gin").read_text(encoding="utf-8")
    names = re.findall(r"^evaluate\.(\w+) = %", text, re.MULTILINE)
    assert len(names) > 9
    for name in set(names) - {"mixture", "precision"}:  # train.gin names its own
        value = gin.query_parameter(f"evaluate.{name}").scoped_configurable_fn()
        assert value == inspect.signature(evaluate).parameters[name].default, name


def config_of(size: str):
    return gin_cli.read_settings(["--gin_file=train.gin", f"--gin_file=models/opt_{size}.gin"], "tests")["model"]


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_size_has_the_published_number_of_parameters(size):
    assert decoder.parameter_count(config_of(size)) == PUBLISHED[size]


def test_all_nine_sizes_are_shipped():
    assert {path.stem.removeprefix("opt_") for path in (GIN / "models").glob("opt_*.gin")} == set(PUBLISHED)


@pytest.mark.parametrize("size", ["350m", "6_7b", "175b"])
def test_transformers_counts_the_same_parameters(size):
    """Built without memory, on torch's meta device; tied weights count once."""
    ours = config_of(size)
    theirs = transformers.OPTConfig(
        vocab_size=ours.vocab_size,
        num_hidden_layers=ours.layers,
        hidden_size=ours.model_dim,
        num_attention_heads=ours.heads,
        ffn_dim=ours.ffn_dim,
        max_position_embeddings=ours.max_positions,
        word_embed_proj_dim=ours.embedding_width,
        do_layer_norm_before=ours.pre_norm,
    )
    with torch.device("meta"):
        model = transformers.OPTForCausalLM(theirs)
    model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[size]


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for run in RUNS:
        text = "".join(f"{name} = {value}\n" for name, value in in_force(run)[0].items())
        (GOLDEN / f"{Path(run).stem}.txt").write_text(text, encoding="utf-8")


def test_a_run_takes_the_shape_that_nothing_sets_from_its_initial_weights(tmp_path):
    shape = OPTConfig(vocab_size=96, layers=2, model_dim=32, heads=4, ffn_dim=48, max_positions=64, activation="gelu")
    save_hf(decoder.init_params(jax.random.key(0), shape), shape, None, tmp_path / "weights")
    flags = ["--gin_file=own_data.gin", f"--gin.INIT_WEIGHTS={tmp_path}/weights", "--gin.OPTConfig.dropout=0.25"]
    assert gin_cli.read_settings(flags, "tests")["model"] == dataclasses.replace(shape, dropout=0.25)
    overridden = gin_cli.read_settings([*flags, "--gin.OPTConfig.layers=7"], "tests")["model"]
    assert overridden == dataclasses.replace(shape, dropout=0.25, layers=7)  # refused when the weights are read
    assert gin_cli.read_settings(["--gin_file=own_data.gin"], "tests")["model"] == OPTConfig()
    elsewhere = ["--gin_file=own_data.gin", "--gin.INIT_WEIGHTS=./nowhere"]
    assert gin_cli.read_settings(elsewhere, "tests")["model"] == OPTConfig()  # a run refuses it
