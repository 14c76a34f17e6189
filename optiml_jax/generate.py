"""Asks a model: python -m optiml_jax.generate runs/tiny      (installed: optiml-generate)

Without further flags it reads instructions from the terminal, a line each, and prints the answers as they are
generated; --form=chat holds a conversation, --form=plain continues the text as it is. --prompt answers one request,
--input a file of requests: lines of text, or JSON lines with "instruction" and "input", "prompt", or "messages" of
"role" and "content". Answers to a file are JSON lines, the request with its "answer", to --output or the terminal.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypedDict

import msgspec

from optiml_jax import chat
from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError, exit_on_user_error
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser, output_file

if TYPE_CHECKING:
    from optiml_jax.inference.model import Model

REMEDY = "correct the line"
INSTRUCTION, CHAT, PLAIN = "instruction", "chat", "plain"
HELP = {
    INSTRUCTION: "Write an instruction and press Enter; an empty line or Ctrl-D ends.",
    CHAT: "Write a message and press Enter; /reset starts a new conversation, an empty line or Ctrl-D ends.",
    PLAIN: "Write a text to continue and press Enter; an empty line or Ctrl-D ends.",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("optiml_jax.generate", __doc__)
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="MODEL_DIR of a run, Hugging Face directory or hub name, metaseq checkpoint")
    add("--form", choices=list(HELP), default=INSTRUCTION, help="what a line of text is (instruction)")
    add("--prompt", help="a request; prints the answer and ends")
    add("--input", help="a file of requests; - for the standard input")
    add("--output", type=output_file, help="file for the answers to --input (the terminal)")
    add("--max_new_tokens", type=int, default=256, help="maximum length of an answer (256)")
    add("--temperature", type=float, default=0.0, help="0: the most likely tokens; otherwise drawn (0)")
    add("--top_p", type=float, default=1.0, help="draws among the most likely tokens that have this probability (1)")
    add("--seed", type=int, default=0, help="of the draws (0)")
    add("--step", type=int, help="checkpoint of a run (the latest)")
    add("--tokenizer", help="directory or hub name, for weights without a tokenizer")
    add("--precision", default="auto", help="fp32, bf16 or fp16 (bf16 on GPUs, fp32 on CPUs)")
    flags = parser.parse_args(arguments)
    if flags.prompt is not None and flags.input is not None:
        parser.error("--prompt and --input are two requests; give one of them")
    if flags.output and not flags.input:
        parser.error("--output is for the answers to --input")
    return flags


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """The command, also installed as `optiml-generate`."""
    flags = parse(arguments)
    questions = None if flags.input is None else read_questions(flags.input, flags.form)
    from optiml_jax.inference.model import load_model  # after the mistakes that need no model

    model = load_model(flags.weights, step=flags.step, tokenizer=flags.tokenizer, precision=flags.precision)
    if questions is not None:
        answer_file(model, questions, flags)
    elif flags.prompt is not None:
        show(model, prepare(request_of(flags.prompt, flags.form)), flags)
    else:
        converse(model, flags)


class Message(TypedDict):
    """A turn of a conversation."""

    role: str
    content: str


class Request(TypedDict, total=False):
    """A line of a file of requests: an instruction with its input, a prompt as it is, or a conversation."""

    instruction: str
    input: str
    prompt: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]


class Question(NamedTuple):
    """A request with its prompt, and the texts that end its answer."""

    request: Request
    prompt: str
    stop: Sequence[str]


def request_of(text: str, form: str) -> Request:
    """The request that a line of text is in this form."""
    if form == CHAT:
        return {"messages": [{"role": "user", "content": text}]}
    return {"instruction": text} if form == INSTRUCTION else {"prompt": text}


def prepare(request: Request) -> Question:
    """Writes the prompt of a request.

    Raises:
      UserError: it has not exactly one of the forms, or a role is unknown.
    """
    forms = [name for name in ("messages", "instruction", "prompt") if name in request]
    if len(forms) != 1:
        raise UserError(f'has {" and ".join(forms) or "none"} of "instruction", "prompt" and "messages"; give one')
    if "messages" in request:
        return Question(request, chat.prompt_of(request["messages"]), chat.STOPS)
    if "instruction" in request:
        return Question(request, chat.instruction_prompt(request["instruction"], request.get("input", "")), ())
    return Question(request, request["prompt"], ())


def read_questions(file: str, form: str) -> list[Question]:
    """Reads a file of requests: JSON lines if its first line is an object, else lines of text in this form.

    Raises:
      UserError: the file cannot be read, is empty, or has a line that is no request; names the line.
    """
    where = "--input" if file == "-" else file
    try:
        content = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read as text ({error})") from error
    lines = [(number, line) for number, line in enumerate(content.splitlines(), start=1) if line.strip()]
    if not lines:
        raise UserError(f"{where}: has no requests")
    is_json = lines[0][1].lstrip().startswith("{")
    questions = []
    for number, line in lines:
        place = f"{where}:{number}"
        request = typed_json.parse(line, Request, place, REMEDY) if is_json else request_of(line, form)
        try:
            questions.append(prepare(request))
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    return questions


def answer_file(model: "Model", questions: Sequence[Question], flags: argparse.Namespace) -> None:
    """Answers questions together, and writes their requests with the answers."""
    from optiml_jax.inference.sampling import Sampling

    _, prompts, stops = zip(*questions)
    sampling = [Sampling(flags.temperature, flags.top_p, flags.seed, index) for index in range(len(prompts))]
    answers = model.generate_prompts(prompts, flags.max_new_tokens, stops, sampling=sampling)
    text = "".join(
        json.dumps(question.request | {"answer": chat.trim(answer.text)}, ensure_ascii=False) + "\n"
        for question, answer in zip(questions, answers)
    )
    if flags.output:
        write_atomically(flags.output, text)
        print(f"{len(questions)} answers in {flags.output}")
    else:
        print(text, end="")


def show(model: "Model", question: Question, flags: argparse.Namespace) -> str:
    """Prints an answer as it is generated, without the space that stands before it; returns it."""
    options = {name: getattr(flags, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}
    text = ""
    for piece in model.stream(question.prompt, stop=question.stop, **options):
        if not text and flags.form != PLAIN:
            piece = piece.removeprefix(" ")
        print(piece, end="", flush=True)
        text += piece
    print()
    return text


def converse(model: "Model", flags: argparse.Namespace) -> None:
    """Reads requests from the terminal and answers them until an empty line."""
    messages: list[Message] = []
    print(HELP[flags.form], file=sys.stderr)
    while line := _line():
        if flags.form == CHAT and line.strip() == "/reset":
            messages = []
        elif flags.form == CHAT:
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": show(model, prepare({"messages": messages}), flags)})
        else:
            show(model, prepare(request_of(line, flags.form)), flags)


def _line() -> str:
    """A line from the terminal; empty at the end of input."""
    mark = "> " if os.isatty(0) else ""
    try:
        return input(mark)
    except EOFError:
        return ""


if __name__ == "__main__":
    main()
