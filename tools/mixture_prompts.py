"""Prompts of training for reading: what each part is, and which of it has the loss."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optiml_jax.data.batches import assemble_rows, read_document
from optiml_jax.data.block_plan import Document
from optiml_jax.data.demonstrations import Demonstrator, separator_ids
from optiml_jax.data.positions import positions
from optiml_jax.data.settings import Data
from optiml_jax.data.store import SPLIT, TokenStore

KINDS = SOURCE, DEMONSTRATION, TARGET = ("source", "demonstration", "target")


class Part(NamedTuple):
    """A part of a prompt. `kind`: one of `KINDS`; `learned`: whether its tokens have the loss."""

    kind: str
    text: str
    learned: bool


class Prompts:
    """The examples of a store as a run trains on them, with demonstrations and objective.

    Attributes:
      demonstrator: None without demonstrations.
    """

    def __init__(self, store: TokenStore, data: Data, names: Sequence[str]) -> None:
        """`names`: the tasks that the run draws."""
        self.store, self.data, self.tokenizer = store, data, store.load_tokenizer()
        self._separators = separator_ids(data, self.tokenizer.encode)
        self.demonstrator: Demonstrator | None = None
        if data.demonstrations is not None:
            lengths = [len(ids) for ids in self._separators]
            self.demonstrator = Demonstrator(store, data, sorted(names), lengths)
            self.demonstrator.check()

    def document(self, task: str, example: int) -> Document:
        """An example as the first pass over its task has it."""
        lengths, chunks = positions(self.store, self.data, task, np.array([example]))
        document = Document(task, example, int(lengths[0]), int(chunks[0]))
        if self.demonstrator is None or task not in self.demonstrator.names:
            return document
        shown, separator, added = self.demonstrator.draw_one(task, example, 0)
        return document._replace(length=document.length + added, demonstrations=shown, separator=separator)

    def parts(self, document: Document) -> tuple[list[Part], int]:
        """The parts of a document, and the number of its label positions, one of which may be of `</s>`."""
        ids, kinds = self._tokens(document)
        pad_id, eos_id = self.tokenizer.pad_id, self.tokenizer.eos_id
        arrays = assemble_rows([[document]], self.store, self.data, pad_id, eos_id, self._separators)
        targets, labels = (arrays[name][0, : document.length] for name in ("targets_BT", "label_mask_BT"))
        learned = np.zeros(len(ids), bool)
        # of the token that each position predicts; after an answer within a conversation, </s> is predicted instead
        predicted = np.arange(document.length) + len(ids) - (document.chunk & 1) - document.length + 1
        inside = (predicted >= 0) & (predicted < len(ids)) & labels
        inside[inside] = targets[inside] == ids[predicted[inside]]
        learned[predicted[inside]] = True
        changes = np.flatnonzero((np.diff(kinds) != 0) | (np.diff(learned) != 0)) + 1
        return [
            Part(KINDS[kinds[start]], self.tokenizer.decode(ids[start:stop]), bool(learned[start]))
            for start, stop in itertools.pairwise([0, *changes.tolist(), len(ids)])
            if stop > start
        ], int(labels.sum())

    def _tokens(self, document: Document) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a document before anything of it is cut, and the kind of each as an index of `KINDS`."""
        task = document.task
        if not document.demonstrations:
            parts = list(self.store.parts(task, SPLIT, document.example))
            kinds = [np.full(len(ids), KINDS.index(kind)) for kind, ids in parts]
            return np.concatenate([ids for _, ids in parts]), np.concatenate(kinds)
        ids, source_length, _ = read_document(self.store, document, self._separators)
        starts = self.store.input_starts(task, SPLIT)
        start = 0 if starts is None else int(starts[document.example])
        added = len(ids) - int(self.store.lengths(task, SPLIT)[document.example])
        kinds = np.full(len(ids), KINDS.index(SOURCE))
        kinds[start : start + added] = KINDS.index(DEMONSTRATION)
        kinds[source_length:] = KINDS.index(TARGET)
        return ids, kinds
