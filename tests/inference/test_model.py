"""The loaded model: logits, ranking, greedy text and export, against transformers with the same weights."""

import numpy as np
import pytest
import torch
import transformers

import optiml_jax
from optiml_jax.common.errors import UserError
from optiml_jax.inference import decoding, kv_cache, ranking
from optiml_jax.inference.network import restarting_positions
from optiml_jax.inference.requests import Request
from optiml_jax.inference.row_cache import bucket
from optiml_jax.inference.sampling import GREEDY
from optiml_jax.model.fingerprint import fingerprint
from tests.inference.conftest import continuation_scores, make

PROMPTS = ["Is the sky blue? Answer:", "2+2=", "Task: name a colour that is not red.\nInput: apple\nOutput:"]
CANDIDATES = [[" yes", " no", " it is grey today"], [" 4"], [" blue", " a green one", " yellow", " red"]]


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
    want = continuation_scores(model, pairs)
    order = rng.permutation(len(pairs))
    for batch_rows in (1, 3, 32):
        have = continuation_scores(model, [pairs[i] for i in order], batch_rows)
        np.testing.assert_allclose(have, np.array(want)[order], atol=1e-5 * 9)
    sharded = make(config, tokenizer, "2x2x2")
    np.testing.assert_allclose(continuation_scores(sharded, pairs, 8), want, atol=1e-4)


def test_a_prompt_too_long_loses_its_start_and_no_candidate_token(model, exported):
    rng = np.random.default_rng(3)
    before, answer = rng.integers(4, 1500, 400).tolist(), rng.integers(4, 1500, 5).tolist()
    ids = (before + answer)[-257:]
    log = torch_log_probabilities(exported[1], ids[:-1])
    want = sum(log[251 + i, token] for i, token in enumerate(answer))
    assert continuation_scores(model, [(before, answer)])[0] == pytest.approx(want, abs=1e-4)
    with pytest.raises(UserError, match=r"300 tokens .*256 positions"):
        continuation_scores(model, [([2], [5] * 300)])


def greedy_in_torch(torch_model, ids: list[int], new: int) -> list[int]:
    ids, made = list(ids), []
    while len(made) < new:
        token = int(torch_log_probabilities(torch_model, ids)[-1].argmax())
        if token == 2:
            break
        ids, made = [*ids, token], [*made, token]
    return made


@pytest.fixture(scope="module")
def long_and_short():
    """Prompts of different lengths, some with a common start, and how many tokens each may answer."""
    rng = np.random.default_rng(4)
    shots = rng.integers(4, 1500, 60).tolist()
    prompts = [rng.integers(4, 1500, n).tolist() for n in (1, 5, 31, 33, 64, 70)]
    prompts += [shots + rng.integers(4, 1500, n).tolist() for n in (1, 7, 20, 20, 33, 90)]
    return prompts, [int(limit) for limit in rng.integers(1, 45, len(prompts))]


def test_greedy_text_equals_transformers_for_prompts_and_answers_of_different_lengths(exported, model, long_and_short):
    prompts, limits = long_and_short
    answers = decoding.decode(model, prompts, limits, batch_rows=4)
    for prompt, limit, answer in zip(prompts, limits, answers, strict=True):
        assert answer.ids == greedy_in_torch(exported[1], prompt, limit)
        assert answer.truncated == (len(answer.ids) == limit) and not answer.prompt_cut


@pytest.mark.parametrize("mesh", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in ("2x2x2", "1x1x8"))])
def test_greedy_text_does_not_depend_on_batch_order_memory_or_mesh(
    model, config, tokenizer, long_and_short, mesh, monkeypatch
):
    prompts, limits = long_and_short
    want = decoding.decode(model, prompts, limits)
    order = np.random.default_rng(0).permutation(len(prompts))
    other = model if mesh is None else make(config, tokenizer, mesh)
    for batch_rows in (7,) if mesh else (1, 7):
        have = decoding.decode(other, [prompts[i] for i in order], [limits[i] for i in order], batch_rows)
        assert have == [want[i] for i in order]
    monkeypatch.setattr(other, "capacity", other.capacity._replace(cache_positions=400, prefill_positions=128))
    assert decoding.decode(other, prompts, limits) == want


