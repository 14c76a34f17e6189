"""The answer cache of an evaluation: `answers-KEY.jsonl` in OUTPUT_DIR.

A file holds the answers of one model: its key is a hash of what decides them besides the prompt (weights, tokenizer,
precision, code of the model and of inference). In the file, an answer is keyed by what the model was asked (text,
candidates and limits of the prompt), not by a ledger. An interrupted evaluation therefore resumes, one with more
prompts or another metric only answers what is new, and an edit elsewhere in the code changes nothing. Files only grow:
answers of another model are in another file.
"""

import contextlib
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from optiml_jax.common import typed_json
from optiml_jax.common.errors import DataError
from optiml_jax.common.files import writing
from optiml_jax.evaluation.prompts.ledger import RANK, Prompt

FORMAT = 4
RANKED_FIELDS = ("prompt", "candidates", "separator", "given", "demonstration_spans")
GENERATED_FIELDS = ("prompt", "separator", "stop", "demonstration_spans")


class Answer(TypedDict):
    """The arguments of `samples.score_sample` after the prompt."""

    prediction: str | None
    scores: NotRequired[list[float]]
    token_scores: NotRequired[list[list[tuple[str, float]]]]
    truncated: NotRequired[bool]
    prompt_cut: NotRequired[bool]
    dropped: NotRequired[int]
    remark: NotRequired[str | None]


class Header(TypedDict):
    """The first line of the file."""

    format: int
    settings: dict[str, Any]


class Group(TypedDict):
    """A line of the file: the answers of a group of prompts, and the CRC-32 of their JSON."""

    answers: dict[str, Answer]
    crc32: str


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
            with writing(self._path):
                self._file.write(header + "\n")
                self._file.flush()

    def _read(self, keys: Sequence[str]) -> bool:
        """Reads existing answers; returns whether the last line is complete."""
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read ({error.strerror}); remove it") from error
        groups = [_group(line) for line in lines[1:]]
        for group in groups:
            self.answers |= group or {}
        done, damaged = sum(key in self.answers for key in keys), groups.count(None)
        self.message = f"{self._path}: resuming after {done:,} of {len(keys):,} prompts"
        self.message += f"; {damaged:,} lines are torn or damaged, and their prompts are answered again" * bool(damaged)
        return bool(lines) and lines[-1].endswith(b"\n")

    def write(self, group: Mapping[str, Answer]) -> None:
        """Adds the answers of a group, atomically: a killed process leaves all of them or none.

        A group is one line, so that the prompts ranked together do not depend on where a run was killed.
        """
        text = json.dumps(group)
        answers = json.loads(text)  # as a resumed run would read them, so that values are equal
        with writing(self._path):
            self._file.write(json.dumps({"answers": answers, "crc32": _crc32(text)}) + "\n")
            self._file.flush()
        self.answers |= answers

    def close(self) -> None:
        """Closes the file; a later run can resume from it."""
        with contextlib.suppress(OSError):  # of a full disk, which the group that was not written has named
            self._file.close()

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _group(line: bytes) -> dict[str, Answer] | None:
    """The answers of a line; None if a crash has torn it, or it was damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        group = typed_json.parse(line, Group, "", "")
    except DataError:
        return None
    return group["answers"] if group["crc32"] == _crc32(json.dumps(group["answers"])) else None


def _crc32(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _about_others(files: Sequence[Path], settings: Mapping[str, Any]) -> str:
    """Says what the settings of the newest of other files differ in."""
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    try:
        with newest.open("rb") as lines:
            other = typed_json.parse(lines.readline(), Header, "", "")["settings"]
    except (OSError, DataError):
        return ""
    expected = json.loads(json.dumps(dict(settings)))
    names = sorted(name for name in other.keys() | expected.keys() if other.get(name) != expected.get(name))
    return f"{newest}: has the answers of another {', '.join(names)}; answering anew, and keeping them"
