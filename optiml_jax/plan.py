"""Does a run fit, what does it send, how long is a step? Compiles the real training step for GPUs that are not there.

python -m tools.plan --gin_file=opt30b_iml.gin --devices=64 --device=a100-40gb      (installed: optiml-plan)

Settings of the gin file may be changed as in training: --gin.NAME=VALUE. With the extra [plan] (XLA's CUDA compiler,
no GPU needed) the program is the GPU's own; without it the CPU's stands in, which overstates temporaries.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optiml_jax.common import xla_flags
from optiml_jax.common.errors import UserError, exit_on_user_error, nearest
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser, table

if TYPE_CHECKING:  # jax reads its environment when it is imported, and main sets that first
    from optiml_jax.common.cards import Card
    from optiml_jax.planning.compiled import Plan, Setup

GIB = 2**30
CPU_NOTE = (
    "compiled for CPU devices, the CUDA plugin is not installed: temporaries are overstated, often twofold, and sums "
    "are not scattered; for the GPU's own program install the extra [plan]"
)


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags, gin_flags = parse(arguments)
    if flags.devices < 1:
        raise UserError(f"--devices={flags.devices}: give a number from 1 on")
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA tells how near the limit it is; the report does too
    forced = f"--xla_force_host_platform_device_count={flags.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {forced}".strip()
    xla_flags.set_defaults(os.environ)

    from optiml_jax.common.cards import CARDS
    from optiml_jax.planning import compiled as planning

    if flags.device not in CARDS:
        close = nearest(flags.device, CARDS)
        raise UserError(f"--device={flags.device} is unknown; use one of {', '.join(CARDS)}{close}")
    card = CARDS[flags.device]
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
    """Our flags, and those of `gin_cli`."""
    parser = Parser("tools.plan", __doc__)
    parser.add_argument("--devices", type=int, required=True, help="GPUs of the run")
    parser.add_argument("--device", default="a100-40gb", help="which GPU (a100-40gb)")
    parser.add_argument("--json", help="also write the result to this file")
    return parser.parse_known_args(arguments)


def read_setup(gin_flags: Sequence[str], devices: int) -> "tuple[Setup, list[str]]":
    """What the gin file says of the step, on a mesh of `devices`.

    Returns:
      The setup, and notes on what was chosen where the file leaves it open: a file for one device (all axes 1) is
      planned with its parameters spread over all of them.

    Raises:
      UserError: the axes do not multiply to `devices`.
    """
    from optiml_jax import gin_cli
    from optiml_jax.planning.compiled import Setup

    settings = gin_cli.settings(gin_flags, "tools.plan")
    model, computation, data = settings["model"], settings["computation"], settings["data"]
    axes, rows, notes = settings["mesh"], data.batch_rows, []
    if axes == (1, 1, 1) and devices > 1:
        fsdp = math.gcd(devices, model.model_dim)
        axes = (devices // fsdp, fsdp, 1)
        each = devices * computation.accumulation
        rows = -(-rows // each) * each
        notes.append(f"the gin file has a mesh of one device: spread over DATA_AXIS {axes[0]} and FSDP_AXIS {fsdp}")
        if rows != data.batch_rows:
            notes.append(f"BATCH_ROWS {data.batch_rows} raised to {rows}, a row a device and microbatch")
    if math.prod(axes) != devices:
        raise UserError(
            f"DATA_AXIS * FSDP_AXIS * TENSOR_AXIS = {' * '.join(map(str, axes))} = {math.prod(axes)}, but "
            f"--devices={devices}; set axes that multiply to it, such as --gin.FSDP_AXIS=..."
        )
    return Setup(model, settings["optimization"], computation, rows, data.row_length, axes), notes


def summary(setup: "Setup", plan: "Plan", device: str, card: "Card") -> dict[str, Any]:
    """The contract of --json; bytes are those of one device, collectives those it sends in a step."""
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

    axes = " x ".join(f"{size} {name}" for name, size in result["mesh"].items())
    micro = setup.computation.accumulation
    lines = [
        f"{parameter_count(setup.model) / 1e6:,.1f} M parameters on {result['devices']} x {result['device']}: {axes}",
        f"{setup.batch_rows} rows of {setup.row_length:,} a step in {micro} microbatch{'es' if micro > 1 else ''}, "
        f"{setup.local_rows} rows a device at once; precision {setup.computation.precision}, "
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
    lines.append(table(("memory of a device", "GiB", "bytes"), [(name, size / GIB, size) for name, size in memory]))
    kinds = [(kind, n["count"], n["bytes"] / GIB) for kind, n in result["collectives"].items()]
    if kinds:
        lines += ["", table(("collectives", "a step", "GiB sent a device"), kinds)]
        if any(one.in_open_loop for one in plan.collectives):
            lines.append("loops as long as there are labels (the head's) are counted once")
    seconds = [*plan.seconds.items(), ("step", result["step_seconds_estimate"])]
    lines += ["", table(("time, estimated", "seconds"), seconds)]
    margin = card.limit_bytes - plan.peak_bytes
    verdict = f"fits, {margin / GIB:.1f} GiB to spare" if margin >= 0 else f"does NOT fit, {-margin / GIB:.1f} GiB over"
    return "\n".join([*lines, "", verdict])


def advice(setup: "Setup", plan: "Plan", card: "Card") -> str:
    """The nearest change that fits, compiled to be sure."""
    from optiml_jax.planning.compiled import nearest_fit

    found = nearest_fit(setup, plan, card)
    if found:
        words, other = found
        return f"fits with {words}: peak {other.peak_bytes / GIB:.1f} GiB"
    state = (plan.argument_bytes + plan.parameter_bytes) * math.prod(setup.axes) / setup.axes[0]
    worth = math.ceil(state / card.limit_bytes)
    return (
        f"no change of accumulation, remat or axes on {math.prod(setup.axes)} devices was found to fit; parameters, "
        f"optimizer and gradients alone are {state / GIB:,.0f} GiB, {worth} devices' worth; "
        "use more devices or larger ones"
    )


if __name__ == "__main__":
    main()
