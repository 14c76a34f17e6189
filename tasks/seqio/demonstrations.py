"""A seqio preprocessor that adds the demonstrations of a training run, and splits examples as its objective does."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from optiml_jax.data.batches import read_document
from optiml_jax.data.block_plan import Document
from optiml_jax.data.demonstrations import Demonstrator
from optiml_jax.data.objective import OBJECTIVES, Boundaries
from optiml_jax.data.settings import Data
from optiml_jax.data.store import TokenStore

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
        document = Document(self._task, int(number), 0)
        if self._demonstrator is not None:
            shown, separator, _ = self._demonstrator.draw_one(self._task, int(number), int(pass_))
            document = document._replace(demonstrations=shown, separator=separator)
        ids, source_length, first = read_document(self._store, document, self._separators)
        ((start, _),) = OBJECTIVES[self._data.objective](Boundaries(len(ids), [(source_length, len(ids))], first))
        return ids[:start].astype(np.int32), np.append(ids[start:], self._eos_id).astype(np.int32)
