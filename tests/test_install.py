"""The wheel in a virtual environment of its own, far from the checkout: what `pip install` gives a user."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_train import SMALL, cache  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The environment: our wheel by pip, and this one's dependencies on its path (they are 3 GB)."""
    directory = tmp_path_factory.mktemp("install")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(directory / "wheel"), str(ROOT)]
    subprocess.run([*pip, *build], check=True, cwd=directory)
    environment = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (wheel,) = (directory / "wheel").glob("*.whl")
    python = ["--python", str(environment / "bin" / "python")]
    subprocess.run([*pip, *python, "install", "--no-deps", "--no-index", str(wheel)], check=True, cwd=directory)
    (site,) = environment.glob("lib/python*/site-packages")
    ours = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert ours == {"optiml_jax"}
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def command(installed: Path, name: str, *flags: str, cwd: Path) -> subprocess.CompletedProcess:
    words = [str(installed / "bin" / name), *flags]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_wheel_trains_evaluates_and_plans_outside_the_checkout(installed, cache, tmp_path):  # noqa: F811
    small = [f"--gin.{name}={value}" for name, value in SMALL.items()]
    flags = ("--gin_file=tiny.gin", *small, "--gin.MODEL_DIR=runs/x", f"--gin.CACHE_DIR={cache}")
    done = command(installed, "optiml-train", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ledger = tmp_path / "few.jsonl"
    lines = Path(cache, "ledgers", "samples.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    ledger.write_text("".join(lines[::50]), encoding="utf-8")
    flags = ("--gin_file=evaluate.gin", "--gin.WEIGHTS=runs/x", "--gin.LEDGER=few.jsonl", "--gin.MAX_NEW_TOKENS=4")
    done = command(installed, "optiml-evaluate", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "x" / "evaluation" / "samples" / "report.html").exists()
    flags = ("--gin_file=tiny.gin", "--devices=2", "--json=plan.json")
    done = command(installed, "optiml-plan", *flags, cwd=tmp_path)
    assert done.returncode == 0 and json.loads((tmp_path / "plan.json").read_text())["devices"] == 2, done.stderr


def test_what_needs_the_checkout_says_so(installed, tmp_path):
    flags = ("--gin_file=tiny.gin", "--gin.MODEL_DIR=run", "--gin.CACHE_DIR=nothing")
    done = command(installed, "optiml-train", *flags, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "write it first, in a checkout of the project: python -m tools.cache_tasks" in done.stderr
    done = command(installed, "python", "-c", "import optiml_jax.train; import tasks", cwd=tmp_path)
    assert "No module named 'tasks'" in done.stderr
