"""The evaluation command: checks settings, loads prompts and weights, evaluates."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from optiml_jax.checkpoints.runs import is_run
from optiml_jax.common import paths
from optiml_jax.common.distributed import together
from optiml_jax.common.errors import UserError, check_known
from optiml_jax.common.files import check_output
from optiml_jax.common.metrics_log import training_losses
from optiml_jax.common.settings import FROM_ZERO, check
from optiml_jax.data.manifest import Manifest
from optiml_jax.evaluation.answers import normalization
from optiml_jax.evaluation.pipeline import run_evaluation
from optiml_jax.evaluation.prompts import levels
from optiml_jax.evaluation.prompts.ledger import about, read_ledgers, suite_of, with_prompts
from optiml_jax.evaluation.prompts.scope import notes
from optiml_jax.evaluation.prompts.selection import ledgers, of_split, select, set_pooling
from optiml_jax.evaluation.reports.output import FILES
from optiml_jax.evaluation.reports.plain_text import Context
from optiml_jax.evaluation.reports.provenance import provenance
from optiml_jax.evaluation.scores.baselines import ledger_baselines
from optiml_jax.inference.model import load_model
from optiml_jax.inference.placement import Axes
from optiml_jax.inference.precision import AUTO, NAMES
from optiml_jax.weights import resolve


def evaluate(
    weights: str | None = None,
    ledger: str | None = None,
    output_dir: str | None = None,
    mixture: str | None = None,
    suite: str | None = None,
    cache_dir: str = "cache",
    batch_rows: int | None = None,
    max_new_tokens: int = 256,
    ranked_by: str = "sum",
    shots: int | Sequence[int] | None = None,
    limit: int = 0,
    templates: str = "suite",
    mesh: Mesh | Axes | None = None,
    precision: str = AUTO,
    check_only: bool = False,
    trained_on: Manifest | None = None,
    operative_config: Callable[[], str] = str,
) -> dict[str, Any]:
    """Evaluates, prints the report and returns the content of `results.json` (on the first process; {} on others).

    Args:
      weights: MODEL_DIR of a run, Hugging Face directory or hub name.
      ledger: file, or a directory with exactly one; None: those of `suite`, else of `mixture`, in `cache_dir`.
      trained_on: the mixture of the run whose weights are evaluated, to which its ledgers belong; None: the recorded
        one.
      suite: a suite, or several separated by commas, reported together.
      output_dir: None: `weights`/evaluation/NAME, with the names of the ledgers.
      batch_rows: rows computed at once; None: as many as memory allows.
      mesh: devices; `Axes`: over all of them; None: over all, with the weights whole on each if they fit.
      precision: see `load_model`.
      ranked_by: score that candidates are ranked by (`normalization.RANKED_BY`).
      shots: only prompts with this number of demonstrations, or these numbers.
      limit: questions per task and number of shots, drawn by their names; 0: all.
      templates: how several templates make the score of a task, see `selection.set_pooling`.
      operative_config: returns every value in force as text, for the report.
      check_only: checks everything but the weights, which may not exist yet, and returns.

    Raises:
      UserError: a setting is invalid, or weights or ledgers are missing.
    """
    if not weights:
        raise UserError("WEIGHTS is not set; choose a model with --gin.WEIGHTS=\"'runs/tiny'\"")
    weights, output_dir = paths.local("WEIGHTS", weights), paths.local("OUTPUT_DIR", output_dir)
    ledger, cache_dir = paths.local("LEDGER", ledger), paths.local("CACHE_DIR", cache_dir)
    training = levels.recorded_training(weights) if trained_on is None else None
    run_manifest = trained_on or next(iter(training.mixtures), None)  # None: the weights are not those of a run
    files = with_prompts(ledgers(ledger, suite, mixture, cache_dir, run_manifest.ledgers if run_manifest else {}))
    batch_rows = None if batch_rows is None else check("evaluate.batch_rows", batch_rows, int)
    max_new_tokens = check("evaluate.max_new_tokens", max_new_tokens, int)
    limit = check("evaluate.limit", limit, int, FROM_ZERO)
    check_known("PRECISION", precision, NAMES)
    if not check_only and not is_run(weights):
        resolve(weights)  # reports a mistyped path before a missing OUTPUT_DIR
    if output_dir is None and not check_only and not Path(weights).is_dir():
        raise UserError(f"OUTPUT_DIR is not set; {weights} is not a directory, so results cannot go there")
    ledger_prompts = of_split(read_ledgers(files), validating=False)
    if output_dir is None:
        suites = dict.fromkeys(prompt.suite for prompt in ledger_prompts)
        output_dir = str(Path(weights, "evaluation", "+".join(suites)))
    prompts = set_pooling(select(ledger_prompts, shots, limit), templates)
    normalization.check(ranked_by, prompts)
    if check_only:
        return {}
    with together():
        if jax.process_index() == 0:
            check_output(output_dir, FILES)
    training = training or levels.recorded_training(weights)  # a run that has just finished has its record by now
    metadata = [{"suite": suite_of(path)} | about(path) for path in files]
    prompts, level_notes = levels.apply(prompts, training, metadata)
    model = load_model(weights, mesh=mesh or Axes(), precision=precision)
    results = run_evaluation(
        model,
        prompts,
        Path(output_dir),
        batch_rows=batch_rows,
        max_new_tokens=min(max_new_tokens, model.config.max_positions // 2),
        ranked_by=ranked_by,
        context=Context(
            training=training_losses(weights),
            coverage={name: counts for ledger in metadata for name, counts in (ledger.get("coverage") or {}).items()}
            or None,
            dropped=[
                *(text for ledger in metadata for text in ledger.get("dropped", ())),
                *([] if shots is None else [f"prompts without {shots} demonstrations (SHOTS)"]),
                *([f"all but {limit:,} questions per task and number of shots (LIMIT)"] if limit else []),
            ],
            provenance=provenance(operative_config()),
            baselines=ledger_baselines(ledger_prompts),
            selection={
                "ledgers": {ledger["suite"]: ledger.get("sha256") for ledger in metadata},
                "prompts_per_task": {ledger["suite"]: ledger.get("prompts_per_task") for ledger in metadata},
                "shots": list(shots) if isinstance(shots, Sequence) else shots,
                "limit": limit,
            },
            notes=level_notes + notes(metadata, ledger_prompts, prompts, shots),
        ),
    )
    if jax.process_index() == 0:
        print(f"report    {output_dir}/report.html")
    return results
