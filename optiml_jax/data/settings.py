"""The data settings of a training run."""

import dataclasses
from typing import Any

from optiml_jax.data.specification import ANY_NUMBER, OPTIONS, CacheOptions

# Fields that change no token of any step: paths, prefetching, and the options of the cache, except for the length of
# rows (the names of the tasks' contents reveal a difference in those).
NOT_IN_ORDER = {"cache_dir", "data_dir", "tokenizer", "prefetch", *OPTIONS} - {"row_length"}


@dataclasses.dataclass(frozen=True)
class Data(CacheOptions):
    """Which examples a run trains on, and in which order; with the options of the cache.

    Attributes:
      mixture: a name that `tools.cache_tasks` knows.
      cache_dir: folder of the token store.
      data_dir: raw files, one folder per benchmark; `samples` needs none. What they and the options say is cached
        before training, unless it already is. None: the store is used as it is.
      tokenizer: directory or hub name; None takes the store's own.
      row_length: T; an option of the cache too.
      batch_rows: B, over all devices.
      seed: of the data order, the initial weights and dropout.
      eps: cap on the examples per task in the sampling rates (paper 4.2); None for the mixture's own.
      proportions: share of each benchmark, by name; None for the mixture's own.
      tasks: of the mixture, by name or pattern ("flan.*"); None for all.
      categories: of the mixture, by name or pattern; None for all.
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
    proportions: dict[str, float] | None = None
    tasks: list[str] | None = None
    categories: list[str] | None = None
    leading_eos: bool = True
    document_attention: bool = True
    token_shares: dict[str, float] | None = None
    block_draws: int = 16_384
    max_segments: int | None = None
    prefetch: int = 2

    def __post_init__(self) -> None:
        super().__post_init__(seed=(0, 2**63 - 1), prefetch=ANY_NUMBER)

    def order(self) -> dict[str, Any]:
        """The settings that determine which tokens each step sees, by their names in gin."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        # a checkpoint returns a tuple as a list
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return {f"Data.{name}": value for name, value in plain.items() if name not in NOT_IN_ORDER}
