"""The data settings of a training run."""

import dataclasses
import math
from typing import Any

from optiml_jax.common.errors import UserError
from optiml_jax.common.settings import check_fields

REFUSE, LEAVE_OUT = "refuse", "leave_out"  # what to do with benchmarks whose data are missing
# Fields that change no token of any step: paths, prefetching, and settings that take effect when a store is written
# (checksums of the tokens reveal a difference in those).
NOT_IN_ORDER = (
    "cache_dir",
    "data_dir",
    "tokenizer",
    "prefetch",
    "missing_benchmarks",
    "held_out_instances",
    "max_label_tokens",
)


@dataclasses.dataclass(frozen=True)
class Data:
    """Which examples a run trains on, and in which order.

    Attributes:
      mixture: a name that `tools.cache_tasks` knows.
      cache_dir: the token store; built from `data_dir` with `tokenizer` when it lacks the mixture.
      data_dir: raw files, one folder per benchmark; `samples` needs none.
      tokenizer: directory or hub name; None takes the store's own.
      row_length, batch_rows: T, and B over all devices.
      seed: of the data order, the initial weights and dropout.
      eps: cap on the examples per task in the sampling rates (paper 4.2); None for the mixture's own.
      proportions: share of each benchmark, by name; None for the mixture's own.
      tasks: of the mixture, by name or pattern ("flan.*"); None for all.
      categories: of the mixture, by name or pattern; None for all.
      missing_benchmarks: when the store is built, what to do with benchmarks whose data are missing: "refuse" or
        "leave_out".
      held_out_instances: when the store is built, how many instances of each train task are excluded from training and
        evaluated by the mixture's own suite; None for the benchmark's default (samples 32, others 0).
      max_label_tokens: when the store is built, examples with longer labels are skipped and listed; 0 for no limit.
      leading_eos: whether every example starts with `</s>`. The released OPT-IML models were trained without it.
      block_draws: examples that are drawn, packed and shuffled together. Smaller blocks fill rows slightly less.
      max_segments: maximum number of documents per row, None for no limit.
      prefetch: batches prepared in advance by a background thread; 0 for no thread.
    """

    mixture: str
    cache_dir: str
    data_dir: str | None = None
    tokenizer: str | None = None
    row_length: int = 2_048
    batch_rows: int = 256
    seed: int = 1
    eps: int | None = None
    proportions: dict[str, float] | None = None
    tasks: list[str] | None = None
    categories: list[str] | None = None
    missing_benchmarks: str = REFUSE
    held_out_instances: int | None = None
    max_label_tokens: int = 0
    leading_eos: bool = True
    block_draws: int = 16_384
    max_segments: int | None = None
    prefetch: int = 2

    def __post_init__(self) -> None:
        any_number = 0, math.inf
        check_fields(
            self,
            seed=(0, 2**63 - 1),
            prefetch=any_number,
            held_out_instances=any_number,
            max_label_tokens=any_number,
        )
        if self.missing_benchmarks not in (REFUSE, LEAVE_OUT):
            raise UserError(
                f"Data.missing_benchmarks is {self.missing_benchmarks!r}; it must be {REFUSE!r} or {LEAVE_OUT!r}"
            )

    def order(self) -> dict[str, Any]:
        """The settings that determine which tokens each step sees, by their names in gin."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        # a checkpoint returns a tuple as a list
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return {f"Data.{name}": value for name, value in plain.items() if name not in NOT_IN_ORDER}
