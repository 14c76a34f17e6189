"""Requests to a tuned model as text: instructions and conversations, as the model was trained on them.

The same in training, evaluation, lm-evaluation-harness, `Model.chat`, `Model.instruct` and the exports.
"""

from collections.abc import Iterable, Iterator, Sequence

from optiml_jax.common.errors import UserError, nearest
from optiml_jax.tokenizer import join

SPOKEN = {"user": "User:", "assistant": "Assistant:", "system": "", "tool": "Tool:"}  # before what a role says

# Texts before which a message of the assistant ends, for models that do not end it with `</s>`.
STOPS = tuple(f"\n{name}" for name in SPOKEN.values() if name)

# `prompt_of` as a template of transformers; an unknown role is an error there too.
TEMPLATE = f"""\
{{{{- bos_token }}}}
{{%- set names = {SPOKEN} %}}
{{%- for message in messages %}}
    {{%- if message['role'] not in names %}}
        {{{{- raise_exception('role ' + message['role'] + ' is unknown: {", ".join(SPOKEN)}') }}}}
    {{%- endif %}}
    {{%- set text = message['content'].rstrip() %}}
    {{%- if text[:1] == ' ' and text[1:2] and not text[1:2].isspace() %}}
        {{%- set text = text[1:] %}}
    {{%- endif %}}
    {{{{- '' if loop.first else '\\n' }}}}
    {{{{- names[message['role']] }}}}
    {{{{- ' ' if names[message['role']] and not text[:1].isspace() }}}}
    {{{{- text }}}}
{{%- endfor %}}
{{{{- '\\n{SPOKEN["assistant"]}' if add_generation_prompt }}}}"""


def trim(text: str) -> str:
    """A text without the white space at its end, and without a single space at its start; indentation remains."""
    text = text.rstrip()
    return text[1:] if text[:1] == " " and not text[1:2].isspace() else text


def spoken(turns: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """Writes turns of (role, text), a line each.

    Returns:
      The text, and where in it each turn begins to speak and ends.
    """
    text, spans = "", []
    for role, said in turns:
        name, said = join(SPOKEN[role], trim(said))
        text += ("\n" if text else "") + name
        spans.append((len(text), len(text) + len(said)))
        text += said
    return text, spans


def prompt_of(messages: Sequence[dict[str, str]], asks: bool = True) -> str:
    """The prompt of a chat: messages with "role" and "content", and whether the assistant speaks next.

    Raises:
      UserError: a role is unknown.
    """
    for message in messages:
        if message["role"] not in SPOKEN:
            raise UserError(
                f"role {message['role']!r} is unknown{nearest(message['role'], SPOKEN)}: {', '.join(SPOKEN)}"
            )
    text, _ = spoken([(message["role"], message["content"]) for message in messages])
    return f"{text}\n{SPOKEN['assistant']}" if asks else text


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Yields the pieces of a text up to the first of the stops; what may be the start of one is held back."""
    text, yielded = "", 0
    for piece in pieces:
        text += piece
        if ends := [text.find(stop) for stop in stops if stop in text]:
            text = text[: min(ends)]
            break
        held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        if len(text) - held > yielded:
            yield text[yielded : len(text) - held]
            yielded = len(text) - held
    if len(text) > yielded:
        yield text[yielded:]


def instruction_prompt(instruction: str, text: str = "") -> str:
    """The prompt of an instruction and what it is about, in one of the forms that the paper trains on (section 2.4)."""
    text = text.rstrip()
    prompt = instruction.strip() + (f"\nInput: {trim(text)}" if text else "")
    return prompt if prompt.endswith(":") else f"{prompt}\nOutput:"
