"""Our models in lm-evaluation-harness, beside its Hugging Face backend with the exported weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from optiml_jax.common.errors import UserError
from optiml_jax.harness.model import OptimlLM
from optiml_jax.inference.model import Model
from optiml_jax.model import decoder
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.meshes import mesh_of

CONFIG = OPTConfig(vocab_size=1536, layers=2, model_dim=64, heads=8, ffn_dim=128, max_positions=128, init_scale=0.2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A random model, as transformers loads it."""
    directory = tmp_path_factory.mktemp("harness") / "weights"
    tokenizer = Tokenizer.load(ROOT / "tasks" / "samples" / "tokenizer")
    params = decoder.init_params(jax.random.key(0), CONFIG)
    Model(CONFIG, params, tokenizer, mesh_of("1x1x1"), source="random").save(directory)
    return directory


@pytest.fixture(scope="module")
def peer(exported):
    return HFLM(pretrained=str(exported), dtype="float32", batch_size=4, device="cpu")


@pytest.fixture(scope="module", params=["1x1x1", "2x2x2"])
def ours(request, exported):
    data, fsdp, tensor = request.param.split("x")
    return OptimlLM(str(exported), data=data, fsdp=fsdp, tensor=tensor)


def instances(kind: str, requests: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, arguments, 0) for arguments in requests]


LONG = " ".join(f"word {n} of a text" for n in range(60))
PAIRS = [
    *[("Is the sky blue? Answer:", word) for word in (" yes", " no", " a third one")],
    ("", "a text after nothing"),
    ("it ends in a space ", "and goes on"),
    (f"{LONG} What is it?", " too long, so that it loses its start"),
    ("one line\n", "another line"),
]


def test_log_likelihoods_are_those_of_the_hugging_face_backend(ours, peer):
    prompts = instances("loglikelihood", PAIRS)
    for (have, greedy), (want, is_greedy) in zip(
        ours.loglikelihood(prompts), peer.loglikelihood(prompts, disable_tqdm=True), strict=True
    ):
        assert have == pytest.approx(want, abs=2e-4) and greedy == is_greedy


