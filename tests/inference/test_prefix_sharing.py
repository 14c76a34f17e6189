"""Shared prefixes are computed once, without a change of any score."""

import jax
import numpy as np
import pytest

from optiml_jax.inference import prefix_sharing
from optiml_jax.inference.prefix_sharing import ScoredSequence, lay_out
from optiml_jax.model import decoder, head
from tests.inference.conftest import continuation_scores, make
from tests.meshes import mesh_of

PAD = 1


def documents(seed: int, count: int, longest: int) -> list[ScoredSequence]:
    """Documents that hang on each other at random, some the same, some the start of others."""
    rng = np.random.default_rng(seed)
    result: list[ScoredSequence] = []
    for _ in range(count):
        prefix = result[rng.integers(len(result))].ids if result and rng.random() < 0.8 else []
        prefix = prefix[: rng.integers(0, len(prefix) + 1)] if rng.random() < 0.8 else prefix
        fresh = rng.integers(4, 1500, rng.integers(1, 60)).tolist() if rng.random() < 0.9 or not prefix else []
        ids = [*prefix, *fresh][:longest]
        targets = rng.integers(4, 9, rng.integers(1, min(len(ids), 5) + 1)).tolist()
        result.append(ScoredSequence(ids, targets))
    return result


@pytest.mark.parametrize("seed", range(6))
def test_every_document_sees_itself_alone_and_its_targets_are_asked(seed):
    given = documents(seed, 60, 200)
    batches = lay_out(given, batch_rows=4, pad_id=PAD, max_positions=32_768)
    seen = set()
    for batch in batches:
        tokens_BT, segment_ids_BT, positions_BT, until_BT, targets_BTM, label_mask_BT = batch.arrays
        assert len(tokens_BT) in (1, 2, 4)
        assert (segment_ids_BT > 0).any(1).all(), "no row is padding alone"
        requests = np.zeros_like(label_mask_BT)
        for i, (row, places, slots) in batch.placements.items():
            seen.add(i)
            assert tokens_BT[row, places].tolist() == given[i].ids
            for place, slot, target in zip(places[-len(slots) :], slots, given[i].targets, strict=True):
                assert targets_BTM[row, place, slot] == target
                requests[row, place] = True
            last = places[-1]
            before = np.arange(tokens_BT.shape[1])
            visible = (before <= last) & (last < until_BT[row]) & (segment_ids_BT[row] == segment_ids_BT[row, last])
            assert tokens_BT[row, visible].tolist() == given[i].ids
            assert positions_BT[row, visible].tolist() == list(range(len(given[i].ids)))
        np.testing.assert_array_equal(requests, label_mask_BT)
    assert seen == set(range(len(given)))


def test_candidates_of_one_token_add_no_token_and_shared_demonstrations_are_there_once():
    rng = np.random.default_rng(0)
    shots = rng.integers(4, 1500, 100).tolist()
    questions = [rng.integers(4, 1500, 20).tolist() for _ in range(5)]
    given = [ScoredSequence(shots + question, [letter]) for question in questions for letter in (5, 6, 7, 8)]
    (batch,) = lay_out(given, batch_rows=4, pad_id=PAD, max_positions=32_768)
    assert (batch.arrays[1] > 0).sum() == 100 + 5 * 20
    assert batch.arrays[0].shape == (1, 256) and batch.arrays[5].sum() == 5 and batch.arrays[4].shape[2] == 4


def test_a_tree_larger_than_a_row_begins_again_in_the_next(monkeypatch):
    monkeypatch.setattr(prefix_sharing, "ROW_LENGTHS", (256,))
    shots = list(range(4, 104))
    given = [ScoredSequence([*shots, *range(200 + 60 * i, 260 + 60 * i)], [9]) for i in range(8)]
    batches = lay_out(given, batch_rows=4, pad_id=PAD, max_positions=32_768)
    assert sum(len(batch.placements) for batch in batches) == 8
    assert sum((batch.arrays[1] > 0).sum() for batch in batches) == 4 * 100 + 8 * 60  # two questions fit a row


