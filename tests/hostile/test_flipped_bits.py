"""A random bit is flipped in a written file: reading it fails with the file's name, or gives the same values."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from optiml_jax import weights
from optiml_jax.checkpoints import orbax
from optiml_jax.checkpoints.runs import read_run_config
from optiml_jax.common import typed_json
from optiml_jax.common.errors import DataError, UserError
from optiml_jax.data.cache_paths import manifests
from optiml_jax.data.store import SPLIT, TokenStore
from optiml_jax.evaluation.answers.cache import AnswerStore
from optiml_jax.evaluation.prompts.ledger import about, read_ledgers
from optiml_jax.model import sharding
from optiml_jax.training import step
from optiml_jax.training.optimizer import Optimization
from tasks.caching.build import verify
from tests.hostile import material as sound

FLIPS = 100
FEW_TASKS = 3


def read_checkpoint(folder: Path) -> Any:
    """The arrays and metadata of the last step."""
    run = folder / sound.RUN
    config = read_run_config(run)[0]
    computation = step.Computation(precision="fp32")
    abstract, mesh = (
        step.abstract_state(config, Optimization(), computation),
        sharding.make_mesh(devices=jax.devices()[:1]),
    )
    like = orbax.with_shardings(abstract, step.state_shardings(abstract, Optimization(), mesh))
    with contextlib.closing(orbax.Checkpoints(run)) as checkpoints:
        latest = checkpoints.latest
        return checkpoints.meta(latest), jax.tree.map(np.asarray, checkpoints.restore(latest, like))


def read_store(folder: Path) -> Any:
    """The manifest, the tokenizer and the examples of a few tasks, as training reads them."""
    (manifest,) = manifests(folder / sound.CACHE, "samples")
    store = TokenStore.open(manifest)
    store.load_tokenizer()
    names = sorted(task.name for task in store.manifest.tasks)[:FEW_TASKS]
    numbers = [(name, i) for name in names for i in range(store.stats(name, SPLIT)["examples"])]
    examples = store.read_many(SPLIT, numbers)
    store.check()
    starts = [store.input_starts(name, SPLIT) for name in names]
    return (
        store.manifest,
        [(ids.tolist(), start) for ids, start in examples],
        [list(x) for x in starts if x is not None],
    )


def verify_store(folder: Path) -> Any:
    """Runs the checks of `tools.cache_tasks --verify`; raises the first fault."""
    for fault in verify(folder / sound.CACHE):
        raise DataError(fault)
    return None


def read_ledger(folder: Path) -> Any:
    path = folder / sound.CACHE / "ledgers" / "samples.jsonl"
    return about(path), read_ledgers([path])


def read_answers(folder: Path) -> Any:
    """Answers that are equal, or missing; those are answered again."""
    (path,) = (folder / sound.EVALUATION).glob("answers-*.jsonl")
    (whole,) = (folder / "sound" / sound.EVALUATION).glob("answers-*.jsonl")
    settings = typed_json.loads(whole.read_text().splitlines()[0])["settings"]
    with AnswerStore(path.parent, [], settings) as store:
        have = store.answers
    with AnswerStore(whole.parent, [], settings) as store:
        assert have.items() <= store.answers.items() and len(have) >= len(store.answers) - 32
    return None


def read_weights(folder: Path) -> Any:
    export = folder / sound.EXPORT
    return jax.tree.map(np.asarray, weights.load(export, weights.read_config(export)))


class Kind(NamedTuple):
    """A kind of data on disk, and how it is read.

    Attributes:
      part: of the material.
      patterns: of the files in it.
      read: returns what is read of a copy of the material.
    """

    part: str
    patterns: tuple[str, ...]
    read: Callable[[Path], Any]


KINDS = {
    "checkpoint": Kind(sound.RUN, (f"checkpoints/{sound.STEPS}/**/*",), read_checkpoint),
    "store, as training reads it": Kind(
        sound.CACHE,
        (
            "store.json",
            "mixtures/samples/*",
            "tokenizers/*/*",
            *(
                f"tasks/samples.sample00{n}_*/*/*.{kind}"
                for n in (1, 2, 3)
                for kind in ("tokens", "index", "inputs", "json")
            ),
        ),
        read_store,
    ),
    "store, as --verify reads it": Kind(
        sound.CACHE, ("store.json", "mixtures/samples/*", "tokenizers/*/*", "tasks/*/*/*", "ledgers/*"), verify_store
    ),
    "ledger": Kind(sound.CACHE, ("ledgers/samples.*",), read_ledger),
    "answers": Kind(sound.EVALUATION, ("answers-*.jsonl",), read_answers),
    "exported weights": Kind(sound.EXPORT, ("model.safetensors", "checksums.json"), read_weights),
}


def flips(files: list[Path], count: int) -> Iterator[Path]:
    """Flips a bit of one of the files at a time, and takes it back when the next one is asked for: of any file, and of
    any byte, by turns."""
    rng = np.random.default_rng(0)
    sizes = np.array([path.stat().st_size for path in files])
    for number in range(count):
        path = files[rng.choice(len(files), p=sizes / sizes.sum() if number % 2 else None)]
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            yield path
        finally:
            path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_is_refused_by_name_or_changes_nothing(name, material, tmp_path, record_property):
    kind = KINDS[name]
    folder = sound.copied(material, tmp_path / "copy", kind.part)
    (folder / "sound").symlink_to(material)
    files = [path for pattern in kind.patterns for path in sorted((folder / kind.part).glob(pattern)) if path.is_file()]
    before, ends, wrong = kind.read(folder), Counter(), []
    for path in flips([path for path in files if path.stat().st_size], FLIPS):
        try:
            after = kind.read(folder)
        except UserError as error:
            ends["refused"] += 1
            places = (path, *(parent for parent in path.parents if folder / kind.part in parent.parents))
            offered = name != "checkpoint" or "previous one" in str(error) or "may be intact" in str(error)
            if not any(str(place) in str(error) for place in places) or "\n" in str(error) or not offered:
                wrong.append(f"{path}: {error}")
        except Exception as error:
            wrong.append(f"{path}: {error!r}")
        else:
            ends["harmless"] += 1
            try:
                jax.tree.map(np.testing.assert_array_equal, after, before)
            except AssertionError:
                wrong.append(f"{path}: other values")
    print(f"{name}: {dict(ends)}")
    assert not wrong, "\n".join(wrong)
    assert ends["refused"] > FLIPS / 4 or name == "answers"  # those are answered again