@pytest.fixture
def caches(monkeypatch):
    """[rows, places] of the cache at every call of `decode`, and the rows that were still at work."""
    shapes, decode = [], kv_cache.decode

    def spy(params, retained, left_B, *rest):
        shapes.append((*retained.layers_NBHCK[0].shape[1:4:2], int((left_B > 0).sum())))
        return decode(params, retained, left_B, *rest)

    monkeypatch.setattr(kv_cache, "decode", spy)
    return shapes


def test_a_lone_prompt_is_computed_alone(model, caches):
    model.generate([PROMPTS[0]], max_new_tokens=4)
    model.generate([PROMPTS[0]] * 3, max_new_tokens=4)
    assert [rows for rows, *_ in caches] == [1, 4]


def test_the_number_of_places_bounds_a_batch_of_long_prompts(model, caches, monkeypatch):
    assert [bucket(n) for n in (1, 32, 33, 129, 257, 1402, 1537)] == [32, 32, 64, 160, 320, 1536, 1792]
    monkeypatch.setattr(model, "capacity", model.capacity._replace(cache_positions=1024))
    decoding.decode(model, [[7] * 20] * 16 + [[7] * 150] * 8, 4)
    assert caches[0] == (4, 192, 4)
    assert caches[-1][:2] == (16, 64), "as soon as the long ones are over there is room for many short ones"
    assert max(rows * places for rows, places, _ in caches) <= 1024


def test_finished_answers_leave_and_others_take_their_rows(model, caches):
    """Seven short answers pass through three rows while the fourth makes a long one."""
    decoding.decode(model, [[5, 6, 7]] + [[5] * 70] * 7, [90] + [2] * 7, batch_rows=4)
    assert [(rows, busy) for rows, _, busy in caches[:3]] == [(4, 4), (4, 4), (2, 2)]
    assert {(rows, busy) for rows, _, busy in caches[3:]} == {(1, 1)}


def test_a_stop_text_that_two_steps_generate_is_seen(model):
    ids = model.tokenizer.encode("The end of it")
    request = Request("p", [2], 1, 100, ("end of",), GREEDY)
    pieces = [model.tokenizer.encode(text) for text in ("The", " e", "nd", " of", " it")]
    assert sum(map(len, pieces)) >= len(ids) > 1
    assert [request.add(piece, model) for piece in pieces] == [False, False, False, True, True]


def test_a_stop_text_ends_the_work_and_is_no_part_of_the_answer(model, caches):
    (text,) = model.generate([PROMPTS[0]], max_new_tokens=64)
    calls = len(caches)
    end = text[8:12]
    (written,) = model.generate_prompts([PROMPTS[0]], 64, [(end, "never said")])
    assert written.text == text[: text.find(end)] and not written.truncated
    assert len(caches) - calls == 1 < calls


def test_greedy_stops_at_eos_and_says_when_a_prompt_was_cut(config, tokenizer):
    model = make(config, tokenizer)
    # Every position predicts </s> once its embedding dominates.
    params = model.params | {"token_embedding": model.params["token_embedding"].at[2].set(0)}
    hidden = model.params["final_norm"]["bias"] + 1.0
    params["final_norm"] = {"scale": 0 * hidden, "bias": hidden}
    params["token_embedding"] = params["token_embedding"].at[2].set(1.0)
    model.params = params
    answers = decoding.decode(model, [[5, 6], list(range(4, 304))], 8)
    assert [answer.ids for answer in answers] == [[], []]
    assert [answer.truncated for answer in answers] == [False, False]
    assert [answer.prompt_cut for answer in answers] == [False, True]


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
    assert other.fingerprint != model.fingerprint and len(model.fingerprint) == 32


def test_fingerprints_see_names_shapes_dtypes_and_places():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    trees = [{"a": x}, {"b": x}, {"a": x.reshape(3, 2, 4)}, {"a": x.astype(np.float16)}, {"a": x.astype(np.int32)}]
    trees += [{"a": np.flip(x, axis)} for axis in range(3)] + [{"a": x, "b": x[:0]}, {"a": -x}, {"a": x[:1]}]
    result = [fingerprint(tree) for tree in trees]
    assert len(set(result)) == len(trees) and {len(text) for text in result} == {32}
    for lane in range(4):  # each of the four sums sees each of them
        assert len({text[8 * lane : 8 * lane + 8] for text in result}) == len(trees)


def test_positions_restart_in_every_run():
    have = restarting_positions(np.array([[1, 1, 2, 2, 2, 0, 0], [3, 1, 1, 1, 1, 1, 1]]))
    assert have.tolist() == [[0, 1, 0, 1, 2, 0, 1], [0, 0, 1, 2, 3, 4, 5]]


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing_here"):
        optiml_jax.load_model(str(tmp_path / "nothing_here"))


