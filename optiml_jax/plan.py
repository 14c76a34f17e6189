"""Plans a run: compiles the real training step for GPUs that are not there, and reports memory, traffic and time.

python -m tools.plan --gin_file=opt30b_iml.gin --devices=64 --device=a100-40gb      (installed: optiml-plan)

Settings of the gin file can be overridden as in training: --gin.NAME=VALUE. An evaluation is planned with --evaluation:

python -m tools.plan --evaluation --gin_file=evaluate.gin --gin_file=models/opt_30b.gin --devices=1 --device=h100

With the extra [plan] (XLA's CUDA compiler,
no GPU needed) the program is compiled for the GPU itself; without it for the CPU, which overstates temporaries.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optiml_jax.common import xla_flags
from optiml_jax.common.errors import UserError, check_known, exit_on_user_error, nearest
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser, table

if TYPE_CHECKING:  # jax reads its environment on import, and main sets that first
    from optiml_jax.common.cards import Card
    from optiml_jax.planning.compiled import Plan, Setup

GIB = 2**30
CPU_NOTE = (
    "compiled for CPU devices because the CUDA plugin is not installed: temporaries are overstated, often twofold, and "
    "reduce-scatters appear as all-reduces; install the extra [plan] to compile for the GPU"
)


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags, gin_flags = parse(arguments)
    if flags.devices < 1:
        raise UserError(f"--devices={flags.devices}: must be at least 1")
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides XLA's memory warnings, which the report repeats
    forced = f"--xla_force_host_platform_device_count={flags.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {forced}".strip()
    xla_flags.set_defaults(os.environ)

    from optiml_jax.common.cards import CARDS
    from optiml_jax.planning import compiled as planning

    if flags.device not in CARDS:
        close = nearest(flags.device, CARDS)
        raise UserError(f"--device={flags.device} is unknown; use one of {', '.join(CARDS)}{close}")
    card = CARDS[flags.device]
    if flags.evaluation:
        plan_evaluation(flags, gin_flags, card)
        return
    setup, notes = read_setup(gin_flags, flags.devices)
    plan = planning.make_plan(setup, card)
    if plan.compiled_for == "cpu":
        notes.append(CPU_NOTE)
    result = summary(setup, plan, flags.device, card)
    print(report(setup, plan, result, card))
    for note in notes:
        print(f"note: {note}")
    if not result["fits"]:
        print(advice(setup, plan, card))
    if flags.json:
        write_atomically(flags.json, json.dumps(result, indent=1) + "\n")


def parse(arguments: Sequence[str] | None = None) -> tuple[Any, list[str]]:
    """Parses the planner's flags; returns them and the flags of `gin_cli`."""
    parser = Parser("tools.plan", __doc__)
    parser.add_argument("--devices", type=int, required=True, help="GPUs of the run")
    parser.add_argument("--device", default="a100-40gb", help="which GPU (a100-40gb)")
    parser.add_argument("--evaluation", action="store_true", help="plan an evaluation instead of training")
    parser.add_argument("--json", help="also write the result to this file")
    return parser.parse_known_args(arguments)


