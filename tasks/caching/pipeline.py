"""Runs the work of caching: in this process, in one process per core, or on a cluster with a shared file system through
Apache Beam."""

import argparse
import concurrent.futures
import contextlib
import functools
import gc
import itertools
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType
from typing import TextIO

from tqdm import tqdm

from optiml_jax.common.errors import DataError, UserError, nearest
from optiml_jax.data import cache_paths
from tasks.caching.work_item import Job, Origin, failure_path, work_items, write_item
from tasks.task import Task

IN_MEMORY_BYTES = 24 << 20  # with fewer raw bytes, starting worker processes costs more than it saves
Map = Callable[[Callable, Iterable], Iterable]  # applies a function to items, here or in other processes


@contextlib.contextmanager
def workers(pending: Sequence[Task]) -> Iterator[Map]:
    """Yields a `map` over this machine's cores, or over this process alone if there is little to read.

    Processes are forked, so that they have the tasks and the tokenizer of this one.

    Raises:
      UserError: a process was killed.
    """
    if sum(file.stat().st_size for task in pending for file in task.files) <= IN_MEMORY_BYTES:
        yield map
        return
    context = multiprocessing.get_context("fork")
    pool = concurrent.futures.ProcessPoolExecutor(_cores(), context, _prepare, (os.getpid(),))
    try:
        pool.submit(int).result()  # forks before this process has threads
        yield pool.map
    except BrokenProcessPool:
        raise UserError("a process of tools.cache_tasks was killed; is there too little memory? Run it again") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare(parent: int) -> None:
    """Prepares a worker process.

    The tokenizers library gets one thread, because there is already one process per core. Garbage collection is rare,
    because there are hardly any cycles among millions of objects. The process ends with its parent, whose lock it would
    keep.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.freeze()
    gc.set_threshold(200_000)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def write(job: Job, origins: Sequence[Origin], map_: Map, beam_flags: Sequence[str]) -> float:
    """Writes tasks with a progress bar of finished ones; returns the seconds it took.

    Args:
      map_: see `workers`.
      beam_flags: given, Beam distributes the work.

    Raises:
      DataError: the first fault that a worker reported; the other tasks are written.
    """
    start = time.perf_counter()
    paths = [cache_paths.rendering_path(job.cache_dir, origin.task, origin.name) for origin in origins]
    failed = [failure_path(job.cache_dir, origin) for origin in origins]
    with Progress(paths + failed, sys.stderr):
        if beam_flags:
            _write_on_beam(job, origins, beam_flags)
        else:
            items = itertools.chain.from_iterable(map_(functools.partial(work_items, job=job), origins))
            list(map_(functools.partial(write_item, job=job), items))  # waits for all, and raises what one raised
    messages = [path.read_text(encoding="utf-8") for path in failed if path.exists()]
    if messages:
        more = f" (and {len(messages) - 1} more tasks with errors)" if len(messages) > 1 else ""
        raise DataError(messages[0] + more)
    return time.perf_counter() - start


def _write_on_beam(job: Job, origins: Sequence[Origin], flags: Sequence[str]) -> None:
    beam, pipeline_options = import_beam()
    flags = list(flags)
    if not any(flag.startswith("--runner") for flag in flags):
        # Beam's default would try to download the Prism runner first.
        flags.append("--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner")
    pipeline = beam.Pipeline(options=pipeline_options(flags))
    work = pipeline | beam.Create(origins) | "deal out" >> beam.Reshuffle()
    shards = work | beam.FlatMap(work_items, job) | "deal out shards" >> beam.Reshuffle()
    _ = shards | beam.Map(write_item, job)
    pipeline.run().wait_until_finish()


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


def check_runner(flags: Sequence[str]) -> None:
    """Refuses a runner that Beam does not have.

    Raises:
      UserError: names it.
    """
    _, pipeline_options = import_beam()
    from apache_beam.runners.runner import create_runner

    name = pipeline_options(list(flags)).get_all_options().get("runner")
    try:
        create_runner("DirectRunner" if name is None else name)
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        reason = str(error).partition(".")[0] if isinstance(error, ImportError) else "Beam has no such runner"
        raise UserError(
            f"--runner={name}: {reason}; use DirectRunner, FlinkRunner, SparkRunner or DataflowRunner"
        ) from None


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
    if any(flag.startswith("--runner") for flag in arguments):
        check_runner(arguments)


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
