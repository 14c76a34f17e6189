"""Multi-process start-up: detected under Slurm, Open MPI and Kubernetes, or set by flags.

Flags of the entry points, each with an environment variable for launchers that give every process one command line:
  --coordinator=HOST:PORT   OPTIML_COORDINATOR   address on which process 0 listens
  --processes=N             OPTIML_PROCESSES     number of processes
  --process_id=I            OPTIML_PROCESS_ID    index of this process; defaults to JOB_COMPLETION_INDEX
Slurm (srun) and Open MPI (mpirun) provide all three: one process per GPU, or under Slurm one per node.
"""

import contextlib
import dataclasses
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optiml_jax.common.errors import UserError, as_user_error

if TYPE_CHECKING:
    import numpy as np

MESSAGE_BYTES = 1024  # length of an error message that is sent to the other processes
FAILURES = "optiml/failures/"  # keys of failed processes
HEARTBEATS = "optiml/heartbeats/"  # keys of running processes
# Status codes of XLA's runtime when a collective has lost the connection to another process.
LOST_CONNECTION = ("UNKNOWN: ", "INTERNAL: ", "UNAVAILABLE: ", "ABORTED: ", "CANCELLED: ", "DEADLINE_EXCEEDED: ")
WATCH_SECONDS = 2.0
SILENT_SECONDS = 40.0  # without a heartbeat, after which a process counts as dead
_exiting = threading.Lock()  # never released
FLAGS = {"--coordinator": "OPTIML_COORDINATOR", "--processes": "OPTIML_PROCESSES", "--process_id": "OPTIML_PROCESS_ID"}


@dataclasses.dataclass(frozen=True)
class Processes:
    """How this process reaches the others.

    Attributes:
      coordinator: host:port of process 0; None where `launcher` provides it.
      count, index: number of processes and the index of this one; None where `launcher` provides them.
      launcher: "slurm" or "ompi", jax's names; None when everything is stated.
      local_devices: GPUs of this host that belong to this process; None for the launcher's default of one per process.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    launcher: str | None = None
    local_devices: tuple[int, ...] | None = None


def find_processes(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], Processes | None]:
    """Reads flags and environment.

    Returns:
      The arguments without these flags, and how to reach the other processes, or None for a single process.

    Raises:
      UserError: a value is missing or invalid.
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
        if "OMPI_MCA_orte_hnp_uri" not in environment:  # Open MPI 5 no longer exports the address of process 0
            raise UserError(
                "this Open MPI does not say where process 0 listens; add --coordinator=HOST:PORT, HOST the first host"
            )
        return rest, Processes(launcher="ompi")
    # A batch script outside srun has SLURM_NTASKS too, but no step: there it is a single process.
    if "SLURM_STEP_NODELIST" in environment and _number(environment, "SLURM_NTASKS", 1) > 1:
        return rest, Processes(launcher="slurm", local_devices=_gpus_of_a_task(environment))
    return rest, None


