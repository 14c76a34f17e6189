"""A training run from its settings: store, tokenizer, mesh, weights or checkpoint, loop, evaluation."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh, NamedSharding

from optiml_jax import weights
from optiml_jax.checkpoints import checkpoints as ckpt
from optiml_jax.common import distributed
from optiml_jax.common.errors import UserError
from optiml_jax.common.files import exclusive
from optiml_jax.common.metrics_log import read_metrics, read_validation
from optiml_jax.data import cache_paths
from optiml_jax.data.loader import Loader, local_rows
from optiml_jax.data.manifest import Manifest, coverage_text
from optiml_jax.data.sampling import shares_text
from optiml_jax.data.settings import Data
from optiml_jax.data.store import TokenStore
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import PRECISIONS, OPTConfig
from optiml_jax.tokenizer import Tokenizer
from optiml_jax.training import step
from optiml_jax.training.hooks import Logging, Saver, StepLog, Validator
from optiml_jax.training.loop import Hook, Run, run_steps
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.step import Computation

# settings that may differ when a run goes on: a larger TRAIN_STEPS extends it; mesh, paths and logging are no settings
MAY_DIFFER = ("Optimization.train_steps",)
ROOT = Path(__file__).resolve().parents[2]


class Validates(Protocol):
    """`evaluation.validation.Validation`, of which training knows so much."""

    every: int

    def prompts(self) -> Sequence[Any]: ...
    def scorer(
        self, config: OPTConfig, tokenizer: Tokenizer, mesh: Mesh, leading_eos: bool, dtype: Any
    ) -> Callable[[dict], dict[str, float]]: ...


@dataclasses.dataclass(frozen=True)
class Record:
    """What a finished run leaves, for notebooks and sweeps.

    Attributes:
      model_dir: what `load_model` takes.
      step: the last one.
      metrics: the rows of `metrics.jsonl`.
      evaluation: what `evaluate_after` gave, such as the content of `results.json`; None without it.
    """

    model_dir: Path
    step: int
    metrics: list[dict[str, Any]]
    evaluation: Any = None


def train(
    model: OPTConfig,
    optimization: Optimization,
    computation: Computation,
    data: Data,
    mesh: Mesh,
    logging: Logging,
    model_dir: str | None = None,
    init_weights: str | None = None,
    evaluate_after: Callable[..., Any] | None = None,
    validation: Validates | None = None,
    operative_config: Callable[[], str] = str,
    hooks: Sequence[Hook] = (),
) -> Record:
    """Trains to the last step, from a checkpoint in `model_dir` if there is one.

    Args:
      mesh: over all devices; its axes are DATA_AXIS, FSDP_AXIS and TENSOR_AXIS.
      init_weights: what to start from: a Hugging Face directory or hub name, a metaseq checkpoint, a MODEL_DIR of ours;
        None for random weights.
      evaluate_after: called when the last step is done, with `operative_config`, and before the first one with
        `check_only=True`.
      validation: what is asked every so many steps; the weights with the best average are kept in MODEL_DIR/best.
      operative_config: gives the text of `config.gin`, every value in force.
      hooks: (every, function(step, params)), called after so many steps and after the last one, before it is saved.

    Raises:
      UserError: see the modules.
      SystemExit: code 143 when a signal asked to stop; everything is saved.
    """
    if not model_dir:
        raise UserError("MODEL_DIR is not set; say where the run goes with --gin.MODEL_DIR=\"'runs/NAME'\"")
    sharding.check_divides(model, mesh, data.batch_rows, data.row_length, computation.accumulation)
    if data.row_length > model.max_positions:
        raise UserError(f"ROW_LENGTH {data.row_length} exceeds the model's {model.max_positions} positions; lower it")
    directory = Path(model_dir)
    with contextlib.ExitStack() as stack:
        with distributed.together():
            if jax.process_index() == 0:
                stack.enter_context(exclusive(directory, "wait for it or choose another MODEL_DIR"))
        store = open_store(data)
        if evaluate_after is not None:
            evaluate_after(check_only=True)  # a ledger that is not there is told of now, not after the last step
        validated = validation is not None and validation.every
        if validated:
            validation.prompts()
        step_ = _train(
            model,
            optimization,
            computation,
            data,
            store,
            mesh,
            logging,
            directory,
            init_weights,
            operative_config,
            hooks,
            validation if validated else None,
        )
        if step_ < optimization.train_steps:
            raise SystemExit(143)
        evaluation = None if evaluate_after is None else evaluate_after(operative_config=operative_config)
        return Record(directory, step_, read_metrics(directory), evaluation)


def _train(
    model: OPTConfig,
    optimization: Optimization,
    computation: Computation,
    data: Data,
    store: TokenStore,
    mesh: Mesh,
    logging: Logging,
    directory: Path,
    init_weights: str | None,
    operative_config: Callable[[], str],
    hooks: Sequence[Hook],
    validation: Validates | None,
) -> int:
    """The step that was reached: the last one, or that at which a signal asked to stop. The device is free again."""
    tokenizer = Tokenizer.load(data.tokenizer or store.directory / "tokenizer")
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, OPTConfig.vocab_size is {model.vocab_size}; raise it"
        )
    manifest = Manifest.read(cache_paths.manifest_path(store.directory, data.mixture)).only(data.tasks, data.categories)
    settings = {"train.init_weights": init_weights} | run_settings(
        model, optimization, computation, data, tokenizer, store, manifest
    )
    rows = local_rows(NamedSharding(mesh, sharding.spec("BT")), data.batch_rows, data.row_length)
    loader = Loader(
        store,
        manifest,
        data,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        rows=rows,
        tokenizer_fingerprint=tokenizer.fingerprint,
    )

    def meta(position: dict[str, int]) -> dict[str, Any]:
        return {"data": position, "settings": settings, "model": dataclasses.asdict(model)}

    checkpoints = ckpt.Checkpoints(directory, logging.keep_checkpoints)
    with contextlib.closing(checkpoints), loader, jax.set_mesh(mesh):
        state, first = start_state(
            model, optimization, computation, mesh, checkpoints, settings, loader, init_weights, data.seed
        )
        if jax.process_index() == 0:
            (directory / "config.gin").write_text(operative_config(), encoding="utf-8")
            tokenizer.save(directory / "tokenizer")
            _announce(model, mesh, store, manifest, data, first, optimization, directory)
        key = jax.random.fold_in(jax.random.key(data.seed), 1)
        run = Run(model, optimization, computation, mesh, state, first, loader, rows, data.batch_rows, key)
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(contextlib.closing(StepLog(run, directory, logging)))
            save = Saver(run, checkpoints, log, meta)
            validators: list[Hook] = []
            if validation is not None:
                best = stack.enter_context(contextlib.closing(ckpt.Checkpoints(directory / "best", keep=1)))
                if jax.process_index() == 0:
                    tokenizer.save(directory / "best" / "tokenizer")
                dtype = PRECISIONS[computation.precision]
                score = validation.scorer(model, tokenizer, mesh, data.leading_eos, dtype)
                validator = Validator(run, log, score, best, meta, read_validation(directory))
                validators.append((validation.every, validator))
            finished = run_steps(run, [(1, log), *hooks, *validators, (logging.checkpoint_every, save)])
            if not finished:
                save(run.step)
    if not finished and jax.process_index() == 0:
        print(f"stopped at step {run.step}, all saved; run the same command again to go on", file=sys.stderr)
    return run.step


def open_store(data: Data) -> TokenStore:
    """The token store of the mixture and the tokenizer, written now if it is missing.

    `tools.cache_tasks` writes it in a process of its own, so that this one never loads seqio, TensorFlow or Beam.
    """
    fingerprint = Tokenizer.load(data.tokenizer).fingerprint if data.tokenizer else None
    found = cache_paths.store_with(data.cache_dir, data.mixture, fingerprint)
    if found is None:
        command = ["-m", "tools.cache_tasks", f"--mixture={data.mixture}", f"--cache_dir={data.cache_dir}"]
        command += [f"--data_dir={data.data_dir}"] if data.data_dir else []
        command += [f"--tokenizer={data.tokenizer}"] if data.tokenizer else []
        command += [f"--missing_benchmarks={data.missing_benchmarks}", f"--max_label_tokens={data.max_label_tokens}"]
        if data.held_out_instances is not None:
            command += [f"--held_out_instances={data.held_out_instances}"]
        if jax.process_count() > 1 or not (ROOT / "tools").is_dir():
            raise UserError(
                f"CACHE_DIR {data.cache_dir} does not hold mixture {data.mixture}; write it first, in a checkout of "
                f"the project: python {' '.join(command)}"
            )
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        done = subprocess.run([sys.executable, *command], env=os.environ | {"PYTHONPATH": path})
        if done.returncode:
            raise SystemExit(done.returncode)  # the cause is already on stderr
        found = cache_paths.store_with(data.cache_dir, data.mixture, fingerprint)
    return TokenStore(found)


def run_settings(
    model: OPTConfig,
    optimization: Optimization,
    computation: Computation,
    data: Data,
    tokenizer: Tokenizer,
    store: TokenStore,
    manifest: Manifest,
) -> dict[str, Any]:
    """What must stay the same when a run goes on, flat: names as gin has them, and a checksum of each task's tokens."""
    settings = {f"OPTConfig.{name}": value for name, value in dataclasses.asdict(model).items()}
    settings |= {f"Optimization.{name}": value for name, value in dataclasses.asdict(optimization).items()}
    settings |= data.order()
    settings["Data.eps"] = manifest.cap(data.eps)
    settings["Data.proportions"] = data.proportions or manifest.benchmarks
    settings["Computation.precision"] = computation.precision
    settings["tokenizer"] = tokenizer.fingerprint
    settings |= {f"tokens of {task.name}": store.checksum(task.name, "train") for task in manifest.tasks}
    return settings


