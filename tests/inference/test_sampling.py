"""Sampled texts: their distribution, against transformers and exact probabilities; and what does not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from transformers.generation.logits_process import TopPLogitsWarper

from optiml_jax.common.errors import UserError
from optiml_jax.inference import decoding, sampling
from optiml_jax.inference.sampling import Rows, Sampling
from tests.inference.conftest import make
from tests.inference.test_model import PROMPTS


def probabilities(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """The probability of drawing each token, computed with transformers' nucleus filter."""
    filtered_logits = TopPLogitsWarper(top_p)(None, torch.tensor(logits[None] / temperature))
    return torch.softmax(filtered_logits.double(), -1)[0].numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_nucleus_is_that_of_transformers(temperature, top_p, seed):
    logits = np.random.default_rng(seed).normal(size=500).astype(np.float32) * 3
    want = probabilities(logits, temperature, top_p) > 0
    log_probability = jax.nn.log_softmax(jnp.asarray(logits)[:, None] / temperature, axis=0)
    least = sampling._nucleus(log_probability, jnp.float32([top_p]))
    np.testing.assert_array_equal(np.asarray(log_probability >= least)[:, 0], want)


def test_draws_have_the_probabilities_of_the_nucleus():
    """Twenty thousand draws of a row that stands in many; chi-square over the tokens of the nucleus."""
    logits = np.float32([2.0, 1.5, 1.0, 0.0, -1.0, -2.0, -8.0, 1.2])
    count, top_p = 20_000, 0.93
    rows = Rows.of([Sampling(0.8, top_p, seed=3, index=index) for index in range(count)])
    hidden = np.broadcast_to(logits, (count, len(logits)))
    drawn = np.asarray(
        jax.jit(sampling.next_token)(hidden, np.eye(len(logits), dtype=np.float32), rows, np.arange(count))
    )
    want = probabilities(logits, 0.8, top_p)
    observed = np.bincount(drawn, minlength=len(logits))
    assert (observed[want == 0] == 0).all() and 2 < (want > 0).sum() < len(logits)
    assert stats.chisquare(observed[want > 0], count * want[want > 0]).pvalue > 0.001
    # Neighbouring draws are independent: pairs are as frequent as the product of their probabilities.
    pairs = np.zeros((len(logits),) * 2)
    np.add.at(pairs, (drawn[:-1], drawn[1:]), 1)
    in_nucleus = want > 0
    assert stats.chi2_contingency(pairs[np.ix_(in_nucleus, in_nucleus)]).pvalue > 0.001


def test_greedy_rows_among_sampled_ones_take_the_most_likely_token():
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    rows = Rows.of([Sampling(), Sampling(1.0), Sampling()])
    have = np.asarray(sampling.next_token(logits, np.eye(50, dtype=np.float32), rows, np.zeros(3, np.int32)))
    assert have[[0, 2]].tolist() == logits.argmax(1)[[0, 2]].tolist()
    assert Rows.of([Sampling(), Sampling(seed=4)]) is None
    broken = np.where(np.arange(50) == 7, np.nan, logits)
    have = sampling.next_token(broken, np.eye(50, dtype=np.float32), rows, np.zeros(3, np.int32))
    assert np.asarray(have).tolist() == [-1, -1, -1]


def test_a_sample_depends_on_its_prompt_and_seed_alone(model, config, tokenizer):
    prompts = [model.prompt_ids(text) for text in PROMPTS * 3]
    chosen = [Sampling(1.0, 0.95, seed=5, index=index) for index in range(9)]
    want = decoding.decode(model, prompts, 20, sampling=chosen)
    assert len({tuple(answer.ids) for answer in want}) == 9
    order = np.random.default_rng(1).permutation(9).tolist()
    for other, batch_rows in ((model, 2), (make(config, tokenizer, "2x2x2"), 4)):
        arguments = ([x[i] for i in order] for x in (prompts, chosen))
        first, second = arguments
        have = decoding.decode(other, first, 20, batch_rows, sampling=second)
        assert [answer.ids for answer in have] == [want[i].ids for i in order]
    # A longer text begins like a shorter one, though programs return to the host at other moments.
    longer = decoding.decode(model, prompts[:2], 45, sampling=chosen[:2])
    assert [answer.ids[:20] for answer in longer] == [answer.ids for answer in want[:2]]


def test_every_position_is_drawn_anew():
    """From equally likely tokens, with one seed: a hundred positions have nearly as many tokens."""
    rows = Rows.of([Sampling(1.0, seed=3)] * 100)
    drawn = sampling.next_token(np.zeros((100, 4), np.float32), np.zeros((10_000, 4), np.float32), rows, np.arange(100))
    assert len(set(np.asarray(drawn).tolist())) > 95


def test_the_nearly_cold_limit_is_greedy(model):
    assert model.generate(PROMPTS, 20, temperature=1e-4) == model.generate(PROMPTS, 20)
    assert model.generate(PROMPTS, 20, temperature=5.0, top_p=1e-6) == model.generate(PROMPTS, 20)


def test_equal_prompts_and_other_seeds_are_drawn_independently(model):
    texts = model.generate(PROMPTS[:1] * 4, 12, temperature=1.0)
    assert len(set(texts)) == 4 and texts == model.generate(PROMPTS[:1] * 4, 12, temperature=1.0)
    assert model.generate(PROMPTS[:1], 12, temperature=1.0, seed=1) != texts[:1]


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize("steps", [1, 4, 100])
def test_streamed_pieces_join_to_the_generated_text(model, temperature, steps):
    for prompt in PROMPTS:
        (want,) = model.generate([prompt], 40, temperature=temperature, seed=2)
        pieces = list(model.stream(prompt, 40, temperature=temperature, seed=2, steps=steps))
        assert "".join(pieces) == want and all(pieces)
        assert steps > 1 or len(pieces) > 8


def test_a_character_of_several_tokens_is_streamed_whole(model, monkeypatch):
    text = "a€b€"
    ids = [model.tokenizer.encode(text)]
    assert len(ids[0]) > len(text)
    answers = [decoding.Answer(ids[0][:count], True, False) for count in range(1, len(ids[0]) + 1)]
    monkeypatch.setattr(decoding, "stream", lambda *args, **options: iter(answers))
    assert "".join(pieces := list(model.stream("x"))) == text and not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0 must be"),
        ({"temperature": float("nan")}, "temperature nan must be"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p 0.0 must be"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p 1.5 must be"),
        ({"temperature": 1.0, "seed": -1}, "seed -1 must be"),
    ],
)
def test_settings_out_of_range_are_refused(model, options, message):
    with pytest.raises(UserError, match=message):
        model.generate(["x"], 4, **options)
    with pytest.raises(TypeError, match="expected one text, got list"):
        list(model.stream(["x"], 4))
