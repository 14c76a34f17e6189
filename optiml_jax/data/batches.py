"""Assembles rows of a block plan into arrays of token ids, targets and label masks."""

from collections.abc import Iterator, Sequence

import numpy as np

from optiml_jax.data.block_plan import Document
from optiml_jax.data.objective import OBJECTIVES, Boundaries
from optiml_jax.data.settings import Data
from optiml_jax.data.store import SPLIT, Store


def assemble_rows(
    rows: Sequence[Sequence[Document]],
    store: Store,
    data: Data,
    pad_id: int,
    eos_id: int,
    separators: Sequence[np.ndarray] = (),
) -> dict[str, np.ndarray]:
    """Reads the examples of the rows and lays out their tokens and targets.

    A document of source s and target t has inputs `</s> s t` and targets `s t </s>`; its label positions are those
    whose targets are t and the last `</s>`. Without `leading_eos` its inputs are `s t`, and its first token is not a
    target. An example longer than a row loses the start of its source (paper 3.3), never `</s>` or label. A chunk of a
    longer document has no `</s>` at an end where the document continues.

    A conversation s1 t1 s2 t2 ... has several labels. After each of them `</s>` is the target, as if the conversation
    ended there, but the next input is that of the conversation: its labels have the loss of as many documents that each
    end with one of them. One longer than a row loses its first turns.

    With demonstrations, the source is that of `_join`. Another objective than "label" has other label positions
    (`objective.py`).

    Args:
      separators: `demonstrations.separator_ids`.

    Returns:
      tokens_BT, targets_BT (padding: `pad_id`), segment_ids_BT (1, 2, ... in order; 0 is padding), positions_BT (from
      0 in each document and in padding): int32 [rows, T]; label_mask_BT: bool [rows, T]. Without `document_attention`
      a row is one segment, with positions from 0.
    """
    shape, size = (len(rows), data.row_length), len(rows) * data.row_length
    eos, padding = np.array([eos_id], np.uint16), np.full(data.row_length, pad_id, np.uint16)
    parts: list[np.ndarray] = []  # the ids of all rows, end to end
    last: list[int] = []  # the target of each document's last position
    spans: list[tuple[int, int, int]] = []  # length, segment id and label positions of each document and padding
    earlier_labels: list[tuple[int, int]] = []  # positions in the flat rows; the last one's target is </s>
    label_spans = OBJECTIVES[data.objective]
    requests = [request for row in rows for document in row for request in _requests(document)]
    examples = iter(store.read_many(SPLIT, requests))
    for number, row in enumerate(rows):
        room = data.row_length
        for segment, document in enumerate(row, 1):
            task, example, length, chunk, *_ = document
            ids, source_length, first_answer = _join(document, examples, store, separators)
            last.append(ids[-1] if chunk & 1 else eos_id)
            input_ids = ids[:-1] if chunk & 1 else ids
            leading = data.leading_eos and chunk < 2
            if leading:
                parts.append(eos)
            removed = len(input_ids) - length + leading
            parts.append(input_ids[removed:])
            answers = [(source_length, len(ids))]
            earlier = store.earlier_labels(task, SPLIT)
            if earlier is not None:
                labels_before = earlier.of_example(example)
                answers[:0] = [(start, end) for _, start, end in labels_before[labels_before["end"] > removed].tolist()]
            *labels_before, (last_label, _) = label_spans(Boundaries(len(ids), answers, first_answer))
            if labels_before:
                position = (number + 1) * data.row_length - room - removed + leading - 1  # of the first token's target
                for start, end in labels_before:
                    earlier_labels.append((max(position + start, position + removed + 1 - leading), position + end + 1))
            spans.append((length, segment, min(len(ids) - last_label + 1, length)))
            room -= length
        parts.append(padding[:room])
        spans.append((room, 0, 0))

    lengths, segments, labels = np.array(spans, np.int32).reshape(-1, 3).T
    ends = np.cumsum(lengths, dtype=np.int32)
    tokens, targets = np.empty(size, np.int32), np.empty(size, np.int32)
    np.concatenate(parts, out=tokens)
    targets[:-1] = tokens[1:]
    targets[data.row_length - 1 :: data.row_length] = pad_id
    targets[ends[segments > 0] - 1] = last
    pattern = np.tile([False, True], len(lengths))
    segment_ids = np.repeat(segments, lengths)
    positions = np.arange(size, dtype=np.int32)
    if data.document_attention:
        positions -= np.repeat(ends - lengths, lengths)
    else:
        np.minimum(segment_ids, 1, out=segment_ids)
        positions %= data.row_length
    positions *= segment_ids > 0
    label_mask = np.repeat(pattern, np.stack([lengths - labels, labels], axis=1).ravel())
    for start, end in earlier_labels:
        label_mask[start:end] = True
        targets[end - 1] = eos_id
    return {
        "tokens_BT": tokens.reshape(shape),
        "targets_BT": targets.reshape(shape),
        "segment_ids_BT": segment_ids.reshape(shape),
        "positions_BT": positions.reshape(shape),
        "label_mask_BT": label_mask.reshape(shape),
    }


def read_document(
    store: Store, document: Document, separators: Sequence[np.ndarray]
) -> tuple[np.ndarray, int, int | None]:
    """Reads a document with its demonstrations, before anything of it is cut; see `_join` for the result."""
    return _join(document, iter(store.read_many(SPLIT, _requests(document))), store, separators)


def _requests(document: Document) -> Iterator[tuple[str, int]]:
    """The examples of a document in order: its demonstrations, then its own."""
    return ((document.task, number) for number in (*document.demonstrations, document.example))


def _join(
    document: Document,
    examples: Iterator[tuple[np.ndarray, int]],
    store: Store,
    separators: Sequence[np.ndarray],
) -> tuple[np.ndarray, int, int | None]:
    """Joins an example with its demonstrations: they follow the instructions of its task, if all examples share them,
    and otherwise precede it (paper 2.4). A separator is after each of them.

    Args:
      examples: yields what `_requests` names.

    Returns:
      Token ids, the length of the source with the demonstrations, and where the answer of the first one starts (None
      without demonstrations).
    """
    if not document.demonstrations:
        return *next(examples), None
    input_starts, first_answer = store.input_starts(document.task, SPLIT), None
    input_start = 0 if input_starts is None else int(input_starts[document.example])
    parts = []
    for number in document.demonstrations:
        ids, source_length = next(examples)
        start = 0 if input_starts is None else int(input_starts[number])
        if first_answer is None:
            first_answer = input_start + source_length - start
        parts += [ids[start:], separators[document.separator]]
    ids, source_length = next(examples)
    joined = np.concatenate([ids[:input_start], *parts, ids[input_start:]])
    return joined, len(joined) - len(ids) + source_length, first_answer
