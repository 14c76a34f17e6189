"""Host memory while weights load: one tensor at a time, whatever the size of the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optiml_jax.model.config import OPTConfig
from optiml_jax.weights import hf_config, names, safetensors

LAYERS = 2  # of 2.7B's shape; memory above the arrays does not depend on their number

LOAD = """
import resource, sys
import jax
from optiml_jax import weights
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
config = weights.read_config(sys.argv[1])
jax.block_until_ready(jax.numpy.zeros(8))
start = peak()
params = jax.block_until_ready(weights.load_hf(sys.argv[1], config))
print(peak() - start - sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


@pytest.mark.slow
def test_loading_takes_at_most_1_3_shards_above_the_arrays(tmp_path):
    config = OPTConfig(layers=LAYERS, model_dim=2_560, heads=32, ffn_dim=10_240)
    largest = write_half(tmp_path, config, 300e6)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}  # one device: arrays are there once
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 1.3 * largest


def write_half(directory: Path, config: OPTConfig, limit: float) -> int:
    """A fp16 checkpoint of several files; returns the size of the largest."""
    values = (0.02 * np.random.default_rng(0).standard_normal(1 << 20)).astype(np.float16)
    shapes = {f"model.decoder.{name}": slot.shape for name, slot in names.slots(config).items()}
    shards = list(safetensors.shard(shapes, 2, limit))
    files = [directory / f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for file, held in zip(files, shards):
        safetensors.write_file(file, held, "float16", (np.resize(values, shape) for shape in held.values()))
    weight_map = {name: file.name for file, held in zip(files, shards) for name in held}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(hf_config(config, "float16")))
    assert len(files) > 1
    return max(file.stat().st_size for file in files)