def test_rows_have_the_length_that_leaves_the_least_to_compute_and_batches_bounded_positions():
    def shapes(*lengths, batch_rows=16):
        given = [ScoredSequence(list(range(1000 * i, 1000 * i + n)), [4]) for i, n in enumerate(lengths, 1)]
        return [batch.arrays[0].shape for batch in lay_out(given, batch_rows, pad_id=PAD, max_positions=32_768)]

    assert shapes(30) == [(1, 32)]
    assert shapes(*[385] * 16) == [(2, 2048), (1, 2048), (1, 512)]
    assert shapes(*[120] * 7, batch_rows=2) == [(2, 128)] * 3 + [(1, 128)]
    assert shapes(*[3000] * 20) == [(10, 3072), (10, 3072)]


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(2)
    items = []
    for _ in range(6):
        shots = rng.integers(4, 1500, rng.integers(0, 120)).tolist()
        for _ in range(4):
            before = [2, *shots, *rng.integers(4, 1500, rng.integers(1, 60)).tolist()]
            first = rng.integers(4, 1500, 2).tolist()  # candidates start alike
            answers = [[*first[: rng.integers(0, 3)], *rng.integers(4, 1500, rng.integers(1, 5)).tolist()]] * 2
            answers += [[int(token)] for token in rng.integers(4, 1500, 3)]
            items += [(before, answer) for answer in answers]
    return items


def test_scores_are_those_of_each_pair_alone(model, pairs):
    """Equal to 1e-5 a token: alone, for any batch, in any order, and where nothing is shared."""
    alone = np.concatenate([continuation_scores(model, [pair]) for pair in pairs[:40]])
    want = np.array(continuation_scores(model, pairs))
    tokens = np.array([len(answer) for _, answer in pairs])
    np.testing.assert_array_less(np.abs(want[:40] - alone) / tokens[:40], 1e-5)
    order = np.random.default_rng(0).permutation(len(pairs))
    for batch_rows in (1, 2, 7, 32):
        have = continuation_scores(model, [pairs[i] for i in order], batch_rows)
        np.testing.assert_array_less(np.abs(have - want[order]) / tokens[order], 1e-5)


@pytest.mark.parametrize("mesh", ["2x2x2", "1x1x8"])
def test_a_mesh_changes_no_score(model, config, tokenizer, pairs, mesh):
    want = continuation_scores(model, pairs)
    have = continuation_scores(make(config, tokenizer, mesh), pairs)
    tokens = [len(answer) for _, answer in pairs]
    np.testing.assert_array_less(np.abs(np.subtract(have, want)) / tokens, 1e-5)


@pytest.mark.parametrize("mesh", ["1x1x1", "2x2x2"])
def test_log_probabilities_of_several_targets_are_the_dense_ones(config, mesh):
    rng = np.random.default_rng(0)
    hidden_BTD = rng.normal(size=(4, 24, config.model_dim)).astype(np.float32)
    embedding_VD = np.asarray(decoder.init_params(jax.random.key(0), config)["token_embedding"])
    targets_BTM = rng.integers(0, config.vocab_size, (4, 24, 3)).astype(np.int32)
    targets_BTM[..., 2] = (hidden_BTD @ embedding_VD.T).argmax(-1)
    mask_BT = rng.random((4, 24)) < 0.4
    with jax.set_mesh(mesh_of(mesh)):
        have, best_BT = jax.jit(head.log_probabilities, static_argnums=4)(
            hidden_BTD, embedding_VD, targets_BTM, mask_BT, 8
        )
    logits = hidden_BTD.astype(np.float64) @ embedding_VD.T.astype(np.float64)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = np.where(mask_BT[..., None], np.take_along_axis(log, targets_BTM, 2), 0)
    np.testing.assert_allclose(have, want, atol=2e-5)
    np.testing.assert_array_equal(have[..., 2], best_BT)  # to the bit: how a greedy continuation is known
