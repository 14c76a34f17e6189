"""The loaded model: logits, ranking, greedy text and export, against transformers with the same weights."""

import jax
import numpy as np
import pytest
import torch
import transformers

import optiml_jax
from optiml_jax.errors import UserError
from optiml_jax.evaluation import decoding, ranking
from optiml_jax.model import Model
from optiml_jax.opt import decoder, sharding
from optiml_jax.opt.config import OPTConfig
from optiml_jax.opt.network import restarting_positions
from optiml_jax.opt.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.meshes import mesh_of

PROMPTS = ["Is the sky blue? Answer:", "2+2=", "Task: name a colour that is not red.\nInput: apple\nOutput:"]
CANDIDATES = [[" yes", " no", " it is grey today"], [" 4"], [" blue", " a green one", " yellow", " red"]]


@pytest.fixture(scope="module")
def config() -> OPTConfig:
    return OPTConfig(vocab_size=1536, layers=2, model_dim=64, heads=8, ffn_dim=128, max_positions=256, init_scale=0.1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(ROOT / "tasks" / "samples" / "tokenizer")


def make(config: OPTConfig, tokenizer: Tokenizer, mesh_name: str = "1x1x1", **options) -> Model:
    mesh = mesh_of(mesh_name)
    abstract = decoder.abstract_params(config)
    params = jax.jit(
        lambda key: decoder.init_params(key, config), out_shardings=sharding.parameter_shardings(abstract, mesh)
    )(jax.random.key(0))
    return Model(config, params, tokenizer, mesh, source="random", **options)


@pytest.fixture(scope="module")
def model(config, tokenizer) -> Model:
    return make(config, tokenizer)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The same weights in transformers, through our export."""
    directory = tmp_path_factory.mktemp("export") / "hf"
    model.save(str(directory), format="hf")
    return directory, transformers.OPTForCausalLM.from_pretrained(directory).eval()


def torch_log_probabilities(torch_model, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = torch_model(torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits.double(), -1).numpy()


def test_logits_equal_transformers_and_nothing_is_added(model, exported):
    tokens = np.random.default_rng(0).integers(4, 1500, (3, 40))
    with torch.no_grad():
        want = exported[1](torch.tensor(tokens)).logits.numpy()
    have = model.logits(tokens)
    assert have.dtype == np.float32 and have.shape == (3, 40, 1536)
    np.testing.assert_allclose(have, want, atol=2e-5)


def test_packed_logits_are_those_of_each_document_alone(model):
    tokens = np.random.default_rng(1).integers(4, 1500, (1, 30))
    segments = np.repeat([[1, 2, 0]], [9, 16, 5], axis=1)
    packed = model.logits(tokens, segments)
    np.testing.assert_allclose(packed[:, :9], model.logits(tokens[:, :9]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 9:25], model.logits(tokens[:, 9:25]), atol=1e-5)


def test_candidate_scores_are_sums_of_log_probabilities_after_a_leading_eos(model, exported):
    scores = model.rank(PROMPTS, CANDIDATES)
    assert [len(row) for row in scores] == [3, 1, 4]
    encode = model.tokenizer.encode
    for prompt, candidates, row in zip(PROMPTS, CANDIDATES, scores):
        for candidate, score in zip(candidates, row):
            before, answer = [2, *encode(prompt)], encode(candidate)
            log = torch_log_probabilities(exported[1], before + answer)
            want = sum(log[len(before) - 1 + i, token] for i, token in enumerate(answer))
            assert score == pytest.approx(want, abs=1e-4)


def test_scores_do_not_depend_on_batch_order_or_mesh(model, config, tokenizer):
    rng = np.random.default_rng(2)
    pairs = [
        (rng.integers(4, 1500, rng.integers(1, 200)), rng.integers(4, 1500, rng.integers(1, 9))) for _ in range(40)
    ]
    pairs = [(before.tolist(), answer.tolist()) for before, answer in pairs]
    want = ranking.continuation_scores(model, pairs)
    order = rng.permutation(len(pairs))
    for batch_rows in (1, 3, 32):
        have = ranking.continuation_scores(model, [pairs[i] for i in order], batch_rows)
        np.testing.assert_allclose(have, np.array(want)[order], atol=1e-5 * 9)
    sharded = make(config, tokenizer, "2x2x2")
    np.testing.assert_allclose(ranking.continuation_scores(sharded, pairs, 8), want, atol=1e-4)


def test_a_prompt_too_long_loses_its_start_and_no_candidate_token(model, exported):
    rng = np.random.default_rng(3)
    before, answer = rng.integers(4, 1500, 400).tolist(), rng.integers(4, 1500, 5).tolist()
    ids = (before + answer)[-257:]
    log = torch_log_probabilities(exported[1], ids[:-1])
    want = sum(log[251 + i, token] for i, token in enumerate(answer))
    assert ranking.continuation_scores(model, [(before, answer)])[0] == pytest.approx(want, abs=1e-4)
    with pytest.raises(UserError, match="a candidate of 300 tokens is longer than the model's 256 positions"):
        ranking.continuation_scores(model, [([2], [5] * 300)])


def greedy_in_torch(torch_model, ids: list[int], new: int) -> list[int]:
    ids, made = list(ids), []
    while len(made) < new:
        token = int(torch_log_probabilities(torch_model, ids)[-1].argmax())
        if token == 2:
            break
        ids, made = [*ids, token], [*made, token]
    return made


def test_greedy_text_equals_transformers_for_prompts_of_different_lengths_in_one_batch(model, exported):
    rng = np.random.default_rng(4)
    prompts = [rng.integers(4, 1500, n).tolist() for n in (1, 5, 31, 33, 64, 70)]
    answers = decoding.greedy(model, prompts, 20, batch_rows=4)
    for prompt, answer in zip(prompts, answers):
        assert answer.ids == greedy_in_torch(exported[1], prompt, 20)
        assert answer.truncated == (len(answer.ids) == 20) and not answer.prompt_cut


def test_greedy_stops_at_eos_and_says_when_a_prompt_was_cut(config, tokenizer):
    model = make(config, tokenizer)
    # Every position predicts </s> once its embedding dominates.
    params = model.params | {"token_embedding": model.params["token_embedding"].at[2].set(0)}
    hidden = model.params["final_norm"]["bias"] + 1.0
    params["final_norm"] = {"scale": 0 * hidden, "bias": hidden}
    params["token_embedding"] = params["token_embedding"].at[2].set(1.0)
    model.params = params
    answers = decoding.greedy(model, [[5, 6], list(range(4, 304))], 8)
    assert [answer.ids for answer in answers] == [[], []]
    assert [answer.truncated for answer in answers] == [False, False]
    assert [answer.prompt_cut for answer in answers] == [False, True]


def test_generation_is_the_same_on_a_mesh(model, config, tokenizer):
    sharded = make(config, tokenizer, "2x2x2")
    assert sharded.generate(PROMPTS, max_new_tokens=12) == model.generate(PROMPTS, max_new_tokens=12)


def test_the_export_loads_here_again_with_the_same_weights(model, exported):
    again = optiml_jax.load_model(str(exported[0]))
    assert again.fingerprint == model.fingerprint
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert again.rank(PROMPTS, CANDIDATES) == model.rank(PROMPTS, CANDIDATES)


def test_the_fingerprint_sees_one_bit_and_no_mesh(model, config, tokenizer):
    assert make(config, tokenizer, "2x2x2").fingerprint == model.fingerprint
    other = make(config, tokenizer)
    bias = other.params["final_norm"]["bias"]
    other.params["final_norm"]["bias"] = bias.at[3].set(np.nextafter(np.float32(bias[3]), np.float32(1)))
    assert other.fingerprint != model.fingerprint


def test_positions_restart_in_every_run():
    have = restarting_positions(np.array([[1, 1, 2, 2, 2, 0, 0], [3, 1, 1, 1, 1, 1, 1]]))
    assert have.tolist() == [[0, 1, 0, 1, 2, 0, 1], [0, 0, 1, 2, 3, 4, 5]]


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing_here"):
        optiml_jax.load_model(str(tmp_path / "nothing_here"))
