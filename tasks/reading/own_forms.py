"""A record of a user's own data, in the forms in which people have them.

- instruction: `instruction`, `input` and `output` (Alpaca), `instruction`, `context` and `response` (Dolly), or
  `question`, `context` and `answer`;
- prompt: `prompt` and `completion`, `prompt` and `response`, or `input` and `output`, unchanged;
- chat: `messages` of `role` and `content` (OpenAI), or `conversations` of `from` and `value` (ShareGPT); `prompt` and
  `completion` that are such lists (TRL); an instruction with `system` or `history` (LLaMA-Factory); nested `replies`
  (OpenAssistant), of which the first of each message is read;
- text: `text` alone.

Fields that are null, as where records of several forms share a table, are absent.
"""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optiml_jax.chat import trim
from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError
from optiml_jax.evaluation.metrics import Metric
from tasks.reading.fields import UnusableError

INSTRUCTION, PROMPT, CHAT, TEXT = "instruction", "prompt", "chat", "text"  # forms
INSTRUCTIONS = (  # names of the instruction, the input and the output
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("question", "context", "answer"),
)
PROMPTS = (("prompt", "completion"), ("prompt", "response"), ("input", "output"))
CONVERSATIONS = ("messages", "conversations", "conversation", "thread")
SPEAKER, CONTENT = ("role", "from"), ("content", "value", "text")  # of a message
ROLES = {
    "system": "system",
    "developer": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_call", "observation"), "tool"),
}
COMMON = ("references", "candidates", "metric", "category")
# Names of fields to which `Data.fields` can map a column.
FIELDS = (
    *dict.fromkeys([*(name for names in (*INSTRUCTIONS, *PROMPTS) for name in names), "messages", "text"]),
    *("system", "history"),
    *COMMON,
)
FORMS = (
    '{"instruction", "input", "output"}, {"prompt", "completion"}, {"question", "answer"}, '
    '{"messages": [{"role", "content"}]} or {"text"}'
)
ROUGE_L = {"name": "rouge_l", "words": "unicode"}
EXACT_MATCH = {"name": "exact_match", "normalization": "plain"}


def parse_fields(text: str | None) -> dict[str, str]:
    """Reads `Data.fields`, "ask=prompt, reply=completion": {column of the file: field}.

    Raises:
      UserError: a part is no such pair, or the field is unknown.
    """
    renamed = {}
    for part in filter(None, map(str.strip, (text or "").split(","))):
        column, equals, name = map(str.strip, part.partition("="))
        if not column or not equals or name not in FIELDS:
            raise UserError(f"FIELDS: {part!r} is not column=field; fields are {', '.join(FIELDS)}")
        renamed[column] = name
    return renamed