def _gpus_of_a_task(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """All GPUs of a node that runs one task; jax would use only the first."""
    alone = environment.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
    gpus = _number(environment, "SLURM_GPUS_ON_NODE", 0)
    return tuple(range(gpus)) if alone and gpus else None


def _stated(stated: Mapping[str, str], environment: Mapping[str, str]) -> Processes | None:
    """Combines flags with what the launcher's variables provide."""
    coordinator, processes, process_id = FLAGS.values()
    variables = {**environment, **stated}
    counts = (processes, "OMPI_COMM_WORLD_SIZE")
    indices = (process_id, "JOB_COMPLETION_INDEX", "OMPI_COMM_WORLD_RANK")
    for names, flag in (((coordinator,), "--coordinator"), (counts, "--processes"), (indices, "--process_id")):
        if not any(variables.get(name) for name in names):
            raise UserError(f"{flag} (or {names[0]}) is missing; several processes need {', '.join(FLAGS)}")
    count, index = (
        next(_number(variables, name) for name in names if variables.get(name)) for names in (counts, indices)
    )
    if not 0 <= index < count:
        raise UserError(f"--process_id={index} is not valid with --processes={count}; ids start at 0")
    if not variables[coordinator].rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator={variables[coordinator]} has no port; write HOST:PORT")
    return Processes(variables[coordinator], count, index) if count > 1 else None


def _number(variables: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = variables.get(name)
    if not text and default is not None:
        return default
    if not text.isdigit():
        raise UserError(f"{name}={text} is not a number")
    return int(text)


def initialize(processes: Processes | None) -> None:
    """Joins the other processes. Must run before any device is used; does nothing for None.

    Raises:
      UserError: the processes do not all connect within five minutes, or the launcher's variables cannot be read.
    """
    if processes is None:
        return
    import jax  # imported here so that a mistyped flag is reported at once

    try:
        jax.distributed.initialize(
            processes.coordinator,
            processes.count,
            processes.index,
            local_device_ids=processes.local_devices,
            # Flags take precedence over a surrounding Slurm job, so jax must not detect it.
            cluster_detection_method=processes.launcher or "deactivate",
        )
    except (RuntimeError, ValueError, KeyError) as error:
        where = processes.coordinator or f"the address {processes.launcher} gives"
        reason = str(error).splitlines()[0]
        raise UserError(
            f"could not connect to the other processes through {where} ({reason}); are all of them running?"
        ) from error


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Fails on every process if the block fails on one, for work that one process does alone, such as writing.

    Without it the other processes would wait forever in their next collective. Every process must enter the block.

    Raises:
      UserError: on processes whose block succeeded, with the message of a process whose block failed.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    for number, message in enumerate(_messages(failure)):
        if message and failure is None:
            raise UserError(f"process {number}: {message}")
    if failure is not None:
        raise failure


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Ends every process when the block fails on one of them, within seconds, or when one is killed, within a minute.
    (If that is process 0, jax's own client ends the others: they lose its coordination service.)

    The other processes wait in a collective that a failed one never enters, where no exception can reach them. A thread
    of each process therefore looks for failures, and for heartbeats of the others, in the key-value store of jax's
    coordination service. A process that fails prints its error and exits at once, because an orderly end would wait for
    the others; so do they, naming it. Exit codes are 2 for a `UserError`, else 1.
    """
    import jax
    from jax._src import distributed  # there is no public access to the store

    client = distributed.global_state.client
    if jax.process_count() == 1 or client is None:
        yield
        return
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(client, jax.process_index(), ended), name="failures", daemon=True)
    watching.start()
    try:
        yield
    except Exception as error:
        _end_if_another_failed(client, jax.process_index())  # of which this may be a consequence
        user_error = as_user_error(error)
        if user_error is None and _is_runtime_error(error):
            # Perhaps the connection to a process that was killed: the thread finds out.
            time.sleep(SILENT_SECONDS + 2 * WATCH_SECONDS)
        code = 1 if user_error is None else 2
        text = str(error) if user_error is None else str(user_error).splitlines()[0]  # gin adds lines
        text = " ".join(text.split()) or type(error).__name__
        client.key_value_set(f"{FAILURES}{jax.process_index()}", f"{code} {text[:MESSAGE_BYTES]}")
        trace = traceback.format_exc() if code == 1 else ""
        _exit(code, f"{trace}error: {text}", jax.process_index())
    finally:
        ended.set()
        watching.join()
        with contextlib.suppress(RuntimeError):  # the others may go on, and need not hear from this one any more
            client.key_value_delete(f"{HEARTBEATS}{jax.process_index()}")


def _is_runtime_error(error: Exception) -> bool:
    """Whether an error comes from XLA's runtime. Some functions of jax raise such errors as `ValueError`; their message
    then starts with the status code."""
    import jax

    return isinstance(error, jax.errors.JaxRuntimeError) or str(error).startswith(LOST_CONNECTION)


def _watch(client: Any, index: int, ended: threading.Event) -> None:
    """Says that this process runs, and ends it when another one has failed or is silent."""
    last: dict[str, tuple[str, float]] = {}  # key -> heartbeat, and when it was first seen
    heard = time.monotonic()  # from the coordination service, which is in process 0
    while not ended.wait(WATCH_SECONDS):
        try:
            client.key_value_set(f"{HEARTBEATS}{index}", f"{time.time()} {socket.gethostname()}", allow_overwrite=True)
            _end_if_another_failed(client, index)
            heartbeats = client.key_value_dir_get(HEARTBEATS)
        except RuntimeError:
            if time.monotonic() - heard > SILENT_SECONDS:
                _exit(1, _silent(0, ""), index)
            continue
        heard = time.monotonic()
        for key, value in heartbeats:
            if last.get(key, ("",))[0] != value:
                last[key] = value, heard
            elif heard - last[key][1] > SILENT_SECONDS:
                _exit(1, _silent(int(key.rpartition("/")[2]), f" on {value.partition(' ')[2]}"), index)


def _silent(number: int, where: str) -> str:
    return (
        f"error: process {number}{where} has not answered for {SILENT_SECONDS:.0f} seconds: it was killed, or cannot "
        "be reached; start all processes with the same command to go on from what is saved"
    )


def _end_if_another_failed(client: Any, index: int) -> None:
    for key, value in client.key_value_dir_get(FAILURES):
        number, (code, _, text) = int(key.rpartition("/")[2]), value.partition(" ")
        if number != index:
            _exit(int(code), f"error: process {number}: {text}", index)


def _exit(code: int, message: str, index: int) -> None:
    """Ends this process after the others have had the time to see the failure; process 0, which runs the service, last.
    The first of two threads decides the message."""
    from tqdm import tqdm

    _exiting.acquire()
    tqdm.get_lock().acquire(timeout=1)  # so that no progress bar is drawn below the message
    print(f"\n{message}", file=sys.stderr, flush=True)
    time.sleep(WATCH_SECONDS * (4 if index == 0 else 2))
    sys.stdout.flush()
    os._exit(code)


def from_first(x: "np.ndarray") -> "np.ndarray":
    """Broadcasts process 0's `x` to every process."""
    import jax

    if jax.process_count() == 1:
        return x
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(x)


def _messages(failure: Exception | None) -> list[str]:
    """The error message of each process, empty for success; an empty list for a single process."""
    import jax
    import numpy as np

    if jax.process_count() == 1:
        return []
    from jax.experimental import multihost_utils

    text = "" if failure is None else " ".join(str(failure).split()) or type(failure).__name__
    local_bytes = np.frombuffer(text.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0"), np.uint8)
    all_bytes = np.asarray(multihost_utils.process_allgather(local_bytes)).reshape(-1, MESSAGE_BYTES)
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in all_bytes]
