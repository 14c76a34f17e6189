"""Conversations as text, the same in training, evaluation and lm-evaluation-harness."""

from collections.abc import Sequence

from optiml_jax.common.errors import UserError, nearest
from optiml_jax.tokenizer import join

SPOKEN = {"user": "User:", "assistant": "Assistant:", "system": "", "tool": "Tool:"}  # before what a role says


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
