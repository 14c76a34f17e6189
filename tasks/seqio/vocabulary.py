"""OPT's tokenizer as a `seqio.Vocabulary`."""

import functools
import os
from collections.abc import Iterable, Sequence

import numpy as np
import seqio
import tensorflow as tf

from optiml_jax.common.errors import UserError
from optiml_jax.tokenizer import Tokenizer


class OptVocabulary(seqio.Vocabulary):
    """Byte-level BPE with OPT's special ids: `</s>` is 2 and ends a text, `<pad>` is 1 (not 0, as seqio's packer
    assumes).

    The tokenizer is loaded on first use, so that tasks can be registered before it is known.
    """

    def __init__(self, source: str | os.PathLike | None) -> None:
        """`source`: argument of `Tokenizer.load`; None raises a `UserError` when ids are needed."""
        super().__init__()
        self.source = None if source is None else str(source)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        if self.source is None:
            remedy = "set OPTIML_TOKENIZER or call tasks.seqio_tasks.use_data_dir(folder, tokenizer=...)"
            raise UserError(f"TOKENIZER: {remedy}")
        return Tokenizer.load(self.source)

    @property
    def bos_id(self) -> int:
        return self.tokenizer.bos_id

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_id

    @property
    def unk_id(self) -> int:
        return self.tokenizer.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def _encode(self, s: str) -> Sequence[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(list(ids))

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        """Encodes a text: string [] -> int32 [tokens]."""
        encode = lambda text: np.array(self._encode(text.decode()), np.int32)  # noqa: E731
        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """int32 [..., tokens] -> string [...]."""

        def decode(ids: np.ndarray) -> np.ndarray:
            rows = ids.reshape(-1, ids.shape[-1])
            return np.array([self._decode(row).encode() for row in rows], object).reshape(ids.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        texts.set_shape(ids.shape[:-1])
        return texts

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OptVocabulary) or None in (self.source, other.source):
            return self is other
        return self.source == other.source or self.tokenizer.fingerprint == other.tokenizer.fingerprint

    __hash__ = None
