"""The answer cache of an evaluation: `answers.jsonl` in OUTPUT_DIR.

An answer is keyed by what the model was asked (text, candidates and limits of the prompt), not by a ledger. An
interrupted evaluation therefore resumes, and one with more prompts or another metric only answers what is new. The
first line records the weights, code and settings that produced the answers; others start a new file.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.evaluation.prompts.ledger import Prompt

FORMAT = 2
KEY_FIELDS = ("prompt", "candidates", "separator", "stop", "max_new_tokens", "given", "demonstration_spans")

Answer = dict[str, Any]  # the arguments of `samples.score_sample` after the prompt


def key(prompt: Prompt) -> str:
    """A hash that is equal for two prompts exactly if they ask a model the same."""
    values = json.dumps([getattr(prompt, field) for field in KEY_FIELDS])
    return hashlib.sha256(values.encode()).hexdigest()


class AnswerStore:
    """The answers of one model with one set of settings.

    Attributes:
      answers: by the keys of their prompts.
      message: one line about existing answers, for the log; empty for a new file.
    """

    def __init__(self, output_dir: str | Path, keys: Sequence[str], settings: Mapping[str, Any]):
        """Opens or creates the file.

        Args:
          keys: of the prompts of this evaluation, for the message.
          settings: JSON values that determine answers: identity of the weights, tokenizer, leading `</s>`, new tokens,
            code version. Batch size and device count do not belong here, because they may change when resuming.
        """
        self._path = Path(output_dir) / "answers.jsonl"
        self._header = json.loads(json.dumps({"format": FORMAT, "settings": dict(settings)}))
        self.answers: dict[str, Answer] = {}
        self.message = ""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._resume(keys):
            self._path.write_text(json.dumps(self._header, sort_keys=True) + "\n", encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8", newline="\n")

    def _resume(self, keys: Sequence[str]) -> bool:
        """Reads existing answers and cuts off an incomplete last line; returns False if there are none to use."""
        if not self._path.exists():
            return False
        lines = self._path.read_bytes().splitlines(keepends=True)
        header = _parse(lines[0]) if lines else None
        if header != self._header:
            reason = _difference(header, self._header)
            self.message = f"{self._path}: left by an evaluation with {reason}; starting over"
            return False
        size = len(lines[0])
        for line in lines[1:]:
            if (group := _parse(line)) is None:
                break
            self.answers |= group
            size += len(line)
        os.truncate(self._path, size)
        done = sum(key in self.answers for key in keys)
        self.message = f"{self._path}: resuming after {done:,} of {len(keys):,} prompts"
        return True

    def write(self, group: Mapping[str, Answer]) -> None:
        """Adds the answers of a group, atomically: a killed process leaves all of them or none.

        A group is one line, so that the prompts answered together do not depend on where a run was killed.
        """
        line = json.dumps(group)
        self._file.write(line + "\n")
        self._file.flush()
        self.answers |= json.loads(line)  # as a resumed run would read them, so that values are equal

    def close(self) -> None:
        """Closes the file; a later run can resume from it."""
        self._file.close()

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """Parses a complete line; None if it is incomplete or not an object."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:  # includes bytes that are not UTF-8
        return None
    return value if isinstance(value, dict) else None


def _difference(actual: dict[str, Any] | None, expected: dict[str, Any]) -> str:
    """Describes how the header of a file differs from the expected one."""
    if actual is None or actual.get("format") != expected["format"] or not isinstance(actual.get("settings"), dict):
        return "an unreadable header"
    names = sorted(actual["settings"].keys() | expected["settings"].keys())
    return "other " + ", ".join(n for n in names if actual["settings"].get(n) != expected["settings"].get(n))