def test_a_cut_prompt_keeps_its_leading_eos_in_ranking_and_decoding(model, exported):
    """As a cut example does in training (`data.batches.assemble_rows`)."""
    rng = np.random.default_rng(5)
    before, answer = [2, *rng.integers(4, 1500, 400).tolist()], rng.integers(4, 1500, 5).tolist()
    ids = [2, *before[-251:], *answer]  # 256 positions are read, and one more is predicted
    log = torch_log_probabilities(exported[1], ids[:-1])
    want = sum(log[251 + i, token] for i, token in enumerate(answer))
    assert continuation_scores(model, [(before, answer)])[0] == pytest.approx(want, abs=1e-4)
    (made,) = decoding.decode(model, [before], 20)
    assert made.prompt_cut and made.ids == greedy_in_torch(exported[1], [2, *before[-235:]], 20)


def test_a_model_that_gives_nan_says_so_and_names_the_prompt(model, config, tokenizer):
    broken = make(config, tokenizer)
    broken.params = broken.params | {"token_embedding": broken.params["token_embedding"].at[77].set(np.nan)}
    with pytest.raises(UserError, match=r"prompt 'Is the sky blue\? Answer:': a candidate's score is nan"):
        broken.rank(PROMPTS, CANDIDATES)
    with pytest.raises(UserError, match=r"prompt '.*': the logits of its answer are not finite"):
        broken.generate(PROMPTS, max_new_tokens=6)


def test_no_prompts_have_no_answers(model):
    assert model.rank([], []) == [] and model.generate([]) == []


def test_one_text_in_place_of_a_list_is_refused(model):
    """Its characters would be taken for prompts."""
    for call in (lambda: model.generate("Say so."), lambda: model.rank("Say so.", ["yes"] * 7)):
        with pytest.raises(TypeError, match="a list of texts"):
            call()
    with pytest.raises(TypeError, match="a list of texts"):
        model.rank(["Say so."], ["yes"])


def test_what_is_told_of_a_candidate_is_not_scored(model, exported):
    """Partial scoring of Winograd schemas (Brown et al. 2020, Figure G.13), against transformers."""
    prompt = "The trophy does not fit into the suitcase because"
    nouns, rest = [" the trophy", " the suitcase"], " is too large."
    (result,) = model.rank_prompts([prompt], [[noun + rest for noun in nouns]], given=[[len(noun) for noun in nouns]])
    for noun, score in zip(nouns, result.scores):
        before = model.prompt_ids(prompt) + model.tokenizer.encode(noun)
        answer = model.tokenizer.encode(rest)
        logs = torch_log_probabilities(exported[1], [*before, *answer])
        expected = sum(logs[len(before) + i - 1, token] for i, token in enumerate(answer))
        assert score == pytest.approx(expected, abs=1e-4)
    (whole,) = model.rank([prompt], [[noun + rest for noun in nouns]])
    assert whole != result.scores


def test_an_answer_is_truncated_only_if_the_limit_ended_it(model):
    (text,) = model.generate([PROMPTS[0]], max_new_tokens=24)
    end, outcomes = text[3:6], set()
    for limit in range(1, 12):  # the text ends before the limit, with its last token, or not at all
        cut, stopped = (model.generate_prompts([PROMPTS[0]], limit, [stop])[0] for stop in ((), (end,)))
        assert cut.truncated and stopped.truncated is (end not in cut.text)
        outcomes.add(stopped.truncated)
    assert outcomes == {True, False}
    growing = [answer.truncated for answer in decoding.stream(model, [2, 5, 6, 7], 9, steps=3)]
    assert growing[-1] and not any(growing[:-1]) and len(growing) > 2


def test_a_continuation_is_greedy_only_if_every_token_is(model):
    before = [2, 5, 6, 7]
    logits_V = np.asarray(model.logits([before])[0][-1])
    best, worst = int(logits_V.argmax()), int(logits_V.argmin())
    next_best = int(np.asarray(model.logits([[*before, best]])[0][-1]).argmax())
    pairs = [(before, [best, next_best]), (before, [best, worst]), (before, [worst, next_best]), (before, [best])]
    greedy = [continuation.greedy for continuation in ranking.continuations(model, pairs, 8)]
    assert greedy == [True, False, False, True]
