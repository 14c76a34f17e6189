"""The caching pipeline on Apache Beam: in this process, in one process per core, or on a cluster with a shared file
system."""

import argparse
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TextIO

from tqdm import tqdm

from optiml_jax.common.errors import DataError, UserError, nearest
from optiml_jax.data import cache_paths
from tasks.caching.work_item import Job, Origin, failure_path, work_items, worker, write_item
from tasks.task import Task

IN_MEMORY_BYTES = 24 << 20  # with fewer raw bytes, starting worker processes costs more than it saves


def write(job: Job, pending: Sequence[Task], origins: Sequence[Origin], beam_flags: Sequence[str]) -> float:
    """Runs the pipeline over `pending` with a progress bar of finished tasks; returns the seconds it took.

    Args:
      origins: of the pending tasks.

    Raises:
      DataError: the first fault that a worker reported; the other tasks are written.
    """
    beam, pipeline_options = import_beam()  # takes two seconds, so it is only imported when there is work
    flags = list(beam_flags)
    if not any(flag.startswith("--runner") for flag in flags):
        # Beam's default would try to download the Prism runner first.
        flags.append("--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner")
        if not any(flag.startswith("--direct_running_mode") for flag in flags):
            large = sum(file.stat().st_size for task in pending for file in task.files) > IN_MEMORY_BYTES
            flags.append(f"--direct_running_mode={'multi_processing' if large else 'in_memory'}")
        if "--direct_running_mode=multi_processing" in flags:
            flags.append(f"--direct_num_workers={os.cpu_count()}")

    start = time.perf_counter()
    paths = [cache_paths.rendering_path(job.cache_dir, origin.task, origin.name) for origin in origins]
    failed = [failure_path(job.cache_dir, origin) for origin in origins]
    worker.cache_clear()
    processes = "--direct_running_mode=multi_processing" in flags
    with (
        one_thread_per_worker(processes),
        quiet_workers(job, processes) as terminal,
        Progress(paths + failed, terminal),
    ):
        pipeline = beam.Pipeline(options=pipeline_options(flags))
        work = pipeline | beam.Create(origins) | "deal out" >> beam.Reshuffle()
        shards = work | beam.FlatMap(work_items, job) | "deal out shards" >> beam.Reshuffle()
        _ = shards | beam.Map(write_item, job)
        pipeline.run().wait_until_finish()
    messages = [path.read_text(encoding="utf-8") for path in failed if path.exists()]
    if messages:
        more = f" (and {len(messages) - 1} more tasks with errors)" if len(messages) > 1 else ""
        raise DataError(messages[0] + more)
    return time.perf_counter() - start


@contextlib.contextmanager
def one_thread_per_worker(processes: bool) -> Iterator[None]:
    """Limits the tokenizer of each worker process to one thread, because there is already one process per core."""
    name, before = "RAYON_NUM_THREADS", os.environ.get("RAYON_NUM_THREADS")
    if processes:
        os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name, None)
        os.environ.update({name: before} if before is not None else {})


@contextlib.contextmanager
def quiet_workers(job: Job, processes: bool) -> Iterator[TextIO]:
    """Yields the stream for the progress bar; sends the log of Beam's worker processes (twenty lines each) to a
    file."""
    if not processes:
        yield sys.stderr
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with Path(job.cache_dir, "workers.log").open("wb") as log, os.fdopen(os.dup(terminal), "w") as stream:
            os.dup2(log.fileno(), 2)
            yield stream
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def import_beam() -> tuple[ModuleType, type]:
    """Imports Beam without the warnings about clouds that its import logs."""
    logging.disable(logging.WARNING)
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam, PipelineOptions


def beam_flags() -> set[str]:
    """All flags of Beam and its runners."""
    parser = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
    for options in import_beam()[1].__subclasses__():
        options._add_argparse_args(parser)
    return set(parser._option_string_actions)


def check_flags(arguments: Sequence[str], tool_flags: Sequence[str]) -> None:
    """Refuses flags that are unknown to Beam, which would silently ignore them.

    Args:
      tool_flags: flags of the tool itself; the error suggests the nearest.

    Raises:
      UserError: a flag belongs to neither the tool nor Beam.
    """
    beam_names = beam_flags()
    for flag in arguments:
        name = flag.split("=")[0]
        if flag.startswith("-") and name not in beam_names:
            raise UserError(
                f"{name}: neither a flag of this tool nor of Beam{nearest(name, tool_flags) or '; see --help'}"
            )


class Progress:
    """A progress bar over files as they appear, drawn by a thread, because the workers may run anywhere."""

    def __init__(self, paths: Sequence[Path], stream: TextIO) -> None:
        self.waiting, self.total = list(paths), len(paths) // 2  # each task ends in one of two files
        self.stream, self.done = stream, threading.Event()

    def __enter__(self) -> None:
        self.bar = tqdm(total=self.total, desc="caching", unit="task", mininterval=0.5, file=self.stream)
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        while not self.done.wait(0.2):
            self.update()

    def update(self) -> None:
        missing = [path for path in self.waiting if not path.exists()]
        self.bar.update(len(self.waiting) - len(missing))
        self.waiting = missing

    def __exit__(self, *exception: object) -> None:
        self.done.set()
        self.thread.join()
        self.update()
        self.bar.close()
