"""The plan of an evaluation: memory by hand arithmetic, and OPT-30B on one card of 80 GB."""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from optiml_jax.common.cards import CARDS
from optiml_jax.common.errors import UserError
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.decoder import abstract_params, parameter_count
from optiml_jax.planning import evaluation
from optiml_jax.planning.kernels import loop_kernels
from tests.commands import run_all
from tests.conftest import ROOT
from tests.planning.test_plan import needs_plugin
from tests.test_train import environment

SMALL = OPTConfig(vocab_size=512, layers=4, model_dim=256, heads=8, ffn_dim=1024, max_positions=256)
CARD = CARDS["a100-40gb"]


@pytest.fixture
def on_cpus(monkeypatch):
    monkeypatch.setattr(evaluation, "described_devices", lambda card, count: (jax.devices()[:count], "cpu"))


@pytest.mark.parametrize("axes", [(1, 1, 1), (1, 2, 2)])
def test_weights_cache_and_floor_are_those_of_hand_arithmetic(on_cpus, axes):
    plan = evaluation.make_plan(SMALL, axes, jnp.bfloat16, CARD)
    norms = sum(
        leaf.size for leaf in jax.tree.leaves(abstract_params(SMALL, jnp.bfloat16)) if leaf.dtype == jnp.float32
    )
    assert norms == 4 * 4 * 256 + 2 * 256
    if math.prod(axes) == 1:
        assert plan.weight_bytes == 2 * (parameter_count(SMALL) - norms) + 4 * norms
    assert plan.cache_rows == 256 * axes[1] and plan.cache_length == 256
    assert plan.cache_bytes * math.prod(axes) == 2 * 2 * 4 * 256 * plan.cache_rows * 256
    assert plan.floor_seconds == pytest.approx((plan.weight_bytes + plan.cache_bytes) / 1_555e9)
    assert plan.peak_bytes >= plan.weight_bytes + 2 * plan.cache_bytes
    assert set(plan.temporary_bytes) == {"scoring", "prefill", "decoding"} and min(plan.temporary_bytes.values()) > 0


def test_a_mesh_that_does_not_divide_the_model_is_refused(on_cpus):
    with pytest.raises(UserError, match="heads 8 is not divisible by TENSOR_AXIS = 3"):
        evaluation.make_plan(SMALL, (1, 1, 3), jnp.bfloat16, CARD)


@needs_plugin
def test_30b_is_evaluated_on_one_card_of_80_gb(tmp_path):
    """Compiled for the card itself; in float32 the weights alone do not fit."""
    flags = ["--evaluation", "--gin_file=evaluate.gin", "--gin_file=models/opt_30b.gin", "--devices=1", "--device=h100"]
    for precision, fits in (("auto", True), ("fp32", False)):
        path = tmp_path / f"{precision}.json"
        words = [sys.executable, "-m", "tools.plan", *flags, f"--gin.PRECISION={precision}", f"--json={path}"]
        done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        plan = json.loads(path.read_text())
        assert plan["compiled_for"] == "cuda" and plan["fits"] == fits == (plan["peak_bytes"] <= 72e9)
        assert ("fits, " in done.stdout) == fits


def test_mistakes_are_named():
    messages = {
        "--gin.FSDP_AXIS=3": "the axes multiply to 3, but --devices=2",
        "--gin.PRECISION=bf61": "no PRECISION bf61",
        "--gin.WEIGHTS=nowhere/at_all": "nowhere/at_all",
    }
    words = ["--evaluation", "--gin_file=evaluate.gin", "--devices=2"]
    ends = run_all([("tools.plan", [*words, flag]) for flag in messages], environment())
    for (code, stderr), message in zip(ends, messages.values(), strict=True):
        assert code == 2 and message in stderr and "Traceback" not in stderr, stderr[-2000:]


LOOP = """HloModule decode

%gathered (p0: bf16[100,8], p1: s32[4]) -> bf16[4,8] {
  %p0 = bf16[100,8]{1,0} parameter(0)
  %p1 = s32[4]{0} parameter(1)
  ROOT %gather.1 = bf16[4,8]{1,0} gather(%p0, %p1), offset_dims={1}
}

%graph (q0: bf16[4,8], q1: bf16[8,8]) -> bf16[4,8] {
  %q0 = bf16[4,8]{1,0} parameter(0)
  %q1 = bf16[8,8]{1,0} parameter(1)
  %product.1 = (bf16[4,8]{1,0}, s8[4194304]{0}) custom-call(%q0, %q1), custom_call_target="__cublas$lt$matmul"
  ROOT %first.1 = bf16[4,8]{1,0} get-tuple-element(%product.1), index=0
}

%body (state: (bf16[100,8], s32[4], bf16[8,8], bf16[2,64])) -> (bf16[100,8], s32[4], bf16[8,8], bf16[2,64]) {
  %state = (bf16[100,8]{1,0}, s32[4]{0}, bf16[8,8]{1,0}, bf16[2,64]{1,0}) parameter(0)
  %table = bf16[100,8]{1,0} get-tuple-element(%state), index=0
  %ids = s32[4]{0} get-tuple-element(%state), index=1
  %weights = bf16[8,8]{1,0} get-tuple-element(%state), index=2
  %cache = bf16[2,64]{1,0} get-tuple-element(%state), index=3
  %fusion.1 = bf16[4,8]{1,0} fusion(%table, %ids), kind=kLoop, calls=%gathered
  %call.1 = bf16[4,8]{1,0} call(%fusion.1, %weights), to_apply=%graph
  %write.1 = (bf16[2,64]{1,0}, f32[4]{0}) custom-call(%call.1, %cache), output_to_operand_aliasing={{0}: (1, {})}
  %after.1 = bf16[2,64]{1,0} get-tuple-element(%write.1), index=0
  ROOT %tuple.1 = (bf16[100,8]{1,0}, s32[4]{0}, bf16[8,8]{1,0}, bf16[2,64]{1,0}) tuple(%table, %ids, %weights, %after.1)
}

ENTRY %main (a: (bf16[100,8], s32[4], bf16[8,8], bf16[2,64])) -> (bf16[100,8], s32[4], bf16[8,8], bf16[2,64]) {
  %a = (bf16[100,8]{1,0}, s32[4]{0}, bf16[8,8]{1,0}, bf16[2,64]{1,0}) parameter(0)
  ROOT %while.1 = (bf16[100,8]{1,0}, s32[4]{0}, bf16[8,8]{1,0}, bf16[2,64]{1,0}) while(%a), condition=%c, body=%body
}
"""


def test_kernels_of_a_loop_are_counted_with_the_bytes_that_they_move():
    """Rows of a table, not the table; no workspace; no array that is updated in place."""
    gathered = 4 * 8 * 2 + 4 * 4 + 4 * 8 * 2
    product = (4 * 8 + 8 * 8 + 4 * 8) * 2
    written = 4 * 8 * 2 + 4 * 4
    assert loop_kernels(LOOP) == (3, gathered + product + written)


@needs_plugin
def test_a_decoding_step_reads_its_weights_and_the_cache_once():
    config = OPTConfig(vocab_size=50272, layers=4, model_dim=768, heads=12, ffn_dim=3072, max_positions=2048)
    plan = evaluation.make_plan(config, (1, 1, 1), jnp.bfloat16, CARDS["h200"])
    assert plan.kernels <= 4 * 11 + 32  # attention and products of each layer, then the choice of the next token
    assert 1 <= plan.step_bytes / (plan.weight_bytes + plan.cache_bytes) < 1.1
    assert plan.temporary_bytes["decoding"] < plan.cache_bytes / 100, "the cache is copied"
