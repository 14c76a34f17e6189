"""A model of one layer and prompts for it, which the tests of answering share."""

import jax

from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import Prompt
from optiml_jax.inference.model import Model
from optiml_jax.model import decoder
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.meshes import mesh_of

CONFIG = OPTConfig(vocab_size=1536, layers=1, model_dim=32, heads=2, ffn_dim=64, max_positions=128, init_scale=0.2)


def prompt(number: int, **fields) -> Prompt:
    return Prompt(
        **{
            "suite": "suite",
            "benchmark": "bench",
            "task": f"task{number % 2}",
            "template": "t",
            "example_id": str(number),
            "shots": 0,
            "seed": 0,
            "category": "c",
            "level": "held_out_instances",
            "metric": Metric("accuracy"),
            "prompt": f"Task: say {number}.\nOutput:",
            "candidates": ("yes", "no", "a third one"),
            "references": ("no",),
        }
        | fields
    )


def small_model() -> Model:
    tokenizer = Tokenizer.load(ROOT / "tasks" / "samples" / "tokenizer")
    params = decoder.init_params(jax.random.key(0), CONFIG)
    return Model(CONFIG, params, tokenizer, mesh_of("1x1x1"), source="random")


def read(directory) -> tuple[bytes, bytes]:
    return (directory / "results.json").read_bytes(), (directory / "samples.jsonl").read_bytes()
