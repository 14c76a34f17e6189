"""The token store of a run, written on demand."""

import os
import subprocess
import sys
from pathlib import Path

import jax

from optiml_jax.common.errors import UserError
from optiml_jax.data import cache_paths
from optiml_jax.data.settings import Data
from optiml_jax.data.store import TokenStore
from optiml_jax.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]


def open_store(data: Data) -> TokenStore:
    """Opens the token store of the mixture and tokenizer, after writing it if it is missing.

    `tools.cache_tasks` writes it in a separate process, so that this one never loads seqio, TensorFlow or Beam.
    """
    fingerprint = Tokenizer.load(data.tokenizer).fingerprint if data.tokenizer else None
    store = cache_paths.store_with(data.cache_dir, data.mixture, fingerprint)
    if store is None:
        _cache(data)
        store = cache_paths.store_with(data.cache_dir, data.mixture, fingerprint)
    return TokenStore(store)


def _cache(data: Data) -> None:
    command = ["-m", "tools.cache_tasks", f"--mixture={data.mixture}", f"--cache_dir={data.cache_dir}"]
    command += [f"--data_dir={data.data_dir}"] if data.data_dir else []
    command += [f"--tokenizer={data.tokenizer}"] if data.tokenizer else []
    command += [f"--missing_benchmarks={data.missing_benchmarks}", f"--max_label_tokens={data.max_label_tokens}"]
    if data.held_out_instances is not None:
        command += [f"--held_out_instances={data.held_out_instances}"]
    if jax.process_count() > 1 or not (ROOT / "tools").is_dir():
        raise UserError(
            f"CACHE_DIR {data.cache_dir} does not hold mixture {data.mixture}; write it first, in a checkout of "
            f"the project: python {' '.join(command)}"
        )
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run([sys.executable, *command], env=os.environ | {"PYTHONPATH": path})
    if done.returncode:
        raise SystemExit(done.returncode)  # the command has printed the cause
