"""The settings of a run, and which of them must stay the same when it resumes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jax.sharding import Mesh

from optiml_jax.common.errors import UserError
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.settings import Data
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer
from optiml_jax.training.hooks import Logging
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.step import Computation

# Settings that may differ when a run resumes: a larger TRAIN_STEPS extends it. Mesh, paths and logging are not
# compared.
MAY_DIFFER = ("Optimization.train_steps",)


class ValidationSettings(Protocol):
    """The part of `evaluation.validation.Validation` that training uses (training does not import evaluation)."""

    every: int

    def prompts(self, mixture_ledgers: Mapping[str, str]) -> Sequence[Any]: ...
    def scorer(
        self,
        config: OPTConfig,
        tokenizer: Tokenizer,
        mesh: Mesh,
        leading_eos: bool,
        dtype: Any,
        prompts: Sequence[Any],
    ) -> Callable[[dict], dict[str, float]]: ...


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Everything that a run is configured by.

    Attributes:
      mesh: over all devices.
      model_dir: where checkpoints, logs and the tokenizer go.
      init_weights: initial weights; None for random ones.
      validation: None for no validation.
    """

    model: OPTConfig
    optimization: Optimization
    computation: Computation
    data: Data
    mesh: Mesh
    logging: Logging
    model_dir: Path
    init_weights: str | None = None
    validation: ValidationSettings | None = None

    def fixed(self, tokenizer: Tokenizer, manifest: Manifest) -> dict[str, Any]:
        """The settings that must stay the same when the run resumes, by their names in gin, with the content of each
        task: a flat dictionary of JSON values."""
        settings: dict[str, Any] = {"train.init_weights": self.init_weights}
        settings |= {f"OPTConfig.{name}": value for name, value in dataclasses.asdict(self.model).items()}
        settings |= {f"Optimization.{name}": value for name, value in dataclasses.asdict(self.optimization).items()}
        settings |= self.data.order()
        settings["Data.eps"] = manifest.cap(self.data.eps)
        settings["Data.proportions"] = self.data.proportions or manifest.benchmarks
        settings["Computation.precision"] = self.computation.precision
        settings["tokenizer"] = tokenizer.fingerprint
        settings |= {f"tokens of {task.name}": task.content for task in manifest.tasks}
        return settings


def check_same_run(saved: dict[str, Any], settings: dict[str, Any], directory: Path) -> None:
    """Refuses to resume with settings that differ from the checkpoint's.

    Args:
      saved, settings: results of `RunSettings.fixed`.

    Raises:
      UserError: names the setting and both values.
    """
    for name in sorted(saved.keys() | settings.keys()):
        if name not in MAY_DIFFER and saved.get(name) != settings.get(name):
            raise UserError(
                f"{directory}: this run was started with {name} = {saved.get(name)}, now it is {settings.get(name)}; "
                "set it back, or choose another MODEL_DIR"
            )