def plan_evaluation(flags: Any, gin_flags: Sequence[str], card: "Card") -> None:
    """Prints the plan of an evaluation, and writes it to --json.

    Raises:
      UserError: the product of the axes is not --devices, or a setting is unknown.
    """
    from optiml_jax import gin_cli, weights
    from optiml_jax.checkpoints.runs import is_run, read_run_config
    from optiml_jax.inference import placement, precision
    from optiml_jax.model.decoder import parameter_count
    from optiml_jax.planning import evaluation

    settings = gin_cli.read_settings(gin_flags, "tools.plan", "evaluate")
    source = settings["weights"]
    if source is None:
        model = gin_cli.read_settings(gin_flags, "tools.plan", "OPTConfig")
    else:
        model = read_run_config(source)[0] if is_run(source) else weights.read_config(source)
    check_known("PRECISION", settings["precision"], precision.NAMES)
    dtype = precision.dtype_of(settings["precision"], "gpu", card.capability)
    axes = placement.choose_axes(
        model, dtype, settings.get("mesh") or placement.Axes(), flags.devices, card.limit_bytes
    )
    if math.prod(axes) != flags.devices:
        raise UserError(
            f"the axes multiply to {math.prod(axes)}, but --devices={flags.devices}; set --gin.FSDP_AXIS=..."
        )
    plan = evaluation.make_plan(model, axes, dtype, card)
    cache = f"KV cache of {plan.cache_rows:,} rows of {plan.cache_length:,}"
    memory = [("weights", plan.weight_bytes), (cache, plan.cache_bytes), ("prefilled prompts", plan.prefilled_bytes)]
    memory += [(f"{name} (beside these)", size) for name, size in plan.temporary_bytes.items()]
    memory += [("peak", plan.peak_bytes), (f"limit ({card.description} less 10%)", card.limit_bytes)]
    shape, millions = " x ".join(map(str, axes)), parameter_count(model) / 1e6
    print(f"evaluation of {millions:,.1f} M parameters on {shape} x {flags.device}, {dtype.__name__}")
    print("\n" + table(("memory per device", "GiB", "bytes"), [(name, size / GIB, size) for name, size in memory]))
    milliseconds = 1000 * plan.floor_seconds
    print(f"\na decoding step reads weights and the full cache: at least {milliseconds:.2f} ms")
    if plan.kernels is not None:
        share = plan.step_bytes / (plan.weight_bytes + plan.cache_bytes)
        print(f"as compiled, it moves {share:.2f} times as many bytes, in {plan.kernels:,} kernels")
    margin = card.limit_bytes - plan.peak_bytes
    print(f"fits, {margin / GIB:.1f} GiB to spare" if margin >= 0 else f"does NOT fit, {-margin / GIB:.1f} GiB over")
    if plan.compiled_for == "cpu":
        print(f"note: {CPU_NOTE}")
    if flags.json:
        result = dataclasses.asdict(plan) | {"fits": margin >= 0, "limit_bytes": card.limit_bytes}
        write_atomically(flags.json, json.dumps(result, indent=1) + "\n")


