"""The data settings of a training run."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from optiml_jax.common import paths
from optiml_jax.common.errors import UserError, nearest
from optiml_jax.common.settings import FROM_ZERO
from optiml_jax.data.objective import OBJECTIVES
from optiml_jax.data.specification import OPTIONS, CacheOptions

NATURAL = "natural"  # proportions: capped sizes decide, as if there were no benchmarks
RENORMALISED, CLIPPED = "renormalised", "clipped"  # see `demonstrations.distribution`
SEPARATOR = "\n\n\n"  # [SEP] of the paper's 4.8
RANDOM = "random"  # a separator that is drawn for each example

# Fields that change no token of any step: paths, prefetching; and those in which the tasks and the names of their
# contents reveal a difference: the options of the cache, except for the length of rows, and what is always selected.
NOT_IN_ORDER = {"cache_dir", "data_dir", "tokenizer", "prefetch", "always_tasks", "always_categories", *OPTIONS}
NOT_IN_ORDER -= {"row_length"}


@dataclasses.dataclass(frozen=True)
class Data(CacheOptions):
    """Which examples a run trains on, and in which order; with the options of the cache.

    Attributes:
      mixture: a name that `tools.cache_tasks` knows.
      cache_dir: folder of the token store.
      data_dir: raw files, one folder per benchmark; `samples` needs none. What they and the options say is cached
        before training, unless it already is. None: the store is used as it is.
      tokenizer: directory or hub name; None takes the store's own.
      row_length: T, tokens per row; an option of the cache too.
      batch_rows: B, rows per step, over all devices and microbatches.
      seed: of the data order, the initial weights and dropout.
      eps: cap on the examples per task in the sampling rates (paper 4.2); None for the mixture's own.
      proportions: share of each benchmark, by name; "natural": tasks are drawn by their capped sizes alone (the first
        row of Table 5); None for the mixture's own.
      tasks: of the mixture, by name or pattern ("flan.*"); None for all.
      categories: of the mixture, by name or pattern; None for all.
      scale_tasks: number of tasks, chosen at random (paper 4.4); a smaller number with the same seed gives a subset.
      scale_categories: number of categories, those with the most tasks (paper 4.4).
      always_tasks, always_categories: names that are chosen before all others, if the mixture has them.
      demonstrations: shape a of the Zipf distribution from which the number of demonstrations of an example is drawn
        (paper 4.8, where it is 4 or 2); None: no demonstrations.
      max_demonstrations: K, the maximum number of demonstrations.
      demonstration_cap: what happens above K, "renormalised" or "clipped"; see `demonstrations.distribution`.
      demonstration_separator: text between a demonstration and the next example; "random": one of
        `demonstrations.RANDOM_SEPARATORS` for each example.
      objective: "label", "suffix" or "document"; see `objective.py`.
      leading_eos: whether every example starts with `</s>`. The released OPT-IML models were trained without it.
      document_attention: whether attention is causal inside each document, and positions start again in each (paper
        3.2); False: over the whole row, as in OPT's pre-training.
      token_shares: share of the positions of each of these benchmarks, in place of its share of the draws; the others
        keep their proportions to each other. {"pretrain_text": 0.05} is the paper's "% of updates" (Figure 4), because
        all updates have equally many positions; its proportion in the mixture is of draws.
      block_draws: examples that are drawn, packed and shuffled together. Smaller blocks fill rows slightly less.
      max_segments: maximum number of documents per row, None for no limit.
      prefetch: batches prepared in advance by a background thread; 0 for no thread.
    """

    mixture: str
    cache_dir: str
    data_dir: str | None = None
    tokenizer: str | None = None
    batch_rows: int = 256
    seed: int = 1
    eps: int | None = None
    proportions: dict[str, float] | str | None = None
    tasks: list[str] | None = None
    categories: list[str] | None = None
    scale_tasks: int | None = None
    scale_categories: int | None = None
    always_tasks: list[str] | None = None
    always_categories: list[str] | None = None
    demonstrations: float | None = None
    max_demonstrations: int = 5
    demonstration_cap: str = RENORMALISED
    demonstration_separator: str = SEPARATOR
    objective: str = "label"
    leading_eos: bool = True
    document_attention: bool = True
    token_shares: dict[str, float] | None = None
    block_draws: int = 16_384
    max_segments: int | None = None
    prefetch: int = 2

    def __post_init__(self) -> None:
        for name in ("cache_dir", "data_dir", "tokenizer", "review"):
            object.__setattr__(self, name, paths.local(f"Data.{name}", getattr(self, name)))
        super().__post_init__(seed=(0, 2**63 - 1), prefetch=FROM_ZERO)
        if not re.fullmatch(r"[\w.+-]+", self.mixture):
            raise UserError(f"Data.mixture is {self.mixture!r}; it must be the name of a mixture, such as 'samples'")
        _check_choice("demonstration_cap", self.demonstration_cap, (RENORMALISED, CLIPPED))
        _check_choice("objective", self.objective, OBJECTIVES)
        if not isinstance(self.proportions, Mapping | None):
            _check_choice("proportions", self.proportions, (NATURAL,), " or a share for each benchmark")
        if self.demonstrations is not None and self.demonstrations <= 1 and self.demonstration_cap == CLIPPED:
            raise UserError(
                f"Data.demonstrations is {self.demonstrations}: Zipf's distribution has no sum unless it is above 1; "
                f"raise it, or set Data.demonstration_cap to {RENORMALISED!r}"
            )
        separator = self.demonstration_separator
        if separator != RANDOM and not (separator[:1].isspace() and separator.endswith("\n")):
            raise UserError(
                f"Data.demonstration_separator is {separator!r}; it must begin with white space and end in a line "
                f"break, such as {SEPARATOR!r} or '\\n###\\n', or be {RANDOM!r}"
            )

    def order(self) -> dict[str, Any]:
        """The settings that determine which tokens each step sees, by their names in gin."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        # a checkpoint returns a tuple as a list
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return {f"Data.{name}": value for name, value in plain.items() if name not in NOT_IN_ORDER}


def _check_choice(name: str, value: Any, choices: Iterable[str], other: str = "") -> None:
    """Raises a `UserError` for a value that is not one of the choices."""
    if value not in choices:
        valid = ", ".join(repr(choice) for choice in choices)
        raise UserError(f"Data.{name} is {value!r}; it must be {valid}{other}{nearest(str(value), choices)}")
