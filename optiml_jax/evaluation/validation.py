"""Validation during training: scores some prompts at intervals, by the criterion with which the paper chooses
settings."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from optiml_jax.common import paths
from optiml_jax.common.errors import UserError, check_known
from optiml_jax.common.metrics_log import LOSS, Validated
from optiml_jax.common.settings import FROM_ZERO, check_fields
from optiml_jax.data.manifest import Manifest
from optiml_jax.evaluation.answers.answering import answer_all
from optiml_jax.evaluation.answers.reference_loss import ReferenceLoss, reference_losses
from optiml_jax.evaluation.prompts import levels
from optiml_jax.evaluation.prompts.ledger import LEVELS, Prompt, about, read_ledgers, with_prompts
from optiml_jax.evaluation.prompts.selection import TEMPLATES, ledgers, of_split, select, set_pooling
from optiml_jax.evaluation.scores.aggregation import scores
from optiml_jax.evaluation.scores.samples import score_sample, scored
from optiml_jax.evaluation.scores.trees import AVERAGES
from optiml_jax.inference.model import Model
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer

BATCHES_PER_GROUP = 4  # after which a signal to stop is looked at: smaller groups than an evaluation's

SHOWN = 8  # tasks of which trackers show a prompt with its answer
SHOWN_CHARACTERS = 1500  # of a prompt's end


@dataclasses.dataclass(frozen=True)
class Validation:
    """Prompts and interval of validation.

    Attributes:
      every: interval in steps; also runs after the last step; 0: never.
      ledger, suite, mixture, cache_dir, shots, batch_rows, max_new_tokens: as in `evaluate`.
      limit: questions per task and number of shots; 0: all. The paper uses 250 (section 4.1).
      templates: how several templates make the score of a task, see `prompts.selection.set_pooling`.
      best_by: what the best weights are chosen by: "average", the paper's over categories, also its
        "benchmark_average" (Table 5), the "level_average", or the lowest "loss".
    """

    every: int = 0
    ledger: str | None = None
    suite: str | None = None
    mixture: str | None = None
    cache_dir: str = "cache"
    shots: int | Sequence[int] | None = None
    limit: int = 250
    templates: str = "suite"
    batch_rows: int | None = None
    max_new_tokens: int = 256
    best_by: str = "average"

    def __post_init__(self) -> None:
        for name in ("ledger", "cache_dir"):
            object.__setattr__(self, name, paths.local(f"Validation.{name}", getattr(self, name)))
        check_fields(self, every=FROM_ZERO, limit=FROM_ZERO)
        check_known("Validation.best_by", self.best_by, (*AVERAGES, LOSS))
        check_known("Validation.templates", self.templates, TEMPLATES)

    def prompts(self, manifest: Manifest, init_weights: str | None = None) -> list[Prompt]:
        """Loads the selected prompts.

        Args:
          manifest: of the mixture that is trained on.  init_weights: the weights from which the run starts.

        Raises:
          UserError: a ledger is missing, or has no such prompts.
        """
        files = with_prompts(ledgers(self.ledger, self.suite, self.mixture, self.cache_dir, manifest.ledgers))
        prompts = select(of_split(read_ledgers(files), validating=True), self.shots, self.limit)
        prompts = set_pooling(prompts, self.templates)
        prompts, _ = levels.apply(prompts, levels.training_of(manifest, init_weights), map(about, files))
        if self.best_by == "level_average" and not any(prompt.level for prompt in prompts):
            raise UserError("Validation.best_by = 'level_average': no prompt has a level; use 'average'")
        return prompts

    def scorer(
        self,
        config: OPTConfig,
        tokenizer: Tokenizer,
        mesh: Mesh,
        leading_eos: bool,
        dtype: jnp.dtype,
        prompts: Sequence[Prompt],
    ) -> Callable[[dict, Callable[[], bool]], Validated | None]:
        """Returns a function from parameters on `mesh`, and one that says whether to stop, to the outcome; None if it
        stopped. It is called by every process of a run."""
        new_tokens = min(self.max_new_tokens, config.max_positions // 2)

        def score(params: dict, stopping: Callable[[], bool] = lambda: False) -> Validated | None:
            options = {"source": "training", "leading_eos": leading_eos, "dtype": dtype}
            model = Model(config, params, tokenizer, mesh, **options)
            limits = {"batch_rows": self.batch_rows, "max_new_tokens": new_tokens}
            samples = []
            for group, answers in answer_all(model, prompts, **limits, batches=BATCHES_PER_GROUP):
                samples += [score_sample(prompt, **answer) for prompt, answer in zip(group, answers, strict=True)]
                if stopping():
                    return None
            losses = []
            for group in reference_losses(model, prompts, batch_rows=self.batch_rows, batches=BATCHES_PER_GROUP):
                losses += group
                if stopping():
                    return None
            return Validated(
                validation_scores(scored(samples)), validation_losses(prompts, losses), shown_samples(samples)
            )

        return score


def validation_losses(prompts: Sequence[Prompt], losses: Sequence[ReferenceLoss]) -> dict[str, float]:
    """Returns the loss of the references per token, like training's, as "loss" and, for each level, "loss/LEVEL"."""
    by_name: dict[str, list[ReferenceLoss]] = {LOSS: list(losses)}
    for level in LEVELS:
        by_name[f"{LOSS}/{level}"] = [
            loss for prompt, loss in zip(prompts, losses, strict=True) if prompt.level == level
        ]
    return {
        name: math.fsum(loss.nats for loss in group) / sum(loss.tokens for loss in group)
        for name, group in by_name.items()
        if group
    }


def shown_samples(samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Some samples as texts, in `trackers.COLUMNS`: one of each of up to `SHOWN` tasks, spread evenly, those with
    generated answers first. The same prompts are shown at every validation."""
    first = {sample["task"]: sample for sample in reversed(samples)}
    chosen: list[Mapping[str, Any]] = []
    for ranked in (False, True):
        kind = [first[task] for task in sorted(first) if (first[task]["candidates"] is not None) == ranked]
        count = min(SHOWN - len(chosen), len(kind))
        chosen += [kind[i * len(kind) // count] for i in range(count)]
    return [
        (
            sample["task"],
            sample["prompt"][-SHOWN_CHARACTERS:],
            " | ".join(sample["references"]),
            sample["prediction"] or "",
            "" if sample["score"] is None else f"{100 * sample['score']:.1f}",
        )
        for sample in chosen
    ]


def validation_scores(samples: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Returns the averages, by one of which checkpoints are compared, and the scores of levels and categories; nothing
    if no prompt could be scored."""
    aggregated = scores(samples)
    averages = {name: aggregated[name] for name in AVERAGES if aggregated[name] is not None}
    levels = {f"level/{name}": score for name, score in aggregated["levels"].items()}
    return averages | levels | {f"category/{name}": score for name, score in aggregated["categories"].items()}
