"""The specification of a cached mixture: everything that decides its stored tokens.

Gin settings (`data.settings.Data`), the flags of `tools.cache_tasks` and the command that training runs are made from
`CacheOptions`. A `Specification` adds what the user does not set (tokenizer, raw files, code) and is written into the
manifest, so that a run can compare it with its own settings and name the one that differs.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import UserError
from optiml_jax.common.settings import FROM_ZERO, LARGEST, Range, check_fields

REFUSE, LEAVE_OUT = "refuse", "leave_out"  # what to do with benchmarks whose data are missing
RANGES = {"held_out_instances": FROM_ZERO, "max_label_tokens": FROM_ZERO, "row_length": (2, LARGEST)}


def _option(default: Any, help_: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_, **more})


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Options of reading, rendering and storing a mixture, by their names in gin (`Data.NAME`) and on the command line.

    Attributes:
      held_out_instances: instances per train task that are excluded from training and evaluated by the mixture's own
        suite; None: the benchmark's default (samples 32, others 0).
      max_label_tokens: examples with longer labels are skipped and listed; 0: no limit.
      row_length: length of the chunks of documents that are longer than a row (`Task.longer`).
      all_templates: includes templates that alter the original task (PromptSource, FLAN).
      t0_truncation: truncates fields of PromptSource's rows to 2,048 characters, as for T0.
      fields: of a user's own records: "column=field, ..." for columns of other names ("ask=prompt, reply=completion").
      allow_bad_records: skips unusable records even if they are more than 1% of a split.
      allow_empty_tasks: leaves out tasks without usable records.
      missing_benchmarks: what to do with benchmarks of a mixture whose data are missing: "refuse" or "leave_out".
      review: a file of decisions on pairs of tasks (`tasks/catalog/review.py`), in addition to the project's.
    """

    held_out_instances: int | None = _option(None, "validation instances of each task (samples: 32, others: 0)")
    max_label_tokens: int = _option(0, "skip and list examples with longer labels")
    row_length: int = _option(2_048, "length of the pieces of longer documents (2048)")
    all_templates: bool = _option(False, "also use templates that alter the original task (PromptSource, FLAN)")
    t0_truncation: bool = _option(False, "cut fields of PromptSource to 2,048 characters, as T0 did")
    fields: str | None = _option(None, "columns of own data under other names: ask=prompt,reply=completion")
    allow_bad_records: bool = _option(False, "skip bad records even if more than 1%% of a split is unusable")
    allow_empty_tasks: bool = _option(False, "leave out tasks without usable instances")
    missing_benchmarks: str = _option(
        REFUSE, "benchmarks of a mixture whose data are missing (refuse)", choices=(REFUSE, LEAVE_OUT)
    )
    review: str | None = _option(None, "decisions of tools.find_overlap on pairs of tasks: which task to drop")

    def __post_init__(self, **ranges: Range) -> None:
        check_fields(self, **RANGES, **ranges)
        if self.missing_benchmarks not in (REFUSE, LEAVE_OUT):
            name = f"{type(self).__name__}.missing_benchmarks"
            raise UserError(f"{name} is {self.missing_benchmarks!r}; it must be {REFUSE!r} or {LEAVE_OUT!r}")

    def stored(self, name: str) -> Any:
        """The value of an option as a specification stores it: a review is stored by its content."""
        value = getattr(self, name)
        return _digest_of_file(value) if name == "review" and value is not None else value

    def flags(self) -> list[str]:
        """The options that differ from their defaults as flags of `tools.cache_tasks`."""
        changed = [field for field in OPTIONS.values() if getattr(self, field.name) != field.default]
        values = {field.name: getattr(self, field.name) for field in changed}
        return [f"--{name}" if value is True else f"--{name}={value}" for name, value in values.items()]


DEFAULTS = CacheOptions()
OPTIONS = {field.name: field for field in dataclasses.fields(CacheOptions)}
# Whatever they are, the same tokens are stored for what could be read: they decide what is an error.
PERMISSIONS = ("allow_bad_records", "allow_empty_tasks")


def options_of(settings: CacheOptions) -> CacheOptions:
    """The options alone of settings that extend them."""
    return CacheOptions(**{name: getattr(settings, name) for name in OPTIONS})


@dataclasses.dataclass(frozen=True)
class Specification:
    """The inputs that determine the tokens of a cached mixture.

    Attributes:
      tokenizer: its fingerprint.
      vocab_size: number of its ids.
      options: the options on which a task of the mixture depends, as `CacheOptions.stored` returns them.
      data_dir: absolute path of the raw files; None: the mixture needs none. It decides no token, but two folders are
        two data sets.
      code: version of the code that renders each benchmark.
      raw: digest of the raw files of each benchmark, by content.
    """

    tokenizer: str
    vocab_size: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data_dir: str | None = None
    code: Mapping[str, str] = dataclasses.field(default_factory=dict)
    raw: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names the manifest: a later state of the same folder with the same options replaces it."""
        return digest(self.tokenizer, self.options, self.data_dir)

    def differences(self, options: CacheOptions) -> dict[str, tuple[Any, Any]]:
        """The options with another value here than in `options`: {name: (value here, value there)}."""
        pairs = {name: (value, options.stored(name)) for name, value in self.options.items()}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def absolute(data_dir: str | os.PathLike | None) -> str | None:
    """The path of a data folder as a specification stores it."""
    return None if data_dir is None else str(Path(data_dir).resolve())


def digest(*values: Any) -> str:
    """64 bits of a hash of JSON values, in hexadecimal."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest_of_file(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