def read_setup(gin_flags: Sequence[str], devices: int) -> "tuple[Setup, list[str]]":
    """Reads the training step from the gin files, on a mesh of `devices`.

    Returns:
      The setup, and notes on choices that the files leave open: a file for one device (all axes 1) is planned with
      its parameters sharded over all devices.

    Raises:
      UserError: the product of the axes is not `devices`.
    """
    from optiml_jax import gin_cli
    from optiml_jax.planning.compiled import Setup

    settings = gin_cli.read_settings(gin_flags, "tools.plan")
    model, computation, data = settings["model"], settings["computation"], settings["data"]
    axes, rows, notes = settings["mesh"], data.batch_rows, []
    if axes == (1, 1, 1) and devices > 1:
        fsdp = math.gcd(devices, model.model_dim)
        axes = (devices // fsdp, fsdp, 1)
        each = devices * computation.accumulation
        rows = -(-rows // each) * each
        notes.append(f"the gin file's mesh has one device: planned with DATA_AXIS {axes[0]} and FSDP_AXIS {fsdp}")
        if rows != data.batch_rows:
            notes.append(f"BATCH_ROWS {data.batch_rows} raised to {rows}, one row per device and microbatch")
    if math.prod(axes) != devices:
        raise UserError(
            f"DATA_AXIS * FSDP_AXIS * TENSOR_AXIS = {' * '.join(map(str, axes))} = {math.prod(axes)}, but "
            f"--devices={devices}; set axes that multiply to it, such as --gin.FSDP_AXIS=..."
        )
    return Setup(
        model,
        settings["optimization"],
        computation,
        rows,
        data.row_length,
        axes,
        data.document_attention,
        data.objective,
    ), notes


def summary(setup: "Setup", plan: "Plan", device: str, card: "Card") -> dict[str, Any]:
    """The contract of --json; bytes are per device, collectives per device and step."""
    from optiml_jax.model.sharding import AXES
    from optiml_jax.planning.collectives import totals

    return {
        "fits": plan.peak_bytes <= card.limit_bytes,
        "devices": math.prod(setup.axes),
        "device": device,
        "mesh": dict(zip(AXES, setup.axes)),
        "argument_bytes": plan.argument_bytes,
        "temporary_bytes": plan.temporary_bytes,
        "peak_bytes": plan.peak_bytes,
        "limit_bytes": card.limit_bytes,
        "collectives": totals(plan.collectives),
        "step_seconds_estimate": sum(plan.seconds.values()),
        "compiled_for": plan.compiled_for,
    }


def report(setup: "Setup", plan: "Plan", result: Mapping[str, Any], card: "Card") -> str:
    from optiml_jax.model.decoder import parameter_count
    from optiml_jax.planning.collectives import overlapped_share

    axes = " x ".join(f"{size} {name}" for name, size in result["mesh"].items())
    micro = setup.computation.accumulation
    lines = [
        f"{parameter_count(setup.model) / 1e6:,.1f} M parameters on {result['devices']} x {result['device']}: {axes}",
        f"{setup.batch_rows} rows of {setup.row_length:,} per step in {micro} microbatch{'es' if micro > 1 else ''}, "
        f"{setup.local_rows} rows per device at once; precision {setup.computation.precision}, "
        f"remat {setup.computation.remat}, attention {setup.computation.attention}",
        "",
    ]
    gradients = min(plan.gradient_bytes, plan.temporary_bytes)
    memory = [
        ("parameters", plan.parameter_bytes),
        ("optimizer", plan.optimizer_bytes),
        ("batch", plan.batch_bytes),
        ("gradients (within temporaries)", gradients),
        ("activations and buffers (within temporaries)", plan.temporary_bytes - gradients),
        ("temporaries", plan.temporary_bytes),
        ("peak", plan.peak_bytes),
        (f"limit ({card.description} less 10%)", card.limit_bytes),
    ]
    lines.append(table(("memory per device", "GiB", "bytes"), [(name, size / GIB, size) for name, size in memory]))
    kinds = [
        (kind, n["count"], n["bytes"] / GIB, f"{overlapped_share(plan.collectives, kind):.0%}")
        for kind, n in result["collectives"].items()
    ]
    if kinds:
        lines += ["", table(("collectives", "per step", "GiB sent per device", "while kernels run"), kinds)]
        if any(collective.in_open_loop for collective in plan.collectives):
            lines.append("collectives in the head's loop over label chunks are counted once")
    seconds = [*plan.seconds.items(), ("step", result["step_seconds_estimate"])]
    lines += ["", table(("estimated time", "seconds"), seconds)]
    margin = card.limit_bytes - plan.peak_bytes
    verdict = f"fits, {margin / GIB:.1f} GiB to spare" if margin >= 0 else f"does NOT fit, {-margin / GIB:.1f} GiB over"
    return "\n".join([*lines, "", verdict])


def advice(setup: "Setup", plan: "Plan", card: "Card") -> str:
    """The smallest change of settings that fits, verified by compiling it."""
    from optiml_jax.planning.compiled import nearest_fit

    alternative = nearest_fit(setup, plan, card)
    if alternative:
        words, other = alternative
        return f"fits with {words}: peak {other.peak_bytes / GIB:.1f} GiB"
    state = (plan.argument_bytes + plan.gradient_bytes) * math.prod(setup.axes) / setup.axes[0]
    devices_needed = math.ceil(state / card.limit_bytes)
    return (
        f"no change of accumulation, remat or axes on {math.prod(setup.axes)} devices fits; parameters, optimizer and "
        f"gradients alone take {state / GIB:,.0f} GiB, {devices_needed} devices' worth; use more or larger devices"
    )


if __name__ == "__main__":
    main()
