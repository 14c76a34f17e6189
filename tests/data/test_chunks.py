"""Documents longer than a row: in chunks, without a false `</s>`, through the writer, the store and the loader."""

import numpy as np
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.data.loader import Loader
from optiml_jax.data.manifest import Manifest, TaskSize
from optiml_jax.data.settings import Data
from optiml_jax.data.specification import CacheOptions
from optiml_jax.data.store import TokenStore
from optiml_jax.data.verify import check_store
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.tokenizer import Tokenizer
from tasks.benchmarks.samples import TOKENIZER
from tasks.caching import build, shard
from tasks.caching.shard import EncodedExample, chunks
from tasks.example import Example, Record, Template
from tasks.task import Task
from tests.stores import manifest

EOS, ROW, NONE = 2, 32, np.empty(0, np.uint16)
DOCUMENTS = ["", "short", "b" * 31, "c" * 32, "word " * 40, "0123456789" * 20, "x" * 96]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER)


@pytest.fixture(scope="module")
def store(tokenizer, tmp_path_factory) -> TokenStore:
    directory = tmp_path_factory.mktemp("pieces")

    def read(split):
        return (Record(f"d{i}", {"text": text}) for i, text in enumerate(DOCUMENTS) if text)

    def render(record, template, shown=()):
        return Example(record.id, "", record.fields["text"], (record.fields["text"],))

    templates = (Template("text", Metric("rouge_l")),)
    task = Task("web.text", "web", "pretraining", "web", (), ("train",), templates, read, render, longer="chunk")
    build.open_store(directory, tokenizer)
    partial = directory / "tasks" / task.name / ".partial"
    part = shard.write_shard(partial, task, 0, 1, tokenizer, CacheOptions(row_length=ROW))
    content = shard.finish(partial, [part])
    return TokenStore(directory, manifest({task.name: part["examples"]}, content, tokenizer.fingerprint))


def loader(store: TokenStore, **settings) -> Loader:
    examples = store.stats("web.text", "train")["examples"]
    manifest = Manifest("web", (TaskSize("web.text", "web", "pretraining", examples),))
    data = Data("web", "", **{"row_length": ROW, "batch_rows": 1, "block_draws": examples, "prefetch": 0} | settings)
    return Loader(store, manifest, data, pad_id=1, eos_id=EOS)


def bigrams(document: list[int]) -> list[tuple[int, int]]:
    """Returns the input and the label at each position of an uncut document."""
    return list(zip([EOS, *document], [*document, EOS]))


def test_every_prediction_of_a_document_is_made_once_and_no_other(store, tokenizer):
    """A pass over all chunks: the (read, predicted) pairs are those of the documents, and all of them are labels."""
    want = sorted(pair for text in DOCUMENTS if text for pair in bigrams(tokenizer.encode(text)))
    with loader(store) as batches:
        have = [pair for _ in batches.plan(0).rows for pair in taken(next(batches))]
    assert sorted(have) == want


def taken(batch) -> list[tuple[int, int]]:
    arrays = batch.arrays
    real = arrays["segment_ids_BT"] > 0
    assert (arrays["label_mask_BT"] == real).all()
    return list(zip(arrays["tokens_BT"][real].tolist(), arrays["targets_BT"][real].tolist()))


def test_a_piece_fills_its_row_and_a_short_document_is_whole(store, tokenizer):
    lengths = {
        len(list(chunks(EncodedExample("d", NONE, np.array(tokenizer.encode(text))), ROW)))
        for text in DOCUMENTS
        if text
    }
    assert 1 in lengths and max(lengths) > 3
    block = loader(store).plan(0)
    documents = [document for row in range(len(block.rows)) for document in block.documents(row)]
    assert {document.length for document in documents if document.chunk == 3} == {ROW}  # neither begins nor ends
    assert not list(check_store(store.directory))
    assert store.stats("web.text", "train")["longest_label"] == ROW - 1


@pytest.mark.parametrize("count", [1, 30, 31, 32, 33, 63, 64, 95, 96, 97])
def test_pieces_overlap_by_the_token_that_is_only_read(count):
    ids = list(range(100, 100 + count))
    result = list(chunks(EncodedExample("d", NONE, np.array(ids)), ROW))
    assert [piece.flags for piece in result][:1] == [int(count + 1 > ROW)] and result[-1].flags in (0, 2)
    joined = result[0].label.tolist()
    for piece in result[1:]:
        assert piece.label[0] == joined[-1]
        joined += piece.label[1:].tolist()
    assert joined == ids
    predictions = [len(piece.label) + (piece.flags < 2) + (piece.flags % 2 == 0) - 1 for piece in result]
    assert sum(predictions) == count + 1 and set(predictions[:-1]) <= {ROW}


def test_without_a_leading_eos_the_first_token_is_predicted_by_nothing(store, tokenizer):
    with loader(store, leading_eos=False) as batches:
        have = [pair for _ in range(30) for pair in taken(next(batches))]
    firsts = {tokenizer.encode(text)[0] for text in DOCUMENTS if text}
    assert not {(EOS, first) for first in firsts} & set(have)


def test_pieces_longer_than_a_row_are_refused(store):
    with pytest.raises(UserError, match=r"raise ROW_LENGTH, .*MAX_LABEL_TOKENS"):
        loader(store, row_length=ROW - 1)


def test_a_document_with_a_source_is_not_split():
    row = EncodedExample("d", np.array([5]), np.arange(100))
    (same,) = chunks(row, ROW)
    assert same is row
