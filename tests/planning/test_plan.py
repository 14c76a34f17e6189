"""Plans against hand arithmetic, and the collectives of the compiled step. The GPU's need the extra [plan]."""

import ast
import dataclasses
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
import time

import jax
import pytest

from optiml_jax.common.cards import CARDS
from optiml_jax.common.errors import UserError
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.plan import read_setup
from optiml_jax.planning import compiled as planning
from optiml_jax.planning.collectives import Collective, array_bytes, collectives, overlapped_share, totals
from optiml_jax.planning.compiled import Setup, changes, make_plan, nearest_fit
from optiml_jax.training import step
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.step import Computation
from tests.conftest import ROOT
from tests.meshes import mesh_of

needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda13") is None,
    reason="needs XLA's CUDA compiler: the extra [plan]",
)
BATCH_BYTES = 4 * 4 + 1  # tokens, targets, segments, positions; the label mask
KEY_AND_COUNTERS = 8 + 4 + 4 + 4 + 4  # key; updates of Adam and of the schedule; loss scale and its counter


def argument_bytes(config: OPTConfig, rows: int, axes: tuple[int, int, int]) -> int:
    """Hand arithmetic: float32 parameters and two moments, over the axes that shard them; rows over data and fsdp."""
    data, fsdp, tensor = axes
    L, D, F, V = config.layers, config.model_dim, config.ffn_dim, config.vocab_size
    both = V * D + L * (4 * D * D + 2 * D * F)  # the embedding and the six products of a block
    by_fsdp = (config.max_positions + 2) * D + L * 6 * D + 2 * D  # positions; norms, biases of D; the final norm
    by_tensor = L * (3 * D + F)  # biases of heads and of the feed-forward
    sharded = both // (fsdp * tensor) + by_fsdp // fsdp + by_tensor // tensor
    return 3 * 4 * sharded + rows * 2048 // (data * fsdp) * BATCH_BYTES + KEY_AND_COUNTERS


def planned(*flags: str, devices: int, device: str):
    setup, _ = read_setup(flags, devices)
    start = time.process_time()
    plan = make_plan(setup, CARDS[device])
    assert time.process_time() - start < 2 * 60  # a minute of two cores, whatever else runs on them
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20  # kilobytes
    assert plan.compiled_for == "cuda"
    assert plan.argument_bytes == argument_bytes(setup.model, setup.batch_rows, setup.axes)
    return setup, plan


@needs_plugin
@pytest.mark.parametrize(
    ("file", "devices", "rows"), [("opt30b_iml.gin", 64, 256), ("opt175b_iml.gin", 128, 128)], ids=["30b", "175b"]
)
def test_the_papers_runs_fit_the_papers_gpus(file, devices, rows):
    setup, plan = planned(f"--gin_file={file}", devices=devices, device="a100-40gb")
    assert setup.batch_rows == rows and plan.peak_bytes <= 36e9
    assert "all-to-all" not in totals(plan.collectives)
    tensor = setup.axes[2]
    table = f"[{setup.model.vocab_size // tensor},{setup.model.model_dim}]"
    gathers = [
        collective for collective in plan.collectives if collective.kind == "all-gather" and table in collective.types
    ]
    assert sum(collective.count for collective in gathers) == setup.computation.accumulation
    assert all(f"bf16{table}" in collective.types for collective in gathers)
    rows = setup.local_rows
    assert not any(f"f32[{rows},2048,{setup.model.model_dim}]" in gather.types for gather in plan.collectives)


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize("axes", [(1, 8, 1), (1, 8, 8), (1, 64, 1)], ids=str)
def test_collectives_run_beside_kernels(axes):
    """With the flags of this project; a program of its own, because XLA reads them once."""
    code = """if True:
        import math, os, sys
        from optiml_jax.common import xla_flags
        xla_flags.set_defaults(os.environ)
        from optiml_jax.common.cards import CARDS
        from optiml_jax.model.config import OPTConfig
        from optiml_jax.planning.collectives import overlapped_share, totals
        from optiml_jax.planning.compiled import Setup, make_plan
        from optiml_jax.training.optimizer import Optimization
        from optiml_jax.training.step import Computation
        axes = tuple(map(int, sys.argv[1:]))
        model = OPTConfig(vocab_size=50272, layers=4, model_dim=4096, heads=32, ffn_dim=16384, max_positions=2048)
        setup = Setup(model, Optimization(), Computation(), 8 * axes[1], 2048, axes)
        plan = make_plan(setup, CARDS["a100-80gb"])
        print({kind: overlapped_share(plan.collectives, kind) for kind in totals(plan.collectives)})
    """
    environ = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    words = [sys.executable, "-c", code, *map(str, axes)]
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    shares = ast.literal_eval(done.stdout.splitlines()[-1])
    assert {"all-gather", "reduce-scatter"} <= shares.keys()
    assert all(share > 0.75 for share in shares.values()), shares


