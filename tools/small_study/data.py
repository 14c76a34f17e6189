"""Writes the data of the small study: generated tasks, real tasks with short prompts, and text to pre-train on.

    python -m tools.small_study.data --data_dir=data --output=study_data

DATA_DIR holds `super_natural_instructions`, whole or a sample of it. The output has the layout that training reads:
`small_study/` with all tasks, `pretrain_text/` with a made-up encyclopaedia of the words in the generated tasks and the
text of the real ones. It is deterministic.
"""

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optiml_jax.common.errors import UserError, exit_on_user_error
from optiml_jax.common.files import write_atomically
from optiml_jax.common.tables import Parser, output_folder
from tasks.benchmarks import super_natural_instructions as super_ni
from tasks.benchmarks.samples import answer_format
from tasks.benchmarks.small_study import NAME
from tools.small_study import grammars
from tools.small_study.grammars import TEST, TRAIN, GeneratedTask


class Size(NamedTuple):
    """Which real tasks a study has.

    Attributes:
      longest: ranked -> characters of definition and input of a task, on average. Six fit a row.
      per_category: tasks.
      text: whether the files of DATA_DIR/pretrain_text are added.
    """

    longest: Mapping[bool, int]
    per_category: int
    text: bool


SIZES = {
    "quick": Size({True: 480, False: 300}, 3, text=False),
    "full": Size({True: 1_200, False: 1_200}, 20, text=True),
}
SHOWN = 5  # examples per generated task, which serve as demonstrations
MOST_INSTANCES = 2_000  # of a real task
ENCYCLOPAEDIA = 2_000  # documents


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.small_study.data", __doc__)
    add = parser.add_argument
    add(
        "--data_dir",
        required=True,
        help="folder with super_natural_instructions; the full study also reads its pretrain_text",
    )
    add("--output", type=output_folder, default="study_data", help="folder to write (study_data)")
    add("--size", choices=SIZES, default="quick", help="how many real tasks, and of which length (quick)")
    return parser.parse_args(arguments)


def generated(task: GeneratedTask, size: int) -> dict[str, Any]:
    """The content of a generated task's file, in the layout of Super-NaturalInstructions."""
    drawn = grammars.instances(task, size + SHOWN)
    examples = [{"input": text, "output": output, "explanation": ""} for text, output in drawn[:SHOWN]]
    return {
        "Source": ["small_study"],
        "Categories": [task.category],
        "Definition": [task.definition],
        "Positive Examples": examples,
        "Negative Examples": [],
        "Instances": [
            {"id": f"{task.name}-{number}", "input": text, "output": [output]}
            for number, (text, output) in enumerate(drawn[SHOWN:])
        ],
    }


def real_tasks(folder: Path, study: Size) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields (name, official list, content) of real tasks with short prompts and answers, a few per category; of the
    test tasks those whose answers are ranked."""
    roles = super_ni.split_lists(super_ni.NAME, folder)
    taken: Counter[tuple[str, str]] = Counter()
    for path in sorted((folder / "tasks").glob("*.json")):
        role = roles.get(f"{super_ni.NAME}.{path.stem}")
        if role not in (TRAIN, TEST):
            continue
        content = super_ni.load(path)
        category = content["Categories"][0]
        lengths = [len(str(instance["input"])) for instance in content["Instances"][:100]]
        metric, candidates = answer_format([tuple(instance["output"]) for instance in content["Instances"]])
        if metric == "rouge_l" or (role == TEST and candidates is None):
            continue
        if (
            not lengths
            or len(str(content["Definition"][0])) + statistics.mean(lengths) > study.longest[candidates is not None]
        ):
            continue
        taken[role, category] += 1
        if taken[role, category] <= study.per_category:
            content["Instances"] = content["Instances"][:MOST_INSTANCES]
            yield path.stem, role, content


def documents(tasks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The text of real tasks: five instances per document, with their answers."""
    for content in tasks:
        instances = content["Instances"]
        for start in range(0, len(instances), 5):
            parts = [f"{each['input']} {each['output'][0]}" for each in instances[start : start + 5]]
            yield "\n".join([content["Definition"][0], *parts])


def write(data_dir: Path, output: Path, size: str = "quick") -> str:
    """Writes the folder; returns what it holds.

    Args:
      size: one of `SIZES`.

    Raises:
      UserError: the real tasks are missing.
    """
    study = SIZES[size]
    folder = data_dir / super_ni.NAME
    if not (folder / "tasks").is_dir():
        raise UserError(f"--data_dir={data_dir}: has no {super_ni.NAME}/tasks; python -m tools.fetch_data gets it")
    lists: dict[str, list[str]] = {TRAIN: [], TEST: []}
    supervised = []
    trained = 0
    for task in grammars.tasks():
        count = grammars.TEST_SIZE if task.role == TEST else grammars.SIZES[trained % len(grammars.SIZES)]
        trained += task.role == TRAIN
        if task.supervised:
            count = max(count, 200)
            supervised.append(f"{NAME}.{task.name}")
        _write_json(output / NAME / "tasks" / f"{task.name}.json", generated(task, count))
        lists[task.role].append(task.name)
    counts = {role: len(names) for role, names in lists.items()}
    real = list(real_tasks(folder, study))
    for name, role, content in real:
        _write_json(output / NAME / "tasks" / f"{name}.json", content)
        lists[role].append(name)
    for role, names in lists.items():
        path = output / NAME / "splits" / "default" / f"{role}_tasks.txt"
        write_atomically(path, "".join(f"{name}\n" for name in names))
    texts = [*grammars.facts(ENCYCLOPAEDIA), *documents([content for _, role, content in real if role == TRAIN])]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    write_atomically(output / "pretrain_text" / "encyclopaedia_and_tasks.jsonl", lines)
    for path in sorted((data_dir / "pretrain_text").rglob("*.*")) if study.text else ():
        link = output / "pretrain_text" / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    lines = [
        f"{role}: {counts[role]} generated and {len(names) - counts[role]} real tasks" for role, names in lists.items()
    ]
    lines.append(f"always trained on: {', '.join(supervised)}")
    more = f", and the files of {data_dir / 'pretrain_text'}" if study.text else ""
    lines.append(f"text: {sum(map(len, texts)):,} characters{more}")
    return "\n".join(lines)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    print(write(Path(flags.data_dir), Path(flags.output), flags.size))


if __name__ == "__main__":
    main()
