"""A training run: token store, tokenizer, weights or checkpoint, loop, evaluation."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from optiml_jax.checkpoints.orbax import Checkpoints
from optiml_jax.checkpoints.runs import content
from optiml_jax.common import distributed, paths, trackers
from optiml_jax.common.errors import EmptyLedgerError, UserError
from optiml_jax.common.files import check_output, exclusive, write_atomically
from optiml_jax.common.metrics_log import METRICS, TENSORBOARD, VALIDATION, read_metrics, read_validation
from optiml_jax.common.tables import counted
from optiml_jax.data.demonstrations import separator_ids
from optiml_jax.data.loader import Loader, local_rows
from optiml_jax.data.manifest import RECORD, Manifest, coverage_text
from optiml_jax.data.sampling import shares_text
from optiml_jax.data.settings import Data
from optiml_jax.data.store import TokenStore
from optiml_jax.data.subset import selected
from optiml_jax.model import attention, decoder, sharding, trainable
from optiml_jax.model.config import PRECISIONS, OPTConfig
from optiml_jax.tokenizer import Tokenizer
from optiml_jax.training.hooks import Logging, Saver, StepLog, Validator
from optiml_jax.training.loop import Hook, Run, run_steps
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.settings import TOKENS, RunSettings, ValidationSettings
from optiml_jax.training.start import start_state
from optiml_jax.training.step import Computation
from optiml_jax.training.token_store import open_store

CONFIGURATION = "config.gin"
# The files and folders that a run writes to its MODEL_DIR.
FILES = (CONFIGURATION, METRICS, VALIDATION, RECORD)
FOLDERS = ("checkpoints", "tokenizer", TENSORBOARD, "best", "best/checkpoints", "best/tokenizer")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The outcome of a finished run, for notebooks and sweeps.

    Attributes:
      model_dir: can be passed to `load_model`.
      step: the last step.
      metrics: the rows of `metrics.jsonl`.
      evaluation: the result of `evaluate_after`, such as the content of `results.json`; None without it.
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
    validation: ValidationSettings | None = None,
    operative_config: Callable[[], str] = str,
    hooks: Sequence[Hook] = (),
) -> RunResult:
    """Trains to the last step, resuming from a checkpoint in `model_dir` if there is one.

    Args:
      mesh: over all devices; its axes are DATA_AXIS, FSDP_AXIS and TENSOR_AXIS.
      init_weights: initial weights: a Hugging Face directory or hub name, a metaseq checkpoint, or the MODEL_DIR of
        another run; None for random weights.
      evaluate_after: called after the last step with `operative_config`, and before the first one with
        `check_only=True`.
      validation: evaluated at its interval; the weights with the best average are kept in MODEL_DIR/best.
      operative_config: returns the text of `config.gin`, with every value in force.
      hooks: (interval, function(step, params)), called at the interval and after the last step, before it is saved.

    Raises:
      UserError: a setting, the data or the weights are not usable.
      SystemExit: code 143 when a signal stopped the run, after saving.
    """
    started = time.perf_counter()
    if not model_dir:
        raise UserError("MODEL_DIR is not set; say where the run goes with --gin.MODEL_DIR=\"'runs/NAME'\"")
    model_dir, init_weights = paths.local("MODEL_DIR", model_dir), paths.local("INIT_WEIGHTS", init_weights)
    sharding.check_divides(model, mesh, data.batch_rows, data.row_length, computation.accumulation)
    if data.row_length > model.max_positions:
        raise UserError(f"ROW_LENGTH {data.row_length} exceeds the model's {model.max_positions} positions; lower it")
    if problem := attention.unavailable(computation.attention):
        raise UserError(f"Computation.attention: {problem}")
    if problem := trackers.unavailable(logging.tracker):
        raise UserError(f"Logging.tracker: {problem}")
    if (model.adapter is None) == (optimization.trainable == "lora"):
        raise UserError(
            f"OPTConfig.adapter is {model.adapter}, Optimization.trainable is {optimization.trainable!r}; to train "
            "adapters set both, OPTConfig.adapter = @Lora() and Optimization.trainable = 'lora', and else neither"
        )
    if model.kernels == "int8" and optimization.trainable == "all":
        raise UserError(
            "OPTConfig.kernels: int8 matrices cannot be trained; add adapters (OPTConfig.adapter = @Lora(), "
            "Optimization.trainable = 'lora'), or set 'float'"
        )
    directory = Path(model_dir)
    validation = validation if validation is not None and validation.every else None
    run = RunSettings(model, optimization, computation, data, mesh, logging, directory, init_weights, validation)
    with contextlib.ExitStack() as stack:
        with distributed.together():
            if jax.process_index() == 0:
                check_output(directory, FILES, FOLDERS)
                stack.enter_context(exclusive(directory, "wait for it or choose another MODEL_DIR"))
        store = open_store(data)
        manifest = selected(store.manifest, data)
        prompts = ()
        try:
            if evaluate_after is not None:
                # reports a missing ledger now rather than after the last step
                evaluate_after(check_only=True, trained_on=manifest)
            if validation is not None:
                prompts = validation.prompts(manifest, init_weights)
        except EmptyLedgerError as error:
            if jax.process_index() == 0:
                print(f"neither validated nor evaluated: {str(error).splitlines()[0]}")  # gin adds lines
            evaluate_after = None
            run = dataclasses.replace(run, validation=None)
        last_step, finished = _train(run, store, manifest, prompts, operative_config, hooks, started)
        if not finished:
            raise SystemExit(143)
        evaluation = None
        if evaluate_after is not None:
            evaluation = evaluate_after(operative_config=operative_config, trained_on=manifest)
        return RunResult(directory, last_step, read_metrics(directory), evaluation)


def _train(
    settings: RunSettings,
    store: TokenStore,
    manifest: Manifest,
    validation_prompts: Sequence[Any],
    operative_config: Callable[[], str],
    hooks: Sequence[Hook],
    started: float,
) -> tuple[int, bool]:
    """Returns the step that was reached, and whether the run is finished or was stopped by a signal. Frees the
    device."""
    model, data, mesh, directory = settings.model, settings.data, settings.mesh, settings.model_dir
    tokenizer = Tokenizer.load(data.tokenizer) if data.tokenizer else store.load_tokenizer()
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, OPTConfig.vocab_size is {model.vocab_size}; raise it"
        )
    fixed = settings.fixed(tokenizer, manifest, content(settings.init_weights))
    rows = local_rows(NamedSharding(mesh, sharding.spec("BT")), data.batch_rows, data.row_length)
    loader = Loader(
        store,
        manifest,
        data,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        rows=rows,
        tokenizer_fingerprint=tokenizer.fingerprint,
        separators=separator_ids(data, tokenizer.encode),
    )

    def meta(position: dict[str, int]) -> dict[str, Any]:
        return {"data": position, "settings": fixed, "model": dataclasses.asdict(model)}

    checkpoints = Checkpoints(directory, settings.logging.keep_checkpoints)
    with contextlib.closing(checkpoints), loader, jax.set_mesh(mesh):
        state, first = start_state(settings, checkpoints, fixed, loader, store)
        if jax.process_index() == 0:
            write_atomically(directory / CONFIGURATION, operative_config())
            tokenizer.save(directory / "tokenizer")
            manifest.write(directory / RECORD)
            _announce(settings, store, manifest, loader, first)
        key = jax.random.fold_in(jax.random.key(data.seed), 1)
        recorded = {name: value for name, value in fixed.items() if not name.startswith(TOKENS)}
        run = Run(
            model,
            settings.optimization,
            settings.computation,
            mesh,
            state,
            first,
            loader,
            rows,
            data.batch_rows,
            key,
        )
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(
                contextlib.closing(
                    StepLog(run, directory, settings.logging, lambda: checkpoints.latest, recorded, started)
                )
            )
            save = Saver(run, checkpoints, log, meta)
            validators: list[Hook] = []
            interrupted: list[Validator] = []
            if settings.validation is not None:
                best = stack.enter_context(contextlib.closing(Checkpoints(directory / "best", keep=1)))
                if jax.process_index() == 0:
                    tokenizer.save(directory / "best" / "tokenizer")
                dtype = PRECISIONS[settings.computation.precision]
                options = model, tokenizer, mesh, data.leading_eos, dtype, validation_prompts
                score = settings.validation.scorer(*options)
                validator = Validator(
                    run, log, score, best, settings.validation.best_by, meta, read_validation(directory)
                )
                every = settings.validation.every
                validators.append((every, validator))
                due = first % every == 0 or first == settings.optimization.train_steps
                interrupted = [validator] if due and validator.missing(first) else []
            # A validation takes minutes: the checkpoint of its step is saved before it.
            saver = (settings.logging.checkpoint_every, save)
            finished = run_steps(run, [(1, log), *hooks, saver, *validators], interrupted)
            if not finished:
                save(run.step)
    if not finished and jax.process_index() == 0:
        print(f"stopped at step {run.step} after saving; run the same command again to resume", file=sys.stderr)
    return run.step, finished


def _announce(settings: RunSettings, store: TokenStore, manifest: Manifest, loader: Loader, first: int) -> None:
    """Prints the model, the data and the steps of the run."""
    parameters, device = decoder.parameter_count(settings.model) / 1e6, jax.devices()[0].device_kind
    trained, _ = trainable.split(decoder.abstract_params(settings.model), settings.optimization.trainable)
    axes = " x ".join(f"{size} {name}" for name, size in settings.mesh.shape.items())
    examples = sum(task.examples for task in manifest.tasks)
    print(f"model     {parameters:,.1f} M parameters on {axes} ({device})")
    if settings.optimization.trainable != "all":
        count = sum(leaf.size for leaf in jax.tree.leaves(trained)) / 1e6
        print(f"          {count:,.3f} M of them are trained ({settings.optimization.trainable}), the others frozen")
    print(f"data      {counted(len(manifest.tasks), 'task')}, {counted(examples, 'example')} in {store.directory}")
    if manifest.coverage:
        print(f"          {coverage_text(manifest.coverage)}")
    if shares := shares_text(manifest, loader.rates):
        print(f"          {shares}")
    if loader.demonstrator is not None:
        print(f"          {loader.demonstrator}")
        if dropped := loader.demonstrator.dropped_share(loader.rates):
            print(
                f"          {dropped:.1%} of the demonstrations do not fit in a row with their example, and are dropped"
            )
    if settings.data.objective != Data.objective:
        print(f"          objective {settings.data.objective}")
    start = f"from step {first} " if first else ""
    print(f"training  {start}to step {settings.optimization.train_steps}, into {settings.model_dir}", flush=True)
