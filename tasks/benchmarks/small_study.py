"""The tasks of the small study (docs/experiments.md), which `tools.small_study.data` writes: the layout of
Super-NaturalInstructions, and ranked answers where a task has few different ones, as in `samples`."""

from pathlib import Path

from optiml_jax.data.specification import CacheOptions
from tasks.benchmarks import samples
from tasks.catalog.registry import Benchmark

NAME = "small_study"


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks in `directory`/tasks; 32 instances of each train task are held out."""
    return samples.discover_folder(NAME, directory, options)
