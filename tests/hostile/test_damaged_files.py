"""Every JSON file that the project writes, damaged as a whole and field by field, is refused by name when it is read.

What is accepted is listed: fields that are null or absent in sound files too, and columns of a log that nothing reads.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.commands import run_all
from tests.hostile import damage
from tests.hostile import material as sound
from tests.test_train import environment

TASK = "samples.sample001_hotel_review_sentiment"
Command = tuple[str, list[str]]


def inspect(folder: Path) -> Command:
    cache = f"--cache_dir={folder / sound.CACHE}"
    return "tools.inspect_mixture", ["--mixture=samples", cache, f"--html={folder / 'page.html'}"]


def cache_tasks(flag: str, folder: Path) -> Command:
    return "tools.cache_tasks", [flag, f"--cache_dir={folder / sound.CACHE}"]


def train(folder: Path) -> Command:
    return "optiml_jax.train", sound.training(folder)


def evaluate(folder: Path) -> Command:
    return "optiml_jax.evaluate", sound.evaluation(folder)


def compare(folder: Path) -> Command:
    words = [str(folder / sound.EVALUATION), str(folder / "sound" / sound.EVALUATION), f"--output={folder / 'out'}"]
    return "tools.compare_runs", words


def render(folder: Path) -> Command:
    return "tools.render_report", [str(folder / sound.EVALUATION)]


verify, again, prune = (functools.partial(cache_tasks, flag) for flag in ("--verify", "--mixture=samples", "--prune"))


class File(NamedTuple):
    """A kind of file that is written.

    Attributes:
      part: of the material, in which `pattern` matches the file.
      readers: commands that read it, with the parts that they need besides.
      accepted: damages after which they succeed.
      fields: the fields to damage; empty: all; None: only the whole file.
    """

    part: str
    pattern: str
    readers: Iterable[tuple[Callable[[Path], Command], tuple[str, ...]]]
    accepted: Iterable[str] = ()
    fields: Iterable[str] | None = ()
    lines: bool = False


NO_CHECKSUM = ("without checksum", "checksum = null")
FILES = {
    "header of a store": File(sound.CACHE, "store.json", [(inspect, ()), (verify, ()), (again, ())]),
    "manifest": File(sound.CACHE, "mixtures/samples/*.json", [(inspect, ()), (verify, ())], NO_CHECKSUM),
    "counts": File(
        sound.CACHE,
        f"tasks/{TASK}/*/train.json",
        [(inspect, ()), (verify, ()), (again, ())],
        ("without checksum",),  # of an older store
    ),
    "rendering": File(sound.CACHE, f"renderings/{TASK}/*.json", [(again, ()), (prune, ())], ("max_examples = null",)),
    "ledger": File(
        sound.CACHE,
        "ledgers/samples.jsonl",
        [(evaluate, (sound.RUN,)), (verify, ())],
        fields=("format", "task", "shots", "metric", "candidates", "references", "demonstration_spans"),
        lines=True,
    ),
    "metadata of a ledger": File(
        sound.CACHE,
        "ledgers/samples.about.json",
        [(evaluate, (sound.RUN,))],
        ("an empty object", "without checksum"),  # as of a ledger that was written by hand
        fields=("sha256", "coverage", "checksum"),
    ),
    "samples": File(
        sound.EVALUATION,
        "samples.jsonl",
        [(compare, ()), (render, ())],
        (
            "without pooled",  # as before there was a choice
            *(f"{name} = null" for name in ("level", "scores", "token_scores", "score", "candidates", "prediction")),
            *(f'{name} = "x"' for name in ("group", "part_of", "remark")),
        ),
        lines=True,
    ),
    "settings of an evaluation": File(sound.EVALUATION, "evaluation.json", [(render, ())]),
    "manifest of a run": File(
        sound.RUN,
        "manifest.json",
        [(evaluate, (sound.CACHE,))],
        NO_CHECKSUM,
        fields=("format", "tasks", "specification", "checksum"),
    ),
    "log of a run": File(
        sound.RUN,
        "metrics.jsonl",
        [(train, (sound.CACHE,))],
        ("empty", "half", "loss = null", "loss = -3"),  # rows that a crash has torn are not missed
        fields=("step ", "loss "),
        lines=True,
    ),
    "log of validations": File(
        sound.RUN,
        "validation.jsonl",
        [(train, (sound.CACHE,))],
        ("empty", "half", "average = -3"),
        fields=("step ", "average "),
        lines=True,
    ),
    "metadata of a checkpoint": File(sound.RUN, f"checkpoints/{sound.STEPS}/meta/metadata", [(train, (sound.CACHE,))]),
}


SLOW = train, evaluate
FEW = ("half", "without format", "without step", "without task")


class Case(NamedTuple):
    """A damaged file, and the command that reads it."""

    kind: str
    damage: str
    path: Path
    command: Command


def cases(material: Path, root: Path, whole: bool) -> list[Case]:
    """Damages of every kind of file, for each command that reads it: all of them, or few for the slow
    commands, and those of fields for the first command alone."""
    made: list[Case] = []
    for kind, file in FILES.items():
        source = damage.the_file(material / file.part, file.pattern)
        for name, change in damage.of_lines(source) if file.lines else damage.of_document(source):
            if (
                file.fields
                and name not in damage.WHOLE
                and not f"{name.removeprefix('without ')} ".startswith(tuple(file.fields))
            ):
                continue
            for number, (reader, parts) in enumerate(file.readers):
                if not whole and ((reader in SLOW and name not in FEW) or (number and name not in damage.WHOLE)):
                    continue
                folder = root / str(len(made))
                sound.copied(material, folder, file.part, *parts)
                (folder / "sound").symlink_to(material)
                path = damage.the_file(folder / file.part, file.pattern)
                change(path)
                made.append(Case(kind, name, path, reader(folder)))
    return made


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.slow)])
def outcomes(request, material, tmp_path_factory) -> list[tuple[Case, int, str]]:
    """Each case, exit code and stderr."""
    made = cases(material, tmp_path_factory.mktemp("damaged"), request.param == "all")
    results = run_all([case.command for case in made], environment())
    return [(case, *result) for case, result in zip(made, results, strict=True)]


def test_every_damage_is_one_line_that_names_the_file(outcomes, request):
    assert len(outcomes) > {"some": 200, "all": 1000}[request.node.callspec.params["outcomes"]]
    wrong = []
    for case, code, stderr in outcomes:
        if code == 0 and case.damage in FILES[case.kind].accepted:
            continue
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        # Orbax names the folder of the step
        names_file = len(errors) == 1 and (str(case.path) in errors[0] or str(case.path.parents[1]) in errors[0])
        if code != 2 or not names_file or "Traceback" in stderr:
            wrong.append((case.kind, case.damage, case.command[0], code, stderr[-300:]))
    assert not wrong, "\n".join(map(str, wrong))


def test_a_damaged_answer_is_not_read_and_is_answered_again(material, tmp_path):
    folder = sound.copied(material, tmp_path / "x", sound.EVALUATION)
    path = damage.the_file(folder / sound.EVALUATION, "answers-*.jsonl")
    whole = path.read_text()
    path.write_text(whole.replace('"prediction": "', '"prediction": "x', 1))
    (tmp_path / "x" / sound.RUN).symlink_to(material / sound.RUN)
    (tmp_path / "x" / sound.CACHE).symlink_to(material / sound.CACHE)
    ((code, stderr),) = run_all([evaluate(tmp_path / "x")], environment())
    assert code == 0, stderr
    assert path.read_text().startswith(whole.splitlines()[0]) and len(path.read_text().splitlines()) > 2
    theirs = (material / sound.EVALUATION / "samples.jsonl").read_text()
    assert (folder / sound.EVALUATION / "samples.jsonl").read_text() == theirs
