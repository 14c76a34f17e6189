"""A seqio preprocessor that adds the demonstrations of a training run, and splits examples as its objective does."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from optiml_jax.data.batches import demonstrated
from optiml_jax.data.block_plan import positions
from optiml_jax.data.demonstrations import NONE, Demonstrator
from optiml_jax.data.objective import OBJECTIVES, Boundaries
from optiml_jax.data.settings import Data
from optiml_jax.data.store import SPLIT, TokenStore

NUMBER = "number"  # feature: the number of an example in its task


class AddDemonstrations:
    """The preprocessor of one task: gives an example of each pass the tokens that training gives it.

    seqio repeats a data set before it preprocesses it, in the order of its source, so that a number that is not above
    the previous one begins another pass.

    Args:
      data: settings of the run.
      demonstrator: None without demonstrations; the objective applies nevertheless.
      separators: `demonstrations.separator_ids`.
    """

    def __init__(
        self,
        store: TokenStore,
        task: str,
        data: Data,
        demonstrator: Demonstrator | None,
        separators: Sequence[np.ndarray],
        eos_id: int,
    ) -> None:
        self._store, self._task, self._data, self._eos_id = store, task, data, eos_id
        self._demonstrator, self._separators = demonstrator, separators
        self._room = data.row_length - positions(store, data, task, slice(None))[0]

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        def with_pass(state: tuple, example: Mapping[str, tf.Tensor]) -> tuple:
            previous, passes = state
            number = example[NUMBER]
            passes += tf.cast(number <= previous, tf.int64)
            return (number, passes), (number, passes)

        def read(number: tf.Tensor, pass_: tf.Tensor) -> dict[str, tf.Tensor]:
            inputs, targets = tf.numpy_function(self.read, [number, pass_], [tf.int32, tf.int32])
            inputs.set_shape([None])
            targets.set_shape([None])
            return {"inputs": inputs, "targets": targets}

        return dataset.scan((tf.constant(-1, tf.int64), tf.constant(0, tf.int64)), with_pass).map(read)

    def read(self, number: int, pass_: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the inputs and targets of an example, int32."""
        number, shown, separator = int(number), [], 0
        if self._demonstrator is not None:
            task = np.array([self._demonstrator.names.index(self._task)])
            room = self._room[number : number + 1]
            drawn = self._demonstrator.draw(task, np.array([number]), np.array([pass_]), room)
            shown, separator = [i for i in drawn.examples_nK[0].tolist() if i != NONE], int(drawn.separators_n[0])
        *solved, own = (
            (*read, i)
            for read, i in zip(
                self._store.read_many(SPLIT, [(self._task, i) for i in (*shown, number)]), (*shown, number)
            )
        )
        ids, source_length, first = *own[:2], None
        if solved:
            starts = self._store.input_starts(self._task, SPLIT)
            ids, source_length, first = demonstrated(own, solved, self._separators[separator], starts)
        ((start, _),) = OBJECTIVES[self._data.objective](Boundaries(len(ids), [(source_length, len(ids))], first))
        return ids[:start].astype(np.int32), np.append(ids[start:], self._eos_id).astype(np.int32)
