"""Answers that outlive the process that gave them: `answers.jsonl` in OUTPUT_DIR.

An answer belongs to what was asked, not to a ledger: it is found again by the text, the candidates and the limits of a
prompt. So an evaluation that was killed goes on, and one that asks more, or scores the same answers by another metric,
asks only what is new. The first line says which weights, code and settings gave them; others begin a new file.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.evaluation.prompts.ledger import Prompt

FORMAT = 2
ASKED = ("prompt", "candidates", "separator", "stop", "max_new_tokens", "given", "demonstration_spans")

Answer = dict[str, Any]  # the arguments of `samples.score_sample` after the prompt


def key(prompt: Prompt) -> str:
    """The same for two prompts exactly if a model is asked the same."""
    asked = json.dumps([getattr(prompt, field) for field in ASKED])
    return hashlib.sha256(asked.encode()).hexdigest()


class AnswerStore:
    """The answers of one set of weights.

    Attributes:
      answers: by the key of their prompts.
      message: one line on what was found, for the log; empty for a fresh start.
    """

    def __init__(self, output_dir: str | Path, keys: Sequence[str], settings: Mapping[str, Any]):
        """Opens or begins the file.

        Args:
          keys: of the prompts of this evaluation, for the message.
          settings: JSON values that decide answers: identity of the weights, tokenizer, leading `</s>`, new tokens,
            code version. Batch size and device count do not belong here: they may change from run to run.
        """
        self._path = Path(output_dir) / "answers.jsonl"
        self._header = json.loads(json.dumps({"format": FORMAT, "settings": dict(settings)}))
        self.answers: dict[str, Answer] = {}
        self.message = ""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._go_on(keys):
            self._path.write_text(json.dumps(self._header, sort_keys=True) + "\n", encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8", newline="\n")

    def _go_on(self, keys: Sequence[str]) -> bool:
        """Reads what an earlier run left and cuts off a torn end; False if there is nothing to go on with."""
        if not self._path.exists():
            return False
        lines = self._path.read_bytes().splitlines(keepends=True)
        header = _parse(lines[0]) if lines else None
        if header != self._header:
            reason = _difference(header, self._header)
            self.message = f"{self._path}: left by an evaluation with {reason}; starting anew"
            return False
        whole = len(lines[0])
        for line in lines[1:]:
            if (group := _parse(line)) is None:
                break
            self.answers |= group
            whole += len(line)
        os.truncate(self._path, whole)
        known = sum(key in self.answers for key in keys)
        self.message = f"{self._path}: going on after {known:,} of {len(keys):,} prompts"
        return True

    def write(self, group: Mapping[str, Answer]) -> None:
        """Adds the answers of a group; all of them, or none, survive the end of this process.

        A group is one line: what is asked next does not depend on where inside a group a run was killed.
        """
        line = json.dumps(group)
        self._file.write(line + "\n")
        self._file.flush()
        self.answers |= json.loads(line)  # what a later run would read: resumed or not, the same values

    def close(self) -> None:
        """Closes the file; a later run goes on from it."""
        self._file.close()

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """A whole line's object, None for a torn or foreign one."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:  # includes bytes that are not UTF-8
        return None
    return value if isinstance(value, dict) else None


def _difference(found: dict[str, Any] | None, wanted: dict[str, Any]) -> str:
    if found is None or found.get("format") != wanted["format"] or not isinstance(found.get("settings"), dict):
        return "an unreadable header"
    names = sorted(found["settings"].keys() | wanted["settings"].keys())
    return "other " + ", ".join(n for n in names if found["settings"].get(n) != wanted["settings"].get(n))