def check_same_run(saved: dict[str, Any], settings: dict[str, Any], directory: Path) -> None:
    """Refuses to go on with other settings than those of the checkpoint, by name.

    Args:
      saved, settings: flat dicts of JSON values, keys such as "OPTConfig.layers".

    Raises:
      UserError: names the setting and both values.
    """
    for name in sorted(saved.keys() | settings.keys()):
        if name not in MAY_DIFFER and saved.get(name) != settings.get(name):
            raise UserError(
                f"{directory}: this run was started with {name} = {saved.get(name)}, now it is {settings.get(name)}; "
                "set it back, or choose another MODEL_DIR"
            )


def start_state(
    model: OPTConfig,
    optimization: Optimization,
    computation: Computation,
    mesh: Mesh,
    checkpoints: ckpt.Checkpoints,
    settings: dict[str, Any],
    loader: Loader,
    init_weights: str | None,
    seed: int,
) -> tuple[step.TrainState, int]:
    """The state to go on from and its step: the latest checkpoint, given weights, or random ones.

    Raises:
      UserError: the checkpoint is of another run, or the weights do not fit the model.
    """
    abstract = step.abstract_state(model, optimization, computation)
    shardings = step.state_shardings(abstract, optimization, mesh)
    if checkpoints.latest is not None:
        meta = checkpoints.meta(checkpoints.latest)
        if "optimizer" not in meta:
            raise UserError(
                f"{checkpoints.directory} holds weights that were converted, and no training to go on with; give them "
                "as INIT_WEIGHTS and choose another MODEL_DIR"
            )
        check_same_run(meta["settings"], settings, checkpoints.directory)
        if meta["step"] > optimization.train_steps:
            raise UserError(
                f"{checkpoints.directory} is at step {meta['step']}, beyond TRAIN_STEPS = {optimization.train_steps}; "
                "raise TRAIN_STEPS or choose another MODEL_DIR"
            )
        loader.restore(meta["data"])
        return checkpoints.restore(meta["step"], ckpt.with_shardings(abstract, shardings)), meta["step"]
    if init_weights is None:
        return step.init_state(jax.random.key(seed), model, optimization, computation, mesh), 0
    params = read_weights(init_weights, model, mesh, settings["tokenizer"])
    return step.state_from_params(params, optimization, computation, mesh), 0


