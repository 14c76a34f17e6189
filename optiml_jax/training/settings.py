"""The settings of a run, and which of them must stay the same when it resumes."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jax.sharding import Mesh

from optiml_jax.checkpoints.runs import INIT_CONTENT, INIT_WEIGHTS
from optiml_jax.common.errors import UserError
from optiml_jax.common.metrics_log import Validated
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
TOKENS = "tokens of "


class ValidationSettings(Protocol):
    """The part of `evaluation.validation.Validation` that training uses (training does not import evaluation)."""

    every: int
    best_by: str

    def prompts(self, manifest: Manifest, init_weights: str | None) -> Sequence[Any]: ...
    def scorer(
        self,
        config: OPTConfig,
        tokenizer: Tokenizer,
        mesh: Mesh,
        leading_eos: bool,
        dtype: Any,
        prompts: Sequence[Any],
    ) -> Callable[[dict, Callable[[], bool]], Validated | None]: ...


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

    def fixed(self, tokenizer: Tokenizer, manifest: Manifest, init_content: str | None) -> dict[str, Any]:
        """The settings that must stay the same when the run resumes, by their names in gin, with the content of each
        task: a flat dictionary of JSON values.

        Args:
          init_content: hash of the initial weights, None if there are none.
        """
        settings: dict[str, Any] = {INIT_WEIGHTS: self.init_weights}
        settings[INIT_CONTENT] = init_content
        settings |= {f"OPTConfig.{name}": value for name, value in dataclasses.asdict(self.model).items()}
        if self.model.adapter is not None:
            adapter = dataclasses.asdict(self.model.adapter)
            settings["OPTConfig.adapter"] = adapter | {"targets": list(self.model.adapter.targets)}
        settings |= {f"Optimization.{name}": value for name, value in dataclasses.asdict(self.optimization).items()}
        settings |= self.data.order()
        settings["Data.eps"] = manifest.cap(self.data.eps)
        settings["Data.proportions"] = self.data.proportions or manifest.benchmarks
        settings["Computation.precision"] = self.computation.precision
        settings["tokenizer"] = tokenizer.fingerprint
        settings |= {f"{TOKENS}{task.name}": task.content for task in manifest.tasks}
        return settings


def defaults() -> dict[str, Any]:
    """The defaults of the settings in `RunSettings.fixed` that have one."""
    values: dict[str, Any] = {INIT_WEIGHTS: None, INIT_CONTENT: None}
    for kind in (OPTConfig, Optimization, Data, Computation):
        for field in dataclasses.fields(kind):
            if field.default is not dataclasses.MISSING:
                values[f"{kind.__name__}.{field.name}"] = field.default
    return values


def check_same_run(
    saved: dict[str, Any],
    settings: dict[str, Any],
    directory: Path,
    checksums: Callable[[str], str] = lambda task: "",
) -> None:
    """Refuses to resume with settings that differ from the checkpoint's.

    A setting that the checkpoint lacks, because it was written by an earlier version, counts as its default. The path
    of the initial weights may change if their content is the same.

    Args:
      saved, settings: results of `RunSettings.fixed`.
      checksums: of a task's tokens, by name, in the form in which earlier versions saved them.

    Raises:
      UserError: names the setting and both values.
    """
    default_values = defaults()
    for name in sorted(saved.keys() | settings.keys()):
        if name in MAY_DIFFER or name in (INIT_WEIGHTS, INIT_CONTENT):
            continue
        if name not in saved and name in default_values:
            before, now = default_values[name], settings[name]
        elif name not in settings and not name.startswith(TOKENS):
            raise UserError(
                f"{directory}: this run was started with {name} = {saved[name]}, a setting that this version does not "
                "have; resume it with the version that started it, or choose another MODEL_DIR"
            )
        else:
            before, now = saved.get(name), settings.get(name)
        if name.startswith(TOKENS) and before is not None and " " in before and now is not None:
            now = checksums(name.removeprefix(TOKENS))
        if before != now:
            raise _differs(directory, name, before, now)
    before, now = saved.get(INIT_WEIGHTS), settings.get(INIT_WEIGHTS)
    if before == now:
        return
    contents = [values.get(INIT_CONTENT) for values in (saved, settings)]
    if None in contents or contents[0] != contents[1]:
        raise _differs(directory, INIT_WEIGHTS, before, now)


def _differs(directory: Path, name: str, before: Any, now: Any) -> UserError:
    return UserError(
        f"{directory}: this run was started with {name} = {before}, now it is {now}; "
        "set it back, or choose another MODEL_DIR"
    )
