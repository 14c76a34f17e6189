"""Many processes: found by themselves under Slurm, Open MPI and Kubernetes, or named by flags; then `jax.distributed`.

Flags of the entry points, or the same in the environment where several processes share one command line:
  --coordinator=HOST:PORT   OPTIML_COORDINATOR   where process 0 listens
  --processes=N             OPTIML_PROCESSES     how many there are
  --process_id=I            OPTIML_PROCESS_ID    which this is; an indexed Kubernetes job's JOB_COMPLETION_INDEX will do
Slurm (srun) and Open MPI (mpirun) say all of it themselves: one process a GPU, or under Slurm one a node.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from optiml_jax.common.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MESSAGE_BYTES = 1024  # of an error that travels to the other processes
FLAGS = {"--coordinator": "OPTIML_COORDINATOR", "--processes": "OPTIML_PROCESSES", "--process_id": "OPTIML_PROCESS_ID"}


@dataclasses.dataclass(frozen=True)
class Processes:
    """How this process finds the others.

    Attributes:
      count, index: of the processes, and which this is; None where `launcher` knows.
      coordinator: host:port of process 0; None where `launcher` knows.
      launcher: "slurm" or "ompi", jax's names; None when everything is stated.
      local_devices: the GPUs of this host that are this process's; None for the launcher's own rule, one a process.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    launcher: str | None = None
    local_devices: tuple[int, ...] | None = None


def find_processes(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], Processes | None]:
    """Reads flags and environment.

    Returns:
      The arguments without our flags, and how to reach the other processes; None when there is one process alone.

    Raises:
      UserError: a value is missing or makes no sense.
    """
    rest = [word for word in arguments if word.partition("=")[0] not in FLAGS]
    stated = {name: environment[name] for name in FLAGS.values() if environment.get(name)}
    for word in arguments:
        flag, _, value = word.partition("=")
        if flag in FLAGS and not value:
            raise UserError(f"{word}: the flag needs a value, {flag}=...")
        if flag in FLAGS:
            stated[FLAGS[flag]] = value
    if stated:
        return rest, _stated(stated, environment)
    if _number(environment, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environment:  # Open MPI 5 no longer says where process 0 runs
            raise UserError(
                "this Open MPI does not say where process 0 listens; add --coordinator=HOST:PORT, HOST the first host"
            )
        return rest, Processes(launcher="ompi")
    # A batch script outside srun has SLURM_NTASKS too, but no step: there it is one process.
    if "SLURM_STEP_NODELIST" in environment and _number(environment, "SLURM_NTASKS", 1) > 1:
        return rest, Processes(launcher="slurm", local_devices=_gpus_of_a_task(environment))
    return rest, None


def _gpus_of_a_task(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """All GPUs of a node where it has one task; jax would take the first alone."""
    alone = environment.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
    gpus = _number(environment, "SLURM_GPUS_ON_NODE", 0)
    return tuple(range(gpus)) if alone and gpus else None


def _stated(stated: Mapping[str, str], environment: Mapping[str, str]) -> Processes | None:
    coordinator, processes, process_id = FLAGS.values()
    known = {**environment, **stated}
    counts = (processes, "OMPI_COMM_WORLD_SIZE")
    indices = (process_id, "JOB_COMPLETION_INDEX", "OMPI_COMM_WORLD_RANK")
    for names, flag in (((coordinator,), "--coordinator"), (counts, "--processes"), (indices, "--process_id")):
        if not any(known.get(name) for name in names):
            raise UserError(f"{flag} (or {names[0]}) is missing; many processes need {', '.join(FLAGS)}")
    count, index = (next(_number(known, name) for name in names if known.get(name)) for names in (counts, indices))
    if not 0 <= index < count:
        raise UserError(f"--process_id={index} is not one of --processes={count}; they are numbered from 0")
    if not known[coordinator].rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator={known[coordinator]} has no port; write HOST:PORT")
    return Processes(known[coordinator], count, index) if count > 1 else None


def _number(known: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = known.get(name)
    if not text and default is not None:
        return default
    if not text.isdigit():
        raise UserError(f"{name}={text} is not a number")
    return int(text)


def initialize(processes: Processes | None) -> None:
    """Joins the other processes; to be called before anything touches a device. None: does nothing.

    Raises:
      UserError: they do not all come within five minutes, or the launcher cannot be read.
    """
    if processes is None:
        return
    import jax  # here, so that a mistake in a flag costs no import

    try:
        jax.distributed.initialize(
            processes.coordinator,
            processes.count,
            processes.index,
            local_device_ids=processes.local_devices,
            # Stated processes must not be mixed with what a surrounding Slurm job says.
            cluster_detection_method=processes.launcher or "deactivate",
        )
    except (RuntimeError, ValueError, KeyError) as error:
        where = processes.coordinator or f"the address {processes.launcher} gives"
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the other processes were not reached through {where} ({reason}); do all of them run?"
        ) from error


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that fails on every process if it fails on one: for what one of them alone does, such as writing.

    Without it the others would wait for the one that failed, in their next exchange, for ever. Every process enters.

    Raises:
      UserError: on the processes where the block went well, with the message of one where it did not.
    """
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    for number, message in enumerate(_messages(failed)):
        if message and failed is None:
            raise UserError(f"process {number}: {message}")
    if failed is not None:
        raise failed


def from_first(x: "np.ndarray") -> "np.ndarray":
    """Process 0's `x`, on every process."""
    import jax

    if jax.process_count() == 1:
        return x
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(x)


def _messages(failed: Exception | None) -> list[str]:
    """What went wrong on each process; nothing for one alone."""
    import jax
    import numpy as np

    if jax.process_count() == 1:
        return []
    from jax.experimental import multihost_utils

    text = "" if failed is None else " ".join(str(failed).split()) or type(failed).__name__
    mine = np.frombuffer(text.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0"), np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(mine)).reshape(-1, MESSAGE_BYTES)
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in everyone]