def read_form(values: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a record.

    Returns:
      `form`; `question`, which no other split may have; `instruction` and `input`, `prompt`, `text`, or `turns` up to
      the last answer and the indices of those that are `labels`; `references`, `candidates`, `metric`; `category`, if
      it has one; `unused`, the names of fields that nothing reads.

    Raises:
      UnusableError: the record has none of the forms, or a field is not what it must be.
    """
    values = {renamed.get(name, name): value for name, value in values.items() if not _is_null(value)}
    used = set(COMMON)
    fields = _form(values, used)
    category = values.get("category")
    if isinstance(category, int | float):
        category = scalar(category)
    if category is not None and not isinstance(category, str):
        raise UnusableError(f"category is {kind(category)}, not text")
    fields |= {} if category is None or not category.strip() else {"category": category.strip()}
    unused = (*fields.get("unused", ()), *sorted(values.keys() - used))
    return {**fields, "unused": unused}


def _form(values: Mapping[str, Any], used: set[str]) -> dict[str, Any]:
    """The fields of the first form that fits; adds the names that it reads to `used`."""
    if (name := next((name for name in CONVERSATIONS if name in values), None)) is not None:
        used |= {name, "system"}
        return _conversation(_messages(values, name), values, f"{name} of")
    if isinstance(values.get("prompt"), Mapping) and "replies" in values["prompt"]:
        used |= {"prompt"}
        messages, others = _first_replies(values["prompt"])
        return {**_conversation(messages, values, "prompt"), "unused": ("replies after the first",) * bool(others)}
    for instruction, text, output in INSTRUCTIONS:
        if instruction in values and output in values:
            used |= {instruction, text, output, "system", "history"}
            return _instruction(values, instruction, text, output)
    for prompt, completion in PROMPTS:
        if prompt in values and completion in values:
            used |= {prompt, completion}
            return _prompt(values, prompt, completion)
    if "text" in values:
        used |= {"text"}
        text = _text(values, "text")
        if not text.strip():
            raise UnusableError("text is empty")
        return {"form": TEXT, "text": text, "question": text, **_answers(values, text, "text")}
    seen = ", ".join(sorted(values)[:6]) or "nothing"
    hint = "; or set FIELDS, such as FIELDS='ask=prompt,reply=completion'" if values else ""
    raise UnusableError(f"has {seen}, which is none of {FORMS}{hint}")


def _instruction(values: Mapping[str, Any], name: str, input_name: str, output: str) -> dict[str, Any]:
    instruction, text = _text(values, name), _text(values, input_name, optional=True)
    if not (instruction + text).strip():
        raise UnusableError(f"{name} is empty")
    system, history = _text(values, "system", optional=True), _history(values)
    if system.strip() or history:
        question = "\n".join(filter(None, (instruction, text)))
        if len(answers := _texts(values[output], output)) != 1:
            raise UnusableError(f"{output} is a list of {len(answers)}, but a conversation has one answer")
        messages = [
            *({"role": role, "content": said} for pair in history for role, said in zip(("user", "assistant"), pair)),
            {"role": "user", "content": question},
            {"role": "assistant", "content": answers[0]},
        ]
        return _conversation(messages, values, "history")
    fields = {"form": INSTRUCTION, "instruction": instruction, "input": text, "question": f"{instruction}\0{text}"}
    return fields | _answers(values, values[output], output)


def _history(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = values.get("history", [])
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise UnusableError("history is no list of pairs of a question and its answer")
    texts = [(_texts(question, "history"), _texts(answer, "history")) for question, answer in pairs]
    if not all(question and answer for question, answer in texts):
        raise UnusableError("history has a pair without a question or an answer")
    return [(question[0], answer[0]) for question, answer in texts]


def _prompt(values: Mapping[str, Any], prompt: str, completion: str) -> dict[str, Any]:
    if isinstance(values[prompt], list) and isinstance(values[completion], list):
        before, after = _messages(values, prompt), _messages(values, completion)
        return _conversation([*({**message, "weight": 0} for message in before), *after], values, prompt)
    text = _text(values, prompt)
    return {"form": PROMPT, "prompt": text, "question": text, **_answers(values, values[completion], completion)}


def _messages(values: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    messages = values[name]
    if isinstance(messages, str):  # a column of a table
        try:
            messages = typed_json.loads(messages)
        except ValueError:
            raise UnusableError(f"{name} is text that is not JSON") from None
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise UnusableError(f"{name} is no list of objects")
    return [{key: value for key, value in message.items() if not _is_null(value)} for message in messages]


def _first_replies(message: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """The messages from a root to a leaf, by the reply of the best rank, else the first; and the number of others."""
    path, others = [], 0
    while True:
        path.append({key: message.get(key) for key in (*SPEAKER, *CONTENT) if not _is_null(message.get(key))})
        replies = message.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
            raise UnusableError("replies is no list of objects")
        if not replies:
            return path, others
        others += len(replies) - 1
        message = min(replies, key=lambda reply: math.inf if _is_null(reply.get("rank")) else reply["rank"])


def _conversation(messages: Sequence[Mapping[str, Any]], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a conversation. Conversations that open in the same way have the same question, and split."""
    system = _text(values, "system", optional=True)
    turns: list[tuple[str, str]] = [("system", system)] if system.strip() else []
    labels, unused = [], set()
    for number, message in enumerate(messages, start=1):
        speaker = next((name for name in SPEAKER if name in message), None)
        role = ROLES.get(str(message.get(speaker)).lower()) if speaker else None
        if role is None:
            seen = f"{speaker} {message[speaker]!r}" if speaker else f"without {' or '.join(SPEAKER)}"
            raise UnusableError(f"message {number} is {seen}; known: {', '.join(ROLES)}")
        content = next((name for name in CONTENT if name in message), None)
        text = _content(message, content, number)
        if role == "assistant" and turns and text.strip() and _is_learned(message, number):
            labels.append(len(turns))
        turns.append((role, text))
        unused |= message.keys() - {speaker, content, "weight", "train", "tool_calls"}
    if not labels:
        raise UnusableError("no turn of the assistant to learn")
    fields = {"form": CHAT, "turns": tuple(turns[: labels[-1] + 1]), "labels": tuple(labels)}
    fields |= {"question": repr(turns[: labels[0]]), "unused": tuple(f"{where} {name}" for name in sorted(unused))}
    return fields | _answers(values, turns[labels[-1]][1], "the answer")


def _content(message: Mapping[str, Any], name: str | None, number: int) -> str:
    """The text of a message: its content, which may be a list of parts, and its calls of tools as JSON lines."""
    calls = message.get("tool_calls", [])
    if name is None and not calls:
        raise UnusableError(f"message {number} lacks {' or '.join(CONTENT)}")
    content = "" if name is None else message[name]
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                what = part.get("type", "part") if isinstance(part, Mapping) else kind(part)
                raise UnusableError(f"message {number} contains {what!r}, not only text")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise UnusableError(f"{name} of message {number} is {kind(content)}, not text")
    return "\n".join(filter(None, [content, *(_call(call, number) for call in calls)]))


def _call(call: Any, number: int) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UnusableError(f"tool_calls of message {number} has no name of a function")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # not JSON: as it is
            arguments = typed_json.loads(arguments)
    return json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)


