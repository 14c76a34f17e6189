"""Asking a model: the forms of requests, against those of training and of transformers, and the command."""

import io
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from optiml_jax import chat, generate
from optiml_jax.common.errors import UserError
from optiml_jax.inference import model as model_module
from tasks.prompting import prompts

CHATS = [
    [("user", "Hi")],
    [("system", "Be brief."), ("user", " Hi \n"), ("assistant", "Hello."), ("user", "  code:\n\tx = 1")],
    [("user", ""), ("assistant", "    indented"), ("tool", '{"a": 1}')],
    [
        ("system", "\nSystem on its own line"),
        ("user", "a\n\nb"),
        ("assistant", "\tc "),
        ("user", "ends in {{ braces }}"),
    ],
]


def messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("chat") / "hf"
    model.save(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("turns", CHATS)
def test_the_template_of_an_export_writes_what_training_reads(model, exported, turns):
    for asks in (True, False):
        prompt = chat.prompt_of(messages(turns), asks)
        theirs = exported.apply_chat_template(messages(turns), add_generation_prompt=asks, tokenize=False)
        assert theirs == "</s>" + prompt
        ids = exported.apply_chat_template(messages(turns), add_generation_prompt=asks)["input_ids"]
        assert list(ids) == list(model.prompt_ids(prompt))


def test_a_role_that_is_unknown_is_an_error_in_both(model, exported):
    turns = messages([("usr", "Hi")])
    with pytest.raises(Exception, match="role usr is unknown"):
        exported.apply_chat_template(turns, tokenize=False)
    with pytest.raises(UserError, match="role 'usr' is unknown; did you mean user"):
        model.chat(turns)


def test_instructions_have_a_form_of_training():
    """The paper's openers, markers and delimiters vary by example; the prompt is among 400 examples' variants."""
    for instruction, text in (("Say it again.", "a\n  b"), ("What is red?", ""), ("List:", "")):
        prompt = chat.instruction_prompt(instruction, text)
        assert prompt in {prompts.task_level_source("t", str(n), instruction, text)[0] for n in range(400)}


def test_answers_are_those_of_the_prompts(model):
    turns = messages(CHATS[1])
    (want,) = model.generate_prompts([chat.prompt_of(turns)], 8, [chat.STOPS])
    assert model.chat(turns, max_new_tokens=8) == chat.trim(want.text)
    (text,) = model.generate(["Say it.\nInput: x\nOutput:"], 8, temperature=0.9, seed=4)
    assert model.instruct("Say it.", "x", max_new_tokens=8, temperature=0.9, seed=4) == chat.trim(text)


@given(st.text("ab\nUser:", max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_a_text_ends_before_the_first_stop_however_it_arrives(text, cuts):
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    end = min((text.find(stop) for stop in chat.STOPS if stop in text), default=len(text))
    assert "".join(chat.until_stop(pieces, chat.STOPS)) == text[:end]


@pytest.fixture
def command(model, monkeypatch, capsys):
    """Runs the command with the small model in place of its weights; returns what it prints."""
    monkeypatch.setattr(model_module, "load_model", lambda *args, **options: model)

    def run(*words: str, typed: str = "", code: int = 0) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        if code:
            with pytest.raises(SystemExit) as ended:
                generate.main(["weights", "--max_new_tokens=6", *words])
            assert ended.value.code == code
            return capsys.readouterr().err
        generate.main(["weights", "--max_new_tokens=6", *words])
        return capsys.readouterr().out

    return run


def test_a_request_is_answered_in_its_form(model, command):
    assert command("--prompt=Say it.") == model.instruct("Say it.", max_new_tokens=6) + "\n"
    assert command("--prompt=Say it.", "--form=plain") == model.generate(["Say it."], 6)[0] + "\n"
    turns = messages([("user", "Say it.")])
    assert command("--prompt=Say it.", "--form=chat").rstrip() == model.chat(turns, max_new_tokens=6).rstrip()
    drawn = command("--prompt=Say it.", "--temperature=2", "--seed=3").rstrip("\n")
    assert drawn == model.instruct("Say it.", max_new_tokens=6, temperature=2.0, seed=3)


def test_a_conversation_goes_on_from_what_was_said(model, command):
    first = model.chat(messages([("user", "One")]), max_new_tokens=6)
    answers = command("--form=chat", typed="One\nTwo\n/reset\nOne\n\nnot read\n").splitlines()
    second = model.chat(messages([("user", "One"), ("assistant", first), ("user", "Two")]), max_new_tokens=6)
    assert [line.rstrip() for line in answers] == [first, second, first]


def test_a_file_of_requests_becomes_a_file_of_answers(model, command, tmp_path):
    requests = [
        {"instruction": "Say it.", "input": "x", "id": 7},
        {"prompt": "A B"},
        {"messages": messages(CHATS[0])},
    ]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(request) + "\n\n" for request in requests))
    printed = command(f"--input={tmp_path / 'requests.jsonl'}", f"--output={tmp_path / 'answers.jsonl'}")
    assert printed == f"3 answers in {tmp_path / 'answers.jsonl'}\n"
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [{name: value for name, value in answer.items() if name != "answer"} for answer in answers] == requests
    want = [
        model.instruct("Say it.", "x", max_new_tokens=6),
        chat.trim(model.generate(["A B"], 6)[0]),
        model.chat(messages(CHATS[0]), max_new_tokens=6),
    ]
    assert [answer["answer"] for answer in answers] == want
    lines = command("--input=-", "--form=plain", typed="A B\nA B\n").splitlines()
    assert [json.loads(line) for line in lines] == [{"prompt": "A B", "answer": want[1]}] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no requests"),
        ('{"a": 1}', ':1: has none of "instruction", "prompt" and "messages"'),
        ('{"prompt": "x"}\n{', ":2: not JSON (Input data was truncated)"),
        ('{"prompt": "x"}\n[]', ":2: expected object, got array"),
        ('{"prompt": 3}', ":1: prompt: expected str, got int"),
        ('{"prompt": "x", "messages": []}', ":1: messages: expected array of length >= 1"),
        ('{"prompt": "x", "instruction": "y"}', ":1: has instruction and prompt"),
        ('{"messages": [{"role": "user"}]}', ":1: messages[0]: object missing required field content"),
        ('{"messages": [{"role": "usr", "content": ""}]}', ":1: role 'usr' is unknown"),
        (b"\xff", "cannot be read as text"),
    ],
)
def test_a_mistake_in_a_file_names_the_line(command, tmp_path, content, message):
    (tmp_path / "x.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    error = command(f"--input={tmp_path / 'x.jsonl'}", code=2)
    assert error.startswith(f"error: {tmp_path / 'x.jsonl'}") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt=x", "--input=y"), "--prompt and --input are two requests"),
        (("--output=y",), "--output is for the answers to --input"),
        (("--prompt=x", "--temperature=-1"), "temperature -1.0 must be 0"),
        (("--prompt=x", "--form=caht"), "invalid choice"),
    ],
)
def test_a_mistake_is_one_line(command, words, message):
    error = command(*words, code=2)
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
