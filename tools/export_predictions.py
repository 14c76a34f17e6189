"""Writes the predictions of an evaluation in the format of Super-NaturalInstructions' scripts.

python -m tools.export_predictions runs/opt125m_ni --output=predictions.jsonl --shots=2

One line per instance, {"id", "prediction"}, as `eval/automatic/evaluation.py` of natural-instructions and its
leaderboard read it. Instances that could not be evaluated have an empty prediction.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from optiml_jax.common.errors import UserError, exit_on_user_error
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser, output_file
from optiml_jax.evaluation.scores.samples import find_samples, read_samples

BENCHMARK = "super_natural_instructions"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.export_predictions", __doc__)
    add = parser.add_argument
    add("run", help="OUTPUT_DIR of an evaluation, a MODEL_DIR that holds one, or a samples.jsonl")
    add("--output", type=output_file, required=True, help="file to write")
    add("--shots", type=int, help="number of demonstrations, if the evaluation has several")
    return parser.parse_args(arguments)


def predictions(samples: Sequence[dict], shots: int | None) -> dict[str, str]:
    """Maps instance ids to predictions.

    Raises:
      UserError: there is no sample of Super-NaturalInstructions, or an instance has several predictions.
    """
    ours = [sample for sample in samples if sample["benchmark"] == BENCHMARK]
    available = sorted({sample["shots"] for sample in ours})
    chosen = [sample for sample in ours if shots in (None, sample["shots"])]
    if not chosen:
        what = f"of {shots} shots; there are {', '.join(map(str, available))}" if ours else f"of {BENCHMARK}"
        raise UserError(f"no predictions {what}")
    by_instance: dict[str, str] = {}
    for sample in chosen:
        name = sample["example_id"]
        if name in by_instance:
            raise UserError(f"instance {name} has several predictions; choose a number of demonstrations with --shots")
        by_instance[name] = sample["prediction"] or ""
    return by_instance


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    by_instance = predictions(read_samples(find_samples(flags.run)), flags.shots)
    lines = (json.dumps({"id": name, "prediction": text}, ensure_ascii=False) for name, text in by_instance.items())
    write_atomically(Path(flags.output), "".join(f"{line}\n" for line in lines))
    print(f"{len(by_instance):,} predictions in {flags.output}")


if __name__ == "__main__":
    main()
