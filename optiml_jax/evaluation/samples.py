"""Scored samples: one line a prompt, written as they come; an interrupted evaluation goes on where it stopped."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.evaluation.ledger import Prompt, ledger_fingerprint
from optiml_jax.files import write_atomically

FORMAT = 3


def score_sample(
    prompt: Prompt,
    prediction: str,
    *,
    scores: Sequence[float] | None = None,
    truncated: bool = False,
    prompt_cut: bool = False,
    dropped: int = 0,
) -> dict[str, Any]:
    """One line of samples.jsonl.

    Args:
      prediction: the best candidate, or the generated text (without the space that joins it to the prompt).
      scores: sum of log-probabilities of each candidate, in the order of `prompt.candidates`; None for generation.
      truncated: the generation met the token limit before `</s>`.
      prompt_cut: the prompt was too long and lost its beginning.
      dropped: demonstrations that the prompt lost, being too long.

    Raises:
      UserError: a score is NaN or infinite. NaN is neither better nor worse than anything: it cannot be ranked.
    """
    if scores is not None and not all(map(math.isfinite, scores)):
        raise UserError(
            f"prompt {prompt.id}: candidate scores {list(map(float, scores))} cannot be ranked; NaN in the weights?"
        )
    score = prompt.metric(prediction, prompt.references)
    return {
        "id": prompt.id,
        "benchmark": prompt.benchmark,
        "task": prompt.task,
        "template": prompt.template,
        "example_id": prompt.example_id,
        "shots": prompt.shots,
        "demonstrations": len(prompt.demonstration_ids) - dropped,
        "seed": prompt.seed,
        "category": prompt.category,
        "level": prompt.level,
        "group": prompt.group,
        "part_of": prompt.part_of,
        "contaminated": prompt.contaminated,
        "prompt": prompt.without(dropped),
        "candidates": None if prompt.candidates is None else list(prompt.candidates),
        "references": list(prompt.references),
        "prediction": prediction,
        "scores": None if scores is None else [float(score) for score in scores],
        "metric": prompt.metric.to_json(),
        "score": score,
        "correct": score == 1.0,
        "truncated": truncated,
        "prompt_cut": prompt_cut,
    }


class SampleWriter:
    """Collects the samples of one evaluation in OUTPUT_DIR and knows which prompts still need an answer.

    Samples go to samples.partial.jsonl, whose first line says what they are samples of. If that file is there and says
    the same, its samples count (a torn last line is dropped); if it says anything else, it is replaced.

    Attributes:
      done: prompt id -> sample.
      message: one line on what was found, for the log; empty for a fresh start.
    """

    def __init__(self, output_dir: str | Path, prompts: Sequence[Prompt], settings: Mapping[str, Any]):
        """Opens or begins the partial file.

        Args:
          settings: JSON values that decide the samples: identity of the weights, tokenizer, leading `</s>`, new tokens,
            code version. Batch size and device count do not belong here: they may change from run to run.
        """
        self._directory = Path(output_dir)
        self._prompts = list(prompts)
        self._header = json.loads(
            json.dumps({"format": FORMAT, "ledger": ledger_fingerprint(self._prompts), "settings": dict(settings)})
        )
        self.done: dict[str, dict[str, Any]] = {}
        self.message = ""
        self._directory.mkdir(parents=True, exist_ok=True)
        if not self._resume():
            self._partial.write_text(json.dumps(self._header, sort_keys=True) + "\n", encoding="utf-8")
        self._file = self._partial.open("a", encoding="utf-8", newline="\n")

    @property
    def _partial(self) -> Path:
        return self._directory / "samples.partial.jsonl"

    def _resume(self) -> bool:
        """Reads what an interrupted run left and cuts off a torn end; False if there is nothing to go on with."""
        if not self._partial.exists():
            return False
        lines = self._partial.read_bytes().splitlines(keepends=True)
        header = _parse(lines[0]) if lines else None
        if header != self._header:
            reason = _difference(header, self._header)
            self.message = f"{self._partial}: left by an evaluation with {reason}; starting anew"
            return False
        wanted, whole = {prompt.id for prompt in self._prompts}, len(lines[0])
        for line in lines[1:]:
            sample = _parse(line)
            if sample is None or sample.get("id") not in wanted:
                break
            self.done[sample["id"]] = sample
            whole += len(line)
        os.truncate(self._partial, whole)
        self.message = f"{self._partial}: going on after {len(self.done):,} of {len(self._prompts):,} prompts"
        return True

    @property
    def remaining(self) -> list[Prompt]:
        """The prompts without a sample, in ledger order."""
        return [prompt for prompt in self._prompts if prompt.id not in self.done]

    def write(self, sample: dict[str, Any]) -> None:
        """Adds one sample; it survives the end of this process."""
        line = json.dumps(sample)
        self._file.write(line + "\n")
        self._file.flush()
        self.done[sample["id"]] = json.loads(line)  # what a later run would read: resumed or not, the same values

    def samples(self) -> list[dict[str, Any]]:
        """All samples in ledger order.

        Raises:
          ValueError: a prompt has none yet.
        """
        if remaining := self.remaining:
            raise ValueError(f"{len(remaining)} prompts have no sample yet, the first is {remaining[0].id}")
        return [self.done[prompt.id] for prompt in self._prompts]

    def finish(self) -> list[dict[str, Any]]:
        """Writes samples.jsonl in ledger order and removes the partial file. Call it after the results are written:
        until then an interruption costs nothing."""
        samples = self.samples()
        lines = (json.dumps(sample) + "\n" for sample in samples)
        write_atomically(self._directory / "samples.jsonl", "".join(lines))
        self.close()
        self._partial.unlink()
        return samples

    def close(self) -> None:
        """Closes the partial file; a later run goes on from it."""
        self._file.close()

    def __enter__(self) -> "SampleWriter":
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
    if found.get("ledger") != wanted["ledger"]:
        return "other prompts"
    names = sorted(found["settings"].keys() | wanted["settings"].keys())
    return "other " + ", ".join(n for n in names if found["settings"].get(n) != wanted["settings"].get(n))
