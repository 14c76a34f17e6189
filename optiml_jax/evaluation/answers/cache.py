"""The answer cache of an evaluation: `answers-KEY.jsonl` in OUTPUT_DIR.

A file holds the answers of one model: its key is a hash of what decides them besides the prompt (weights, tokenizer,
precision, code of the model and of inference). In the file, an answer is keyed by what the model was asked (text,
candidates and limits of the prompt), not by a ledger. An interrupted evaluation therefore resumes, one with more
prompts or another metric only answers what is new, and an edit elsewhere in the code changes nothing. Files only grow:
answers of another model are in another file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.evaluation.prompts.ledger import RANK, Prompt

FORMAT = 3
RANKED_FIELDS = ("prompt", "candidates", "separator", "given", "demonstration_spans")
GENERATED_FIELDS = ("prompt", "separator", "stop", "demonstration_spans")

Answer = dict[str, Any]  # the arguments of `samples.score_sample` after the prompt


def key(prompt: Prompt, max_new_tokens: int, ranked_by: str) -> str:
    """A hash that is equal for two prompts exactly if they ask a model the same.

    Args:
      max_new_tokens: limit of generated answers; ranked ones do not depend on it.
      ranked_by: score that candidates are ranked by; generated answers do not depend on it.
    """
    if prompt.output_type == RANK:
        values = [ranked_by, *(getattr(prompt, field) for field in RANKED_FIELDS)]
    else:
        limit = min(prompt.max_new_tokens or max_new_tokens, max_new_tokens)
        values = [limit, *(getattr(prompt, field) for field in GENERATED_FIELDS)]
    return hashlib.sha256(json.dumps([prompt.output_type, *values]).encode()).hexdigest()


class AnswerStore:
    """The answers of one model.

    Attributes:
      answers: by the keys of their prompts.
      message: one line about existing answers, for the log; empty if there are none.
    """

    def __init__(self, output_dir: str | Path, keys: Sequence[str], settings: Mapping[str, Any]):
        """Opens or creates the file of these settings.

        Args:
          keys: of the prompts of this evaluation, for the message.
          settings: JSON values that decide answers besides the prompts. Batch size, number of devices and the place of
            the weights do not belong here, because they may change when an evaluation resumes.
        """
        header = json.dumps({"format": FORMAT, "settings": dict(settings)}, sort_keys=True)
        name = f"answers-{hashlib.sha256(header.encode()).hexdigest()[:16]}.jsonl"
        self._path = Path(output_dir) / name
        self.answers: dict[str, Answer] = {}
        self.message = ""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        resumes = self._path.exists()
        complete = self._read(keys) if resumes else True
        if not resumes and (others := sorted(self._path.parent.glob("answers-*.jsonl"))):
            self.message = _about_others(others, settings)
        self._file = self._path.open("a", encoding="utf-8", newline="\n")
        if not complete:  # a line torn by a crash stays, and is not read
            self._file.write("\n")
        if not resumes:
            self._file.write(header + "\n")
            self._file.flush()

    def _read(self, keys: Sequence[str]) -> bool:
        """Reads existing answers; returns whether the last line is complete."""
        lines = self._path.read_bytes().splitlines(keepends=True)
        for line in lines:
            if (group := _parse(line)) is not None and "settings" not in group:
                self.answers |= group
        done = sum(key in self.answers for key in keys)
        self.message = f"{self._path}: resuming after {done:,} of {len(keys):,} prompts"
        return bool(lines) and lines[-1].endswith(b"\n")

    def write(self, group: Mapping[str, Answer]) -> None:
        """Adds the answers of a group, atomically: a killed process leaves all of them or none.

        A group is one line, so that the prompts ranked together do not depend on where a run was killed.
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


def _about_others(files: Sequence[Path], settings: Mapping[str, Any]) -> str:
    """Says what the settings of the newest of other files differ in."""
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    with newest.open("rb") as lines:
        header = _parse(lines.readline()) or {}
    other = header.get("settings")
    if not isinstance(other, dict):
        return ""
    expected = json.loads(json.dumps(dict(settings)))
    names = sorted(name for name in other.keys() | expected.keys() if other.get(name) != expected.get(name))
    return f"{newest}: has the answers of another {', '.join(names)}; answering anew, and keeping them"