def test_adapters_of_peft_are_scored_as_the_hugging_face_backend_scores_them(exported, peer, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(exported)
    shape = LoraConfig(r=4, target_modules=["q_proj", "fc2"], init_lora_weights=False)
    get_peft_model(base, shape).save_pretrained(tmp_path / "adapter")
    theirs = HFLM(pretrained=str(exported), peft=str(tmp_path / "adapter"), dtype="float32", batch_size=4, device="cpu")
    prompts = instances("loglikelihood", PAIRS)
    scores = [
        np.array([score for score, _ in scored])
        for scored in (
            OptimlLM(str(tmp_path / "adapter")).loglikelihood(prompts),
            theirs.loglikelihood(prompts, disable_tqdm=True),
            peer.loglikelihood(prompts, disable_tqdm=True),
        )
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=2e-4)
    assert np.abs(scores[0] - scores[2]).max() > 0.1


def test_a_greedy_continuation_is_known(ours, peer):
    prompts = [f"Say {n}:" for n in range(20)]
    texts = peer.generate_until(
        instances("generate_until", [(text, {"max_gen_toks": 1}) for text in prompts]), disable_tqdm=True
    )
    requests = instances("loglikelihood", [pair for pair in zip(prompts, texts) if pair[1]])
    have = [greedy for _, greedy in ours.loglikelihood(requests)]
    assert have == [greedy for _, greedy in peer.loglikelihood(requests, disable_tqdm=True)] and any(have)


def test_rolling_log_likelihoods_are_those_of_the_hugging_face_backend(ours, peer):
    prompts = instances("loglikelihood_rolling", [(LONG,), ("short",), ("",)])
    want = peer.loglikelihood_rolling(prompts, disable_tqdm=True)
    np.testing.assert_allclose(ours.loglikelihood_rolling(prompts), want, atol=2e-3)  # sums of up to 400 tokens


def test_texts_are_those_of_the_hugging_face_backend(ours, peer):
    whole = peer.generate_until(instances("generate_until", [("Go on:", {"max_gen_toks": 20})]), disable_tqdm=True)[0]
    prompts = instances(
        "generate_until",
        [
            ("Go on:", {"max_gen_toks": 20, "do_sample": False, "temperature": 0.0}),
            ("Go on:", {"max_gen_toks": 20, "until": [whole[8:11], "never said"]}),
            (LONG, {"max_gen_toks": 8, "until": "\n\n"}),
            ("What?", {"max_gen_toks": 5}),
        ],
    )
    have = ours.generate_until(prompts)
    assert have == peer.generate_until(prompts, disable_tqdm=True) and have[1] == whole.split(whole[8:11])[0]


@pytest.mark.parametrize("options", [{"num_beams": 4}, {"top_k": 5}, {"do_sample": True, "repetition_penalty": 1.2}])
def test_what_is_not_supported_is_refused(ours, options):
    name = list(options)[-1]
    with pytest.raises(UserError, match=rf"{name}=.* is not supported.*--gen_kwargs"):
        ours.generate_until(instances("generate_until", [("x", options)]))


def test_samples_are_those_of_the_request_whatever_comes_with_it(ours):
    drawn = ("Go on:", {"max_gen_toks": 12, "do_sample": True, "temperature": 1.5, "top_p": 0.9})
    greedy, other = ("Go on:", {"max_gen_toks": 12}), ("And on:", drawn[1])
    first = ours.generate_until(instances("generate_until", [drawn, drawn, greedy, other]))
    assert len(set(first)) == 4
    assert ours.generate_until(instances("generate_until", [other, drawn, greedy])) == [first[3], first[0], first[2]]
    assert (
        first[2]
        == ours.generate_until(
            instances("generate_until", [("Go on:", {"do_sample": False, "max_gen_toks": 12, "temperature": 0.7})])
        )[0]
    )
    seed, ours.seed = ours.seed, 7
    try:
        assert ours.generate_until(instances("generate_until", [drawn])) != first[:1]
    finally:
        ours.seed = seed


def _write_tasks(shared, folder):
    """The harness's own tasks, their data read from local files in the form that the hub has."""
    data = shared / "data" / "opt_eval"

    def lines(path):
        return [json.loads(line) for line in (data / path).read_text(encoding="utf-8").splitlines()]

    labels = (data / "piqa" / "valid-labels.lst").read_text().split()
    arc = [
        {
            "id": row["id"],
            "question": row["question"]["stem"],
            "choices": {key: [choice[key] for choice in row["question"]["choices"]] for key in ("text", "label")},
            "answerKey": row["answerKey"],
        }
        for row in lines("arc/ARC-Challenge-Test.jsonl")
    ]
    gsm8k = (shared / "data" / "reasoning" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {
        "arc_challenge": arc,
        "piqa": [row | {"label": int(label)} for row, label in zip(lines("piqa/valid.jsonl"), labels)],
        "boolq": [row | {"label": int(row["label"])} for row in lines("superglue/BoolQ/val.jsonl")],
        "sglue_rte": [row | {"label": int(row["label"] != "entailment")} for row in lines("superglue/RTE/val.jsonl")],
        "gsm8k": list(map(json.loads, gsm8k)),
    }
    files = {"arc_challenge": "arc/arc_challenge", "piqa": "piqa/piqa", "boolq": "super_glue/boolq/default"}
    files |= {"sglue_rte": "super_glue/rte/default", "gsm8k": "gsm8k/gsm8k"}
    import lm_eval.tasks

    for task, of_task in rows.items():
        file = folder / f"{task}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in of_task[:60]))
        splits = {split: str(file) for split in ("train", "validation", "test")}
        original = f"{lm_eval.tasks.__path__[0]}/{files[task]}.yaml"
        (folder / f"{task}.yaml").write_text(
            f"include: {original}\ntask: local_{task}\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs:\n  data_files: {json.dumps(splits)}\n"
        )
    return [f"local_{task}" for task in rows]


@pytest.mark.slow
def test_the_harnesss_own_tasks_on_real_data_have_the_hugging_face_backends_results(shared, tmp_path, monkeypatch):
    """ARC, PIQA, BoolQ, RTE and GSM8K as the harness asks them, a model with OPT's vocabulary: every score the same."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    config = OPTConfig(layers=2, model_dim=128, heads=4, ffn_dim=256, init_scale=0.2)
    params = decoder.init_params(jax.random.key(1), config)
    tokenizer = Tokenizer.load(shared / "tokenizer")
    Model(config, params, tokenizer, mesh_of("1x1x1"), source="random").save(tmp_path / "weights")
    tasks = _write_tasks(shared, tmp_path)
    items = []
    for model in (
        OptimlLM(str(tmp_path / "weights"), fsdp=2, tensor=2, data=2),
        HFLM(pretrained=str(tmp_path / "weights"), dtype="float32", batch_size=8, device="cpu"),
    ):
        options = {"num_fewshot": 2, "limit": 25, "bootstrap_iters": 0, "gen_kwargs": "max_gen_toks=12"}
        manager = TaskManager(include_path=str(tmp_path))
        items.append(simple_evaluate(model, tasks=tasks, task_manager=manager, log_samples=True, **options))
    ours, peer = items
    for task in tasks:
        metrics = {name: value for name, value in peer["results"][task].items() if name != "alias"}
        assert {name: ours["results"][task][name] for name in metrics} == metrics
        for item, other in zip(ours["samples"][task], peer["samples"][task], strict=True):
            if "acc" in item:
                for (have, _), (want, _) in zip(item["filtered_resps"], other["filtered_resps"], strict=True):
                    assert have == pytest.approx(want, abs=1e-2)
            else:
                assert item["resps"] == other["resps"]


def test_a_continuation_that_shares_its_token_with_the_context_is_scored_apart(ours, exported):
    tokenizer = ours.model.tokenizer
    word = next(text for text in (" because", " answer", " people", " would") if len(tokenizer.encode(text)) == 1)
    context, rest = f"Complete:{word[:-2]}", word[-2:]
    before, answer = ours._encode_pair(context, rest)
    assert len(ours.tok_encode(context + rest)) <= len(before) and answer == tokenizer.encode(rest)
    ((score, _),) = ours.loglikelihood(instances("loglikelihood", [(context, rest)]))
    assert score == pytest.approx(ours.model.rank([context], [[rest]])[0][0], abs=2e-4)


def test_empty_stops_are_ignored_and_several_stops_end_an_answer_at_the_first(ours, peer):
    prompts = ["one two", "The sky is", "a b c"]
    greedy = {"max_gen_toks": 12, "do_sample": False}

    def texts(model, until) -> list[str]:
        requests = [(prompt, greedy | {"until": until}) for prompt in prompts]
        return model.generate_until(instances("generate_until", requests), disable_tqdm=True)

    plain = texts(ours, [])
    stops = sorted({text[3:4] for text in plain if text[3:4].strip()})
    for until in ([], stops[:1], stops, ["\n", *stops]):
        assert texts(ours, until) == texts(peer, until)
        # The backend of Hugging Face ends an answer with an empty stop after one token, and removes nothing from it.
        assert texts(ours, ["", *until]) == texts(ours, until)
    assert texts(ours, "") == plain != texts(ours, stops)
    assert texts(ours, stops[0]) == texts(peer, stops[0]) == texts(ours, stops[:1]) != plain


def test_model_args_of_the_hugging_face_backend_and_mistakes(exported):
    assert OptimlLM(str(exported), data=1, fsdp=1, tensor=1, dtype="bfloat16").model.dtype == jnp.bfloat16
    with pytest.raises(UserError, match="dtype in --model_args float8; did you mean float"):
        OptimlLM(str(exported), dtype="float8")
    with pytest.raises(UserError, match="--model_args: pretrainde is unknown; did you mean pretrained"):
        OptimlLM(str(exported), pretrainde="x")


def test_a_chat_has_the_form_of_training(ours):
    history = [{"role": role, "content": text} for role, text in (("system", "Be brief."), ("user", " Hi "))]
    assert ours.apply_chat_template(history) == "Be brief.\nUser: Hi\nAssistant:"
    history.append({"role": "assistant", "content": "    x = 1\n"})
    assert ours.apply_chat_template(history, add_generation_prompt=False).endswith("\nUser: Hi\nAssistant:    x = 1")
    assert ours.chat_template(True) and ours.chat_template() is None
    with pytest.raises(UserError, match="role 'usr' is unknown; did you mean user"):
        ours.apply_chat_template([{"role": "usr", "content": "Hi"}])


def test_a_context_as_long_as_the_row_is_cut_as_in_the_hugging_face_backend(ours, peer):
    words = " ".join(f"w{n}" for n in range(200))
    ids = ours.model.tokenizer.encode(words)
    for length in (CONFIG.max_positions - 2, CONFIG.max_positions - 1, CONFIG.max_positions, CONFIG.max_positions + 5):
        context = ours.model.tokenizer.decode(ids[:length])
        requests = instances("loglikelihood", [(context, " yes"), (context, " a b c")])
        have, want = (np.array(model.loglikelihood(requests, disable_tqdm=True)) for model in (ours, peer))
        np.testing.assert_allclose(have, want, atol=2e-4)
        requests = instances("generate_until", [(context, {"until": ["\n"], "max_gen_toks": 8, "do_sample": False})])
        assert ours.generate_until(requests) == peer.generate_until(requests, disable_tqdm=True)
