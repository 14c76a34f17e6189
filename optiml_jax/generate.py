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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optiml_jax import chat
from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError, exit_on_user_error
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser, output_file

if TYPE_CHECKING:
    from optiml_jax.inference.model import Model

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
    requests = None if flags.input is None else read_requests(flags.input, flags.form)
    from optiml_jax.inference.model import load_model  # after the mistakes that need no model

    model = load_model(flags.weights, step=flags.step, tokenizer=flags.tokenizer, precision=flags.precision)
    if requests is not None:
        answer_file(model, requests, flags)
    elif flags.prompt is not None:
        show(model, prompt_of({_field(flags.form): flags.prompt}), flags)
    else:
        converse(model, flags)


def _field(form: str) -> str:
    return {INSTRUCTION: "instruction", PLAIN: "prompt", CHAT: "message"}[form]


def prompt_of(request: Mapping[str, Any]) -> str:
    """The prompt of a request, by its fields; `chat` has the forms.

    Raises:
      UserError: the request has none of the fields, or a field is not text.
    """
    kinds = [kind for kind in ("messages", "message", "instruction", "prompt") if kind in request]
    if len(kinds) != 1:
        raise UserError(f'has {" and ".join(kinds) or "none"} of "instruction", "prompt" and "messages"; give one')
    if kinds == ["messages"]:
        messages = request["messages"]
        if not (
            isinstance(messages, list)
            and messages
            and all(
                isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
                for message in messages
            )
        ):
            raise UserError('"messages" is no list of objects with texts "role" and "content"')
        return chat.prompt_of(messages)
    texts = {name: request.get(name, "") for name in (*kinds, "input")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f'"{name}" is not text')
    if "message" in request:
        return chat.prompt_of([{"role": "user", "content": texts["message"]}])
    return (
        chat.instruction_prompt(texts["instruction"], texts["input"]) if "instruction" in request else texts["prompt"]
    )


def read_requests(file: str, form: str) -> list[dict[str, Any]]:
    """Reads the requests of a file: JSON lines if its first line is an object, else lines of text in this form.

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
    requests = []
    for number, line in lines:
        try:
            request = typed_json.loads(line) if lines[0][1].lstrip().startswith("{") else {_field(form): line}
            if not isinstance(request, dict):
                raise UserError("is no JSON object")
            prompt_of(request)
        except (ValueError, UserError) as error:
            reason = error if isinstance(error, UserError) else f"is no JSON ({error})"
            raise UserError(f"{where}:{number}: {reason}") from None
        requests.append(request)
    return requests


def answer_file(model: "Model", requests: Sequence[dict[str, Any]], flags: argparse.Namespace) -> None:
    """Answers requests together, and writes them with their answers."""
    from optiml_jax.inference.sampling import Sampling

    prompts = [prompt_of(request) for request in requests]
    stops = [chat.STOPS if {"messages", "message"} & request.keys() else () for request in requests]
    sampling = [Sampling(flags.temperature, flags.top_p, flags.seed, index) for index in range(len(prompts))]
    answers = model.generate_prompts(prompts, flags.max_new_tokens, stops, sampling=sampling)
    text = "".join(
        json.dumps(request | {"answer": chat.trim(answer.text)}, ensure_ascii=False) + "\n"
        for request, answer in zip(requests, answers)
    )
    if flags.output:
        write_atomically(flags.output, text)
        print(f"{len(requests)} answers in {flags.output}")
    else:
        print(text, end="")


def answer(model: "Model", prompt: str, flags: argparse.Namespace) -> Iterator[str]:
    """Yields the answer to a prompt as it is generated, without the space that stands before it."""
    options = {name: getattr(flags, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}
    pieces = model.stream(prompt, **options)
    started = False
    for piece in chat.until_stop(pieces, chat.STOPS if flags.form == CHAT else ()):
        if not started and flags.form != PLAIN:
            piece = piece.removeprefix(" ")
        started = started or bool(piece)
        yield piece


def show(model: "Model", prompt: str, flags: argparse.Namespace) -> str:
    """Prints an answer as it is generated; returns it."""
    text = ""
    for piece in answer(model, prompt, flags):
        print(piece, end="", flush=True)
        text += piece
    print()
    return text


def converse(model: "Model", flags: argparse.Namespace) -> None:
    """Reads requests from the terminal and answers them until an empty line."""
    messages: list[dict[str, str]] = []
    print(HELP[flags.form], file=sys.stderr)
    while line := _line():
        if flags.form == CHAT and line.strip() == "/reset":
            messages = []
        elif flags.form == CHAT:
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": show(model, chat.prompt_of(messages), flags)})
        else:
            show(model, prompt_of({_field(flags.form): line}), flags)


def _line() -> str:
    """A line from the terminal; empty at the end of input."""
    mark = "> " if os.isatty(0) else ""
    try:
        return input(mark)
    except EOFError:
        return ""


if __name__ == "__main__":
    main()