@needs_plugin
def test_6_7b_with_full_adam_fits_one_h200():
    flags = ("--gin_file=train.gin", "--gin_file=models/opt_6_7b.gin", "--gin.BATCH_ROWS=8")
    setup, plan = planned(*flags, devices=1, device="h200")
    assert setup.computation.accumulation == 1 and plan.peak_bytes <= 0.9 * 139 * 2**30
    assert plan.collectives == []


SMALL = OPTConfig(vocab_size=512, layers=4, model_dim=256, heads=8, ffn_dim=1024, max_positions=256)


@pytest.mark.slow
def test_the_nearest_change_that_fits_is_found_and_compiled(monkeypatch):
    """A card with room for half of the temporaries; on the CPU, which compiles faster."""
    monkeypatch.setattr(planning, "described_devices", lambda card, count: (jax.devices()[:count], "cpu"))
    setup = Setup(SMALL, Optimization(), Computation(precision="fp32", remat="none"), 32, 256, (1, 2, 1))
    card = CARDS["a100-40gb"]
    plan = make_plan(setup, card)
    room = plan.argument_bytes + plan.temporary_bytes // 2
    words, other = nearest_fit(setup, plan, dataclasses.replace(card, memory_bytes=room * 10 // 9 + 1))
    assert other.peak_bytes <= room < plan.peak_bytes and words.startswith("--gin.")


def test_changes_take_no_more_memory_and_keep_the_number_of_devices():
    setup = Setup(SMALL, Optimization(), Computation(remat="none"), 64, 256, (2, 4, 1))
    for words, other in changes(setup):
        assert math.prod(other.axes) == 8 and other.computation.remat == "full" and other.batch_rows == 64, words
        assert other.local_rows * other.axes[0] * other.axes[1] * other.computation.accumulation == 64, words


@pytest.fixture(scope="module")
def bf16_step(tmp_path_factory) -> tuple[str, str]:
    """The compiled step on 2x2x2, and what the compiler said meanwhile (it writes past Python, to the descriptor)."""
    output = tmp_path_factory.mktemp("plan") / "stderr"
    config = OPTConfig(vocab_size=512, layers=3, model_dim=64, heads=8, ffn_dim=128, max_positions=64)
    mesh, computation = mesh_of("2x2x2"), Computation(precision="bf16", attention="dense")
    keep = os.dup(2)
    with output.open("wb") as file:
        os.dup2(file.fileno(), 2)
        try:
            with jax.set_mesh(mesh):
                state = step.abstract_state(config, Optimization(), computation)
                shapes = {name: jax.ShapeDtypeStruct((8, 64), dtype) for name, dtype in step.BATCH_DTYPES.items()}
                program = step.compiled_step(config, Optimization(), computation, mesh)
                text = program.lower(state, shapes, jax.random.key(0)).compile().as_text()
        finally:
            os.dup2(keep, 2)
            os.close(keep)
    return text, output.read_text()


def test_the_step_has_no_accidental_collectives(bf16_step):
    text, output = bf16_step
    assert "Involuntary full rematerialization" not in output
    operations = collectives(text, 8)
    assert {operation.kind for operation in operations} <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert not any(
        operation.kind == "all-gather" and operation.in_open_loop for operation in operations
    )  # the head's loop only sums


def test_the_embedding_is_gathered_once_and_its_gradient_never(bf16_step):
    """[V / tensor, D]. In which type, only the GPU's program says: the CPU's compiler widens every bf16 collective."""
    gathers = [
        collective
        for collective in collectives(bf16_step[0], 8)
        if collective.kind == "all-gather" and "[256,64]" in collective.types
    ]
    assert sum(collective.count for collective in gathers) == 1


def test_the_text_of_a_program_is_read_with_its_loops_and_groups():
    """Written by hand in XLA's forms: 5 times a gather of 4 KiB over 4 of 8 devices, one sum over all, an open loop."""
    text = """HloModule m
%body (p: (s32[])) -> (s32[]) {
  %all-gather-start.1 = (bf16[8,64]{1,0}, bf16[32,64]{1,0}) all-gather-start(%p), replica_groups=[2,4]<=[4,2]T(1,0)
  %element.1 = bf16[8]{0} get-tuple-element(%p), index=0
  %product.1 = bf16[8]{0} fusion(%element.1), kind=kLoop, calls=%f
  %all-gather-done.1 = bf16[32,64]{1,0} all-gather-done(%all-gather-start.1)
}
%open (p: (s32[])) -> (s32[]) {
  %rs = f32[16]{0} reduce-scatter(%p), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %while.1 = (s32[]) while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %while.2 = (s32[]) while(%x), condition=%c, body=%open
  %all-reduce-start.1 = f32[100]{0} all-reduce-start(%x), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %element.2 = bf16[8]{0} get-tuple-element(%x), index=0
  ROOT %all-reduce.1 = f32[100]{0} all-reduce-done(%all-reduce-start.1)
}
"""
    operations = collectives(text, 8)
    assert array_bytes("(f32[2,3]{1,0}, pred[], bf16[5])") == 24 + 1 + 10
    assert [(operation.kind, operation.count, operation.sent_bytes, operation.group) for operation in operations] == [
        ("all-gather", 5, 4096 * 3 // 4, (0, 2, 4, 6)),
        ("reduce-scatter", 1, 64 * 4 * 3 // 4, (0, 1, 2, 3)),
        ("all-reduce", 1, 2 * 400 * 7 // 8, tuple(range(8))),
    ]
    assert [operation.in_open_loop for operation in operations] == [False, True, False]
    assert [operation.overlapped for operation in operations] == [True, False, False]
    assert overlapped_share(operations, "all-gather") == 1 and overlapped_share(operations, "all-reduce") == 0


def test_dimensions_that_do_not_divide_are_refused_with_the_numbers():
    mesh = mesh_of("1x1x8")
    with pytest.raises(UserError, match=r"heads 12 .*TENSOR_AXIS = 8"):
        sharding.check_divides(OPTConfig(), mesh)
    needed = r"BATCH_ROWS 12 .*DATA_AXIS \* FSDP_AXIS \* Computation.accumulation = 8"
    for mesh_name, accumulation in (("8x1x1", 1), ("2x2x2", 2), ("1x1x1", 8)):
        with pytest.raises(UserError, match=needed):
            sharding.check_divides(SMALL, mesh_of(mesh_name), batch_rows=12, accumulation=accumulation)


def plan_command(*flags: str, code: int = 0) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "tools.plan", *flags]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def test_the_command_plans_a_file_for_one_device_on_eight(tmp_path):
    out = tmp_path / "plan.json"
    output = plan_command("--gin_file=tiny.gin", "--devices=8", "--device=a100-40gb", f"--json={out}").stdout
    plan = json.loads(out.read_text())
    assert set(plan) == {
        *("fits", "devices", "device", "mesh", "argument_bytes", "temporary_bytes", "peak_bytes", "limit_bytes"),
        *("collectives", "step_seconds_estimate", "compiled_for"),
    }
    assert plan["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1} and plan["limit_bytes"] == 36e9 and plan["fits"]
    assert "FSDP_AXIS 8" in output and "BATCH_ROWS 1 raised to 8" in output and "GiB to spare" in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--devices=32",), "DATA_AXIS * FSDP_AXIS * TENSOR_AXIS = 1 * 8 * 8 = 64, but --devices=32"),
        (("--devices=64", "--device=a100"), "--device=a100 is unknown; use one of a100-40gb, a100-80gb, h100, h200"),
    ],
)
def test_a_mistake_is_one_line(flags, message):
    error = plan_command("--gin_file=opt30b_iml.gin", *flags, code=2).stderr
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_the_seconds_of_a_step_equal_hand_arithmetic():
    """Two layers of 8 x 8 with a feed-forward of 32, on 2 x 4 devices of one node, and a collective over a network."""
    model = OPTConfig(vocab_size=16, layers=2, model_dim=8, heads=2, ffn_dim=32, max_positions=64)
    computation = Computation(remat="full", accumulation=3)
    setup = Setup(model, Optimization(), computation, batch_rows=6, row_length=64, axes=(2, 4, 1))
    card = CARDS["h200"]
    sent = [
        Collective("all-gather", "f32[250]", 1000, (0, 1), 5, False, False),
        Collective("all-reduce", "f32[5]", 10, (0, 8), 1, False, False),
    ]
    seconds = planning._seconds(setup, card, 700, sent)
    body, pairs, head = 2 * (4 * 64 + 2 * 8 * 32), 2 * 2 * 0.19 * 64 * 8, 0.15 * 16 * 8
    flops = 2 * 6 * 64 * (4 * (body + pairs) + 4 * head)
    assert seconds["compute"] == pytest.approx(flops / 8 / (0.6 * card.flops))
    assert seconds["memory"] == pytest.approx((7 + 2 * 3) * 700 / card.memory_bandwidth)
    assert seconds["network"] == pytest.approx(5000 / card.node_bandwidth + 10 / card.network_bandwidth)
    assert totals(sent) == {"all-gather": {"count": 5, "bytes": 5000}, "all-reduce": {"count": 1, "bytes": 10}}
    # A frozen matrix has no product for its gradient; the head's is the embedding.
    for name, body_passes, head_passes in (("biases", 3, 3), ("embeddings", 3, 4)):
        part = dataclasses.replace(setup, optimization=Optimization(trainable=name))
        flops = 2 * 6 * 64 * (body_passes * (body + pairs) + head_passes * head)
        have = planning._seconds(part, card, 700, sent)["compute"]
        assert have == pytest.approx(flops / 8 / (0.6 * card.flops))


def test_the_state_of_adapters_on_int8_kernels_equals_hand_arithmetic():
    """OPT-30B: a byte for each number of a matrix, a float32 scale for each of its outputs, the rest in bfloat16."""
    words = ["--gin_file=opt30b_lora.gin", "--gin.OPTConfig.kernels=int8"]
    setup, _ = read_setup(words, 1)
    state = step.abstract_state(setup.model, setup.optimization, setup.computation)
    L, D, F, V = 48, 7168, 4 * 7168, 50272
    matrices, outputs, biases = L * (4 * D * D + 2 * D * F), L * (5 * D + F), L * (5 * D + F)
    norms, embeddings = 4 * L * D + 2 * D, (V + 2050) * D
    sizes = [sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(part)) for part in state[:3]]
    assert sizes[1] == matrices + 4 * outputs + 2 * (biases + embeddings) + 4 * norms
    adapters = 16 * L * (4 * 2 * D + 2 * (D + F))
    assert sizes[0] == 4 * adapters and sizes[2] == 2 * 4 * adapters + 8
    assert decoder.parameter_count(setup.model) == matrices + biases + norms + embeddings + adapters


def test_what_is_saved_between_layers_is_split_over_rows_and_positions():
    """With all activations computed again, a layer saves its input: [B, T, D] over all eight devices."""
    saved = {}
    for layers in (4, 12):
        config = OPTConfig(vocab_size=64, layers=layers, model_dim=64, heads=8, ffn_dim=64, max_positions=1024)
        computation = Computation(precision="fp32", remat="full", layers="scan", attention="dense")
        mesh = mesh_of("2x2x2")
        with jax.set_mesh(mesh):
            state = step.abstract_state(config, Optimization(), computation)
            shapes = {name: jax.ShapeDtypeStruct((8, 1024), dtype) for name, dtype in step.BATCH_DTYPES.items()}
            program = step.compiled_step(config, Optimization(), computation, mesh)
            compiled = program.lower(state, shapes, jax.random.key(0)).compile()
        saved[layers] = compiled.memory_analysis().temp_size_in_bytes
    weights = 4 * (4 * 64 * 64 + 2 * 64 * 64 + 10 * 64) / 4  # gradients, over fsdp and tensor
    per_layer = (saved[12] - saved[4]) / 8 - weights
    assert per_layer == pytest.approx(4 * 8 * 1024 * 64 / 8, rel=0.2)