def _is_learned(message: Mapping[str, Any], number: int) -> bool:
    """Whether a message of the assistant is a label: unless its `weight` is 0, or `train` is false."""
    for name in ("weight", "train"):
        value = message.get(name, 1)
        value = {"0": 0, "1": 1, "true": 1, "false": 0}.get(value.strip().lower()) if isinstance(value, str) else value
        if value not in (0, 1):
            raise UnusableError(f"{name} of message {number} is {message[name]!r}; it must be 0 or 1")
        if not value:
            return False
    return True


def _answers(values: Mapping[str, Any], output: Any, name: str) -> dict[str, Any]:
    """References, candidates and metric of a record."""
    references = [*_texts(output, name), *_texts(values.get("references", []), "references")]
    references = list(dict.fromkeys(trim(text) for text in references if text.strip()))
    if not references:
        raise UnusableError(f"{name} is empty")
    candidates = values.get("candidates") or None
    if candidates is not None:
        candidates = tuple(dict.fromkeys(trim(text) for text in _texts(candidates, "candidates")))
        if len(candidates) < 2 or not set(candidates) & set(references):
            raise UnusableError("candidates must be two or more, one of them the output")
    metric = values.get("metric", ROUGE_L if candidates is None else "accuracy")
    metric = {"rouge_l": ROUGE_L, "exact_match": EXACT_MATCH}.get(metric, metric) if isinstance(metric, str) else metric
    try:
        parsed = Metric.parse(metric)
    except UserError as error:
        raise UnusableError(str(error)) from None
    return {"references": tuple(references), "candidates": candidates, "metric": parsed}


def scalar(value: Any) -> Any:
    """A number, or true or false, as text; other values as they are."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _text(values: Mapping[str, Any], name: str, optional: bool = False) -> str:
    if name not in values and optional:
        return ""
    if name not in values:
        raise UnusableError(f"lacks {name}")
    text = scalar(values[name])
    if not isinstance(text, str):
        raise UnusableError(f"{name} is {kind(text)}, not text")
    return text


def _texts(value: Any, name: str) -> list[str]:
    texts = [scalar(text) for text in (value if isinstance(value, list) else [value])]
    if not all(isinstance(text, str) for text in texts):
        raise UnusableError(f"{name} is neither text nor a list of texts")
    return texts


def kind(value: Any) -> str:
    """The JSON type of a value, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
