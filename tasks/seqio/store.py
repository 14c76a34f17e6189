"""Cached mixtures as seqio mixtures, for t5x and other users of seqio."""

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from optiml_jax.common.errors import UserError, nearest
from optiml_jax.data.demonstrations import Demonstrator, separator_ids
from optiml_jax.data.sampling import probabilities
from optiml_jax.data.settings import NATURAL, Data
from optiml_jax.data.store import SPLIT, TokenStore
from optiml_jax.data.subset import selected
from tasks.seqio.demonstrations import NUMBER, AddDemonstrations
from tasks.seqio.vocabulary import OptVocabulary

PREFIX = "cached:"
AT_ONCE = 1024  # examples read together
SIGNATURE = {name: tf.TensorSpec((None,), tf.int32) for name in ("inputs", "targets")}


def to_seqio(
    mixture: str | os.PathLike,
    *,
    eps: int | None = None,
    proportions: Mapping[str, float] | str | None = None,
    run: Data | None = None,
) -> seqio.Mixture:
    """Registers a mixture for `seqio.get_dataset(mixture_or_task_name=to_seqio(...).name, ...)`.

    Args:
      mixture: the name of a registered mixture, which reads raw files; or a manifest,
        `CACHE_DIR/mixtures/NAME/SPECIFICATION.json`, for a mixture "cached:NAME" of tasks "cached:TASK" that read the
        token store: nothing is rendered, tokenized or counted again. It replaces a registered mixture of the same name.
      eps, proportions: of a manifest, in place of its own; see `optiml_jax.data.sampling.probabilities`.
      run: settings of a training run: its tasks, rates, demonstrations and objective. Without shuffling, an example of
        each pass has the tokens that training gives it.

    Returns:
      The mixture: source and target (with `</s>`) of the examples, at the rates at which training draws them.

    Raises:
      UserError: there is no such mixture, manifest or store; or `eps`, `proportions` or `run` are invalid.
    """
    if str(mixture) in seqio.MixtureRegistry.names() and not str(mixture).startswith(PREFIX):
        if (eps, proportions, run) != (None, None, None):
            raise UserError(
                f"{mixture}: eps, proportions and run can be given for a manifest, CACHE_DIR/mixtures/NAME/*.json"
            )
        return seqio.MixtureRegistry.get(str(mixture))
    if Path(mixture).suffix != ".json":
        registered = [name for name in seqio.MixtureRegistry.names() if not name.startswith(PREFIX)]
        raise UserError(
            f"no mixture {mixture}{nearest(str(mixture), registered)}; give a name or a file of CACHE_DIR/mixtures/NAME"
        )
    store = TokenStore.open(mixture)
    if run is not None and run.token_shares:
        raise UserError("token_shares: a seqio mixture has shares of the draws; give them as proportions")
    manifest = store.manifest if run is None else selected(store.manifest, run)
    eps = manifest.cap(run.eps if run is not None and eps is None else eps)
    proportions = run.proportions if run is not None and proportions is None else proportions
    proportions = manifest.benchmarks if proportions is None else proportions
    rates = probabilities(manifest, eps, proportions)  # raises for invalid arguments
    vocabulary = OptVocabulary(store.tokenizer_path)
    vocabulary.tokenizer = store.load_tokenizer()  # verified
    preprocessors = _preprocessors(store, run, [name for name, p in rates.items() if p > 0], vocabulary)
    rate = functools.partial(seqio.mixing_rate_num_examples, maximum=eps)
    parts: dict[str, list[tuple]] = {}
    for task in manifest.tasks:
        if rates[task.name] > 0:
            parts.setdefault(task.benchmark, []).append(
                (_add_task(store, task.name, vocabulary, preprocessors.get(task.name)), rate)
            )
    name = f"{PREFIX}{manifest.name}"
    if proportions is None or proportions == NATURAL:
        return _add_mixture(name, [part for benchmark in parts.values() for part in benchmark])
    nested = [
        (_add_mixture(f"{name}:{benchmark}", tasks).name, float(proportions[benchmark]))
        for benchmark, tasks in parts.items()
    ]
    return _add_mixture(name, nested)


