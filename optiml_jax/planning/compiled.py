"""Compiles a training step for GPUs that are not there, and measures its memory and communication."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from optiml_jax.common.cards import DEVICES_PER_NODE, Card
from optiml_jax.common.errors import UserError
from optiml_jax.model import decoder, sharding, trainable
from optiml_jax.model.config import OPTConfig
from optiml_jax.planning.collectives import Collective, collectives
from optiml_jax.training import step
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.step import Computation

MATMUL_EFFICIENCY = 0.6  # fraction of the data sheet's FLOP/s that large bf16 products reach
# objective -> fraction of the positions that are projected to the vocabulary; "suffix" with the paper's a = 2 (a = 4:
# 0.2)
LABEL_SHARES = {"label": 0.15, "suffix": 0.4, "document": 1.0}
EXECUTED = {"none": 3, "dots": 3, "attention-saved": 4, "full": 4}  # matrix products per step, in forward passes
VISITED = {True: 0.19, False: 0.5}  # document attention -> fraction of a row's pairs; for OPT-IML's short documents
CANDIDATES_COMPILED = 3


@dataclasses.dataclass(frozen=True)
class Setup:
    """The settings that determine the program, and a mesh (data, fsdp, tensor) of devices that need not exist."""

    model: OPTConfig
    optimization: Optimization
    computation: Computation
    batch_rows: int
    row_length: int
    axes: tuple[int, int, int]
    document_attention: bool = True
    objective: str = "label"

    @property
    def local_rows(self) -> int:
        """Rows of a microbatch on one device."""
        return self.batch_rows // self.computation.accumulation // self.batch_parts

    @property
    def batch_parts(self) -> int:
        """Number of devices that hold different rows."""
        return sharding.batch_parts(dict(zip(sharding.AXES, self.axes)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory per device, and the cost of a step.

    Attributes:
      parameter_bytes, optimizer_bytes, batch_bytes: of the arguments, from shapes and shardings.
      argument_bytes, temporary_bytes: as counted by the compiler.
      peak_bytes: arguments, temporaries, and results that do not alias an argument.
      gradient_bytes: float32 gradients within the temporaries; two copies while microbatches are summed.
      collectives: of the compiled program.
      seconds: lower bounds for compute, memory and network, without overlap.
      compiled_for: "cuda", or "cpu" where the plugin is missing.
    """

    parameter_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    gradient_bytes: int
    collectives: list[Collective]
    seconds: dict[str, float]
    compiled_for: str


def described_devices(card: Card, count: int) -> tuple[Sequence[jax.Device], str]:
    """Devices to compile for: `card`s in nodes of eight if the CUDA plugin is installed, else this machine's CPU
    devices.

    Requires JAX_PLATFORMS=cpu and, without the plugin, that many forced host devices.
    """
    per_node = math.gcd(count, DEVICES_PER_NODE)
    shape = f"1x{count // per_node}x{per_node}"
    try:
        described = topologies.get_topology_desc(platform="cuda", target_config=card.target_config(), topology=shape)
        return described.devices, "cuda"
    except (NotImplementedError, RuntimeError, ValueError):  # no plugin, or another version's
        return jax.devices()[:count], "cpu"


