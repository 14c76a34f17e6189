"""Checks the imports in the sources: no circles, and only the arrows of the map in CONTRIBUTING.md."""

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tasks.reading.fingerprints import imports
from tests.conftest import ROOT

# inside the engine: package -> packages it may import; single modules beside them are leaves or entry points
ALLOWED = {
    "common": set(),
    "model": {"common"},
    "data": {"common"},
    "weights": {"model", "common"},
    "checkpoints": {"weights", "model", "common"},
    "training": {"model", "data", "weights", "checkpoints", "common"},
    "inference": {"model", "weights", "checkpoints", "data", "common"},  # of data the packing alone
    "evaluation": {"inference", "model", "weights", "checkpoints", "data", "common"},
    "planning": {"training", "inference", "model", "common"},
}
BORROWING = {"tasks.benchmarks.samples", "tasks.benchmarks.small_study"}  # benchmarks with the layout of another
ENTRIES = {"train", "evaluate", "plan", "gin_cli"}
FROM_TASKS = {"data", "tokenizer", "chat", "evaluation", "common"}  # of the engine, what the benchmark uses


def modules(*packages: str) -> dict[str, Path]:
    """Name -> file of every module."""
    by_name = {}
    for package in packages:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            by_name[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return by_name


def graph(modules_by_name: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> modules that it imports, at the top or later. That of a package's own `__init__` by what is inside it
    is left out: `from package import sibling` names it without meaning it."""
    return {
        name: {other for other in imports(file) if other in modules_by_name and not f"{name}.".startswith(f"{other}.")}
        for name, file in modules_by_name.items()
    }


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    return graph(modules("optiml_jax", "tasks", "tools"))


def cycle(edges: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_the_reader_of_imports_sees_a_circle(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    from x import b\n")
    (tmp_path / "b.py").write_text("import x.a\n")
    edges = graph({"x.a": tmp_path / "a.py", "x.b": tmp_path / "b.py"})
    assert edges == {"x.a": {"x.b"}, "x.b": {"x.a"}} and set(cycle(edges)) == {"x.a", "x.b"}


def test_no_module_imports_itself_by_any_way(imported):
    assert not cycle(imported)


def test_packages_form_no_circle_and_follow_the_map(imported):
    packages: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for name, others in imported.items():
        package = part(name)
        for other in map(part, others):
            if package in ALLOWED and other in ALLOWED and other != package:
                packages[package].add(other)
            assert other not in ENTRIES or package in ENTRIES | {"optiml_jax", "tools"}, f"{name} imports {other}"
    assert not cycle(packages)
    for package, others in packages.items():
        assert others <= ALLOWED[package], f"{package} imports {others - ALLOWED[package]}"


def floors(imported: dict[str, set[str]], package: str) -> dict[str, int]:
    """Subpackage or module of a package -> 1 + the highest floor of those that it imports."""
    depth = package.count(".") + 1
    rooms: dict[str, set[str]] = {}
    for name, others in imported.items():
        if name.startswith(f"{package}."):
            room = name.split(".")[depth]
            inside = {other.split(".")[depth] for other in others if other.startswith(f"{package}.")}
            rooms.setdefault(room, set()).update(inside - {room})
    floor: dict[str, int] = {}
    for room in TopologicalSorter(rooms).static_order():
        floor[room] = 1 + max((floor[other] for other in rooms.get(room, ())), default=0)
    return floor


def test_evaluation_stands_on_six_floors_without_an_arrow_upwards(imported):
    """The order of the rooms is the order of the work: `static_order` raises for a circle of rooms."""
    assert floors(imported, "optiml_jax.evaluation") == {
        "metrics": 1,
        "prompts": 2,
        "answers": 3,
        "scores": 3,
        "reports": 4,
        "pipeline": 5,
        "validation": 4,
        "run": 6,
    }


def test_tasks_have_no_circle_of_rooms(imported):
    rooms = floors(imported, "tasks")
    assert {room for room, floor in rooms.items() if floor > 5} == {"seqio_tasks", "suites", "paper"}


def part(name: str) -> str:
    """The part of the engine that a module is in; of others the package."""
    first, *rest = name.split(".")
    return rest[0] if first == "optiml_jax" and rest else first


def test_halves_meet_where_they_should(imported):
    for name, others in imported.items():
        half = name.split(".")[0]
        if half == "optiml_jax":
            assert not {other for other in others if other.startswith(("tasks", "tools"))}, name
        if half == "tasks":
            ours = {part(other) for other in others if other.startswith("optiml_jax.")}
            assert ours <= FROM_TASKS, f"{name} imports {ours - FROM_TASKS}"
            assert not {other for other in others if other.startswith("tools")}, name
    for name in imported:  # one benchmark is one file
        if name.startswith("tasks.benchmarks.") and name not in BORROWING:
            assert not {other for other in imported[name] if other.startswith("tasks.benchmarks.")}, name


def test_only_seqio_modules_import_seqio_and_tensorflow():
    heavy = {
        name
        for name, file in modules("optiml_jax", "tasks", "tools").items()
        if {other.split(".")[0] for other in imports(file)} & {"seqio", "tensorflow"}
    }
    of_seqio = {"tasks.seqio_tasks", *(f"tasks.seqio.{name}" for name in ("demonstrations", "store", "vocabulary"))}
    within_a_function = {"tasks.reading.records", "tools.speed.figures"}
    assert heavy == of_seqio | within_a_function


def test_importing_tasks_is_cheap():
    code = "import sys; before = set(sys.modules); import tasks; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["tasks"]