def read_weights(source: str, model: OPTConfig, mesh: Mesh, tokenizer: str) -> dict:
    """The parameters that a run starts from.

    Args:
      source: INIT_WEIGHTS.
      tokenizer: fingerprint of the run's.

    Raises:
      UserError: they are of another architecture or, from a run of ours, were trained with another tokenizer.
    """
    origin = f"INIT_WEIGHTS {source}"
    if ckpt.is_run(source):
        config, params, meta = ckpt.read_run(source, mesh)
        weights.check_config(config, model, origin)
        if meta["settings"]["tokenizer"] != tokenizer:
            raise UserError(f"{origin}: was trained with another tokenizer; set TOKENIZER to {source}/tokenizer")
        return params
    path = weights.resolve(source)
    weights.check_config(weights.read_config(path), model, origin)
    params = weights.load(path, model, sharding.parameter_shardings(decoder.abstract_params(model), mesh))
    decoder.check_params(params, model, source)
    return params


def _announce(
    model: OPTConfig,
    mesh: Mesh,
    store: TokenStore,
    manifest: Manifest,
    data: Data,
    first: int,
    settings: Optimization,
    directory: Path,
) -> None:
    axes = " x ".join(f"{size} {name}" for name, size in mesh.shape.items())
    tasks = manifest.tasks
    print(
        f"model     {decoder.parameter_count(model) / 1e6:,.1f} M parameters on {axes} ({jax.devices()[0].device_kind})"
    )
    print(f"data      {len(tasks)} tasks, {sum(task.examples for task in tasks):,} examples in {store.directory}")
    if manifest.coverage:
        print(f"          {coverage_text(manifest.coverage)}")
    if shares := shares_text(manifest, data.eps, data.proportions):
        print(f"          {shares}")
    start = f"from step {first} " if first else ""
    print(f"training  {start}to step {settings.train_steps}, into {directory}", flush=True)