def compile_for_described(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program of `described_devices`, in which kernels are calls of what does not exist (`triton_call`)."""
    return lowered.compile(compiler_options={"xla_gpu_mock_custom_calls": True})


def make_plan(setup: Setup, card: Card) -> Plan:
    """Compiles the step of `setup`.

    Raises:
      UserError: the mesh does not divide the model or the batch.
    """
    computation = setup.computation
    devices, compiled_for = described_devices(card, math.prod(setup.axes))
    mesh = sharding.make_mesh(*setup.axes, devices=devices)
    sharding.check_divides(setup.model, mesh, setup.batch_rows, setup.row_length, computation.accumulation)
    state = step.abstract_state(setup.model, setup.optimization, computation)
    shape = (setup.batch_rows, setup.row_length)
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in step.BATCH_DTYPES.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    # Not set_mesh, which would run tracing's eager operations on devices that are not there.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program = step.compiled_step(setup.model, setup.optimization, computation, mesh)
        compiled = compile_for_described(program.trace(state, batch, key).lower())
    memory = compiled.memory_analysis()
    shardings = step.state_shardings(state, setup.optimization, mesh)
    parameter_bytes = shard_bytes(state.params, shardings.params)
    trained_bytes = shard_bytes(state.trainable, shardings.trainable)
    instructions = collectives(compiled.as_text(), mesh.size)
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Plan(
        parameter_bytes=parameter_bytes,
        optimizer_bytes=shard_bytes(state.optimizer, shardings.optimizer),
        batch_bytes=sum(math.prod(shape) * x.dtype.itemsize // setup.batch_parts for x in batch.values()),
        argument_bytes=arguments,
        temporary_bytes=temporaries,
        peak_bytes=arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        gradient_bytes=trained_bytes * (2 if computation.accumulation > 1 else 1),
        collectives=instructions,
        seconds=_seconds(setup, card, trained_bytes, instructions),
        compiled_for=compiled_for,
    )


def shard_bytes(tree: Any, shardings: Any) -> int:
    """Bytes per device of a tree of arrays."""
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, shardings)
    return sum(jax.tree.leaves(sizes))


def _seconds(setup: Setup, card: Card, trained_bytes: int, instructions: list[Collective]) -> dict[str, float]:
    """Lower bounds on step time with no overlap, ignoring kernel launches and stragglers."""
    model, devices = setup.model, math.prod(setup.axes)
    # A frozen matrix has no product for its gradient.
    passes = EXECUTED[setup.computation.remat] - (setup.optimization.trainable != "all")
    head_passes = 3 + _trains_embedding(setup)
    tokens = setup.batch_rows * setup.row_length
    body = model.layers * (4 * model.model_dim**2 + 2 * model.model_dim * model.ffn_dim)
    head = LABEL_SHARES[setup.objective] * model.vocab_size * model.embedding_width
    # Scores, and their product with the values, where attention skips other documents ("dense" does not).
    pairs = 2 * model.layers * VISITED[setup.document_attention] * setup.row_length * model.model_dim
    flops = 2 * tokens * (passes * (body + pairs) + head_passes * head)
    state = 7 * trained_bytes + 2 * trained_bytes * setup.computation.accumulation  # Adam; sums of gradients
    sent = {"node": 0, "network": 0}
    for instruction in instructions:
        nodes = {device // DEVICES_PER_NODE for device in instruction.group}
        sent["node" if len(nodes) == 1 else "network"] += instruction.count * instruction.sent_bytes
    return {
        "compute": flops / devices / (card.flops * MATMUL_EFFICIENCY),
        "memory": state / card.memory_bandwidth,
        "network": sent["node"] / card.node_bandwidth + sent["network"] / card.network_bandwidth,
    }


def _trains_embedding(setup: Setup) -> bool:
    return trainable.TRAINABLE[setup.optimization.trainable](("token_embedding",))


def temporary_estimate(setup: Setup) -> int:
    """Estimates the temporaries of a device: gradients, saved activations, and one layer's work space.

    Within a factor of two of the compiler's; meant for ratios between similar setups.
    """
    model, computation = setup.model, setup.computation
    _, fsdp, tensor = setup.axes
    width = 4 if computation.precision == "fp32" else 2
    body = model.layers * (4 * model.model_dim**2 + 2 * model.model_dim * model.ffn_dim)
    embedding = model.vocab_size * model.embedding_width
    trained, _ = trainable.split(decoder.abstract_params(model), setup.optimization.trainable)
    gradients = 4 * sum(leaf.size for leaf in jax.tree.leaves(trained)) // (fsdp * tensor)
    gradients *= 2 if computation.accumulation > 1 else 1
    positions = setup.local_rows * setup.row_length
    stream = positions * model.model_dim * width
    layer = 6 * stream + (4 * stream + positions * model.ffn_dim * width) // tensor
    weights = 2 * body // model.layers // tensor * width
    table = embedding // tensor * (8 * _trains_embedding(setup) + width)
    saved = {
        "full": stream // tensor,
        "attention-saved": 2 * stream // tensor,
        "dots": (6 * stream + positions * model.ffn_dim * width) // tensor,
        "none": (10 * stream + 2 * positions * model.ffn_dim * width) // tensor,
    }[computation.remat]
    return gradients + model.layers * saved + layer + weights + table


def changes(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Similar setups that need less memory, cheapest first, each with the settings that select it."""
    model, computation = setup.model, setup.computation
    data, fsdp, tensor = setup.axes

    def with_computation(base: Setup, **values) -> Setup:
        return dataclasses.replace(base, computation=dataclasses.replace(base.computation, **values))

    smallest = setup
    words = []
    if computation.remat != "full":
        smallest = with_computation(smallest, remat="full")
        words.append("--gin.REMAT=\"'full'\"")
        yield " ".join(words), smallest
    accumulation = computation.accumulation
    while smallest.local_rows > 1 and smallest.local_rows % 2 == 0:
        accumulation *= 2
        smallest = with_computation(smallest, accumulation=accumulation)
        yield " ".join([*words, f"--gin.Computation.accumulation={accumulation}"]), smallest
    moved = dataclasses.replace(smallest)
    while data > 1 and data % 2 == 0 and model.model_dim % (2 * fsdp) == 0:
        data, fsdp = data // 2, fsdp * 2
        moved = dataclasses.replace(smallest, axes=(data, fsdp, tensor))
        yield _flags(moved, setup), moved
    while fsdp > 1 and fsdp % 2 == 0 and 2 * tensor <= DEVICES_PER_NODE and model.heads % (2 * tensor) == 0:
        fsdp, tensor = fsdp // 2, tensor * 2
        # Twice the rows per group: the same positions per device, in twice as many microbatches.
        moved = with_computation(
            dataclasses.replace(smallest, axes=(data, fsdp, tensor)), accumulation=moved.computation.accumulation * 2
        )
        yield _flags(moved, setup), moved


def _flags(setup: Setup, before: Setup) -> str:
    """The command-line flags that turn `before` into `setup`."""
    words = []
    if setup.computation.remat != before.computation.remat:
        words.append(f"--gin.REMAT=\"'{setup.computation.remat}'\"")
    if setup.computation.accumulation != before.computation.accumulation:
        words.append(f"--gin.Computation.accumulation={setup.computation.accumulation}")
    for name, new, old in zip(sharding.AXES, setup.axes, before.axes):
        if new != old:
            words.append(f"--gin.{name.upper()}_AXIS={new}")
    return " ".join(words)


def nearest_fit(setup: Setup, plan: Plan, card: Card) -> tuple[str, Plan] | None:
    """Returns the first change that is estimated to fit and compiles to fit, with its flags and plan; None if none
    does.

    The estimate is scaled by its error for `plan`.
    """
    scale = plan.temporary_bytes / temporary_estimate(setup)
    tried = 0
    for words, other in changes(setup):
        state = plan.argument_bytes * setup.axes[1] * setup.axes[2] // (other.axes[1] * other.axes[2])
        if state + scale * temporary_estimate(other) > card.limit_bytes:
            continue
        if tried == CANDIDATES_COMPILED:
            break
        tried += 1
        try:
            candidate = make_plan(other, card)
        except UserError:  # the batch does not divide that way
            continue
        if candidate.peak_bytes <= card.limit_bytes:
            return words, candidate
    return None