def _add_mixture(name: str, parts: list[tuple]) -> seqio.Mixture:
    if name in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(name)
    return seqio.MixtureRegistry.add(name, parts)


def _preprocessors(
    store: TokenStore, run: Data | None, names: list[str], vocabulary: OptVocabulary
) -> dict[str, AddDemonstrations]:
    """The preprocessor of each task whose examples are not those of the store alone."""
    if run is None:
        return {}
    separators, demonstrator = separator_ids(run, vocabulary.tokenizer.encode), None
    shown, whole = set(), set()  # tasks with demonstrations, and those of which everything becomes a target
    if run.demonstrations is not None:
        demonstrator = Demonstrator(store, run, sorted(names), [len(ids) for ids in separators])
        demonstrator.check()
        shown = set(names) - set(demonstrator.without)
    if run.objective == "document":
        whole = {name for name in names if store.chunk_flags(name, SPLIT) is None}  # of chunks it is already
    eos_id = vocabulary.eos_id
    return {
        name: AddDemonstrations(store, name, run, demonstrator if name in shown else None, separators, eos_id)
        for name in shown | whole
    }


def _add_task(store: TokenStore, task: str, vocabulary: OptVocabulary, preprocessor: AddDemonstrations | None) -> str:
    name = f"{PREFIX}{task}"
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=StoreSource(store, task, vocabulary.eos_id, numbers_only=preprocessor is not None),
        preprocessors=[] if preprocessor is None else [preprocessor],
        output_features={
            "inputs": seqio.Feature(vocabulary, add_eos=False),
            "targets": seqio.Feature(vocabulary, add_eos=True),
        },
    )
    return name


def _example(source: np.ndarray, label: np.ndarray, end: list[int]) -> dict[str, np.ndarray]:
    return {"inputs": source.astype(np.int32), "targets": np.append(label, end).astype(np.int32)}


class StoreSource(seqio.FunctionDataSource):
    """The examples of a cached task; their number is read from its stats. A conversation of n labels gives n examples
    and counts as one, so that its task has the rate of training.

    Args:
      numbers_only: whether to yield the numbers of the examples, for `AddDemonstrations`.
    """

    def __init__(self, store: TokenStore, task: str, eos_id: int, numbers_only: bool = False) -> None:
        self._store, self._task, self._eos_id, self._numbers_only = store, task, eos_id, numbers_only
        super().__init__(self._dataset, splits=[SPLIT])

    def num_input_examples(self, split: str) -> int | None:
        return self._store.stats(self._task, SPLIT)["examples"] if split == SPLIT else None

    def _dataset(self, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        count = len(self._store.lengths(self._task, SPLIT))  # raises for a damaged file, before TensorFlow runs
        if self._numbers_only:
            return tf.data.Dataset.range(count).map(lambda number: {NUMBER: number})
        flags = self._store.chunk_flags(self._task, SPLIT)
        flags = [0] * count if flags is None else flags.tolist()  # Python integers: uint8 would overflow below

        earlier = self._store.earlier_labels(self._task, SPLIT)

        def examples() -> Iterator[dict[str, np.ndarray]]:
            for start in range(0, count, AT_ONCE):
                indices = [(self._task, i) for i in range(start, min(start + AT_ONCE, count))]
                for i, (ids, label_start) in enumerate(self._store.read_many(SPLIT, indices), start):
                    for _, first, stop in () if earlier is None else earlier.of_example(i).tolist():
                        yield _example(ids[:first], ids[first:stop], [self._eos_id])
                    end = [] if flags[i] & 1 else [self._eos_id]  # no end where the document continues
                    yield _example(ids[:label_start], ids[label_start + (flags[i] >> 1) :], end)
            self._store.check()

        return tf.data.Dataset.from_generator(examples, output_signature=SIGNATURE)
