"""The token store of a run, brought up to date before training."""

import os
import subprocess
import sys
from pathlib import Path

import jax

from optiml_jax.common import distributed
from optiml_jax.common.errors import UserError
from optiml_jax.data import cache_paths
from optiml_jax.data.lookup import find_manifest
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.settings import Data
from optiml_jax.data.specification import options_of
from optiml_jax.data.store import TokenStore
from optiml_jax.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]


def open_store(data: Data) -> TokenStore:
    """Opens the token store of a run's mixture.

    With a DATA_DIR, its raw files are compared with the store, and what has changed is cached. `tools.cache_tasks` does
    that in a separate process, so that this one never loads seqio, TensorFlow or Beam. Several processes only compare:
    caching would leave their accelerators idle.

    Raises:
      UserError: the mixture is not cached with these settings and cannot be cached here.
    """
    with distributed.together():
        if jax.process_index() == 0:
            _bring_up_to_date(data)
    return TokenStore.open(_manifest(data))


def _manifest(data: Data) -> Path:
    fingerprint = Tokenizer.load(data.tokenizer).fingerprint if data.tokenizer else None
    return find_manifest(data.cache_dir, data.mixture, fingerprint, options_of(data), data.data_dir)


def _bring_up_to_date(data: Data) -> None:
    """Caches the mixture if its raw files are known and differ from the store, or if it is not in the store."""
    paths = cache_paths.manifests(data.cache_dir, data.mixture)
    if data.data_dir is None and paths:
        needs_no_files = all(Manifest.read(path).specification.data_dir is None for path in paths)
        try:
            _manifest(data)
            return
        except UserError:
            if not needs_no_files:
                raise
    command = ["-m", "tools.cache_tasks", f"--mixture={data.mixture}", f"--cache_dir={data.cache_dir}"]
    command += [f"--data_dir={data.data_dir}"] if data.data_dir else []
    command += [f"--tokenizer={tokenizer}"] if (tokenizer := data.tokenizer or _only_tokenizer(data)) else []
    command += options_of(data).flags()
    if not (ROOT / "tools").is_dir():
        try:
            _manifest(data)
            print(f"{data.data_dir}: not compared with {data.cache_dir}, because tools.cache_tasks is not installed")
            return
        except UserError as error:
            raise UserError(
                f"{error}: write it first, in a checkout of the project: python {' '.join(command)}"
            ) from None
    several = jax.process_count() > 1
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *command, "--check" if several else "--quiet"], env=os.environ | {"PYTHONPATH": path}
    )
    if done.returncode and several:
        raise UserError(
            f"CACHE_DIR {data.cache_dir} is not up to date; cache before several processes start: python "
            f"{' '.join(command)}"
        )
    if done.returncode:
        raise SystemExit(done.returncode)  # the command has printed the cause


def _only_tokenizer(data: Data) -> str | None:
    """The tokenizer with which the mixture is cached; None if it is not, or with several."""
    stored = {
        Manifest.read(path).specification.tokenizer for path in cache_paths.manifests(data.cache_dir, data.mixture)
    }
    return str(cache_paths.tokenizer_path(data.cache_dir, stored.pop())) if len(stored) == 1 else None
