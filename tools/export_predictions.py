"""Writes the predictions of an evaluation in the form that Super-NaturalInstructions' own scripts score.

python -m tools.export_predictions runs/opt125m_ni --output=predictions.jsonl --shots=2

One line an instance, {"id", "prediction"}: what `eval/automatic/evaluation.py` of natural-instructions and its
leaderboard read. What could not be asked has an empty prediction.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from optiml_jax.common.errors import UserError, exit_on_user_error
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser
from optiml_jax.evaluation.scores.samples import find_samples, read_samples

BENCHMARK = "super_natural_instructions"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.export_predictions", __doc__)
    add = parser.add_argument
    add("run", help="OUTPUT_DIR of an evaluation, a MODEL_DIR that holds one, or a samples.jsonl")
    add("--output", required=True, help="file to write")
    add("--shots", type=int, help="which predictions, where there are several numbers of demonstrations")
    return parser.parse_args(arguments)


def predictions(samples: Sequence[dict], shots: int | None) -> dict[str, str]:
    """Instance id -> prediction.

    Raises:
      UserError: no sample is of Super-NaturalInstructions, or an instance was asked in several ways.
    """
    ours = [sample for sample in samples if sample["benchmark"] == BENCHMARK]
    there = sorted({sample["shots"] for sample in ours})
    chosen = [sample for sample in ours if shots in (None, sample["shots"])]
    if not chosen:
        what = f"of {shots} shots; there are {', '.join(map(str, there))}" if ours else f"of {BENCHMARK}"
        raise UserError(f"no predictions {what}")
    found: dict[str, str] = {}
    for sample in chosen:
        name = sample["example_id"]
        if name in found:
            raise UserError(f"instance {name} was asked more than once; choose one number of demonstrations by --shots")
        found[name] = sample["prediction"] or ""
    return found


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    found = predictions(read_samples(find_samples(flags.run)), flags.shots)
    lines = (json.dumps({"id": name, "prediction": text}, ensure_ascii=False) for name, text in found.items())
    write_atomically(Path(flags.output), "".join(f"{line}\n" for line in lines))
    print(f"{len(found):,} predictions in {flags.output}")


if __name__ == "__main__":
    main()
