"""A full disk, a small tmpfs, while each kind of file is written: one line, what was there before is intact, and the
same command goes on after there is room."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.hostile import material as sound
from tests.test_train import environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root can mount a small disk"),
]


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of two kilobytes, whose size `resize` changes."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2k", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def run(module: str, words: list) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)


def refused(done: subprocess.CompletedProcess) -> str:
    """The only line of the error."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "make room" in line
    return line


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Kind of output -> size of the disk on which it fails, the command, and a file that it writes when there is room.
COMMANDS = {
    "cache": ("300k", "tools.cache_tasks", lambda m, d: ["--mixture=samples", f"--cache_dir={d}/cache"], "store.json"),
    "export": (
        "100k",
        "tools.convert_weights",
        lambda m, d: [f"--source={m / sound.RUN}", f"--target={d}/export", "--to=hf"],
        "config.json",
    ),
    "answers": ("8k", "optiml_jax.evaluate", lambda m, d: sound.evaluation(m, d / "out"), "report.html"),
    "reports": ("60k", "optiml_jax.evaluate", lambda m, d: sound.evaluation(m, d / "out"), "report.html"),
    "comparison": (
        "20k",
        "tools.compare_runs",
        lambda m, d: [m / sound.EVALUATION, m / sound.EVALUATION, f"--output={d}/out"],
        "comparison.json",
    ),
    "page": (
        "20k",
        "tools.inspect_mixture",
        lambda m, d: ["--mixture=samples", f"--cache_dir={m / sound.CACHE}", f"--html={d}/page.html"],
        "page.html",
    ),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_full_disk_is_one_line_and_the_command_goes_on_when_there_is_room(kind, material, disk):
    size, module, words, last = COMMANDS[kind]
    resize(disk, size)
    refused(run(module, words(material, disk)))
    assert not [path for path in disk.rglob(last) if kind not in ("cache",)]
    resize(disk, "100m")
    done = run(module, words(material, disk))
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(disk.rglob(last)) and not list(disk.rglob("*.tmp")) and not list(disk.rglob("*.partial"))


def test_a_run_keeps_its_last_checkpoint_and_goes_on_from_it(material, disk):
    """The first checkpoint fits; the second does not."""
    whole = run("optiml_jax.train", sound.training(material, disk.parent / "whole", VALIDATE_EVERY=0))
    assert whole.returncode == 0, whole.stderr[-2000:]
    checkpoint_bytes = sum(map(len, files(disk.parent / "whole" / "checkpoints" / "2").values()))
    resize(disk, str(int(1.6 * checkpoint_bytes) + (100 << 10)))
    line = refused(run("optiml_jax.train", sound.training(material, disk / "run", VALIDATE_EVERY=0)))
    assert "that of step 2 is intact" in line
    before = files(disk / "run" / "checkpoints" / "2")
    resize(disk, "100m")
    done = run("optiml_jax.train", sound.training(material, disk / "run", VALIDATE_EVERY=0))
    assert done.returncode == 0 and "from step 2" in done.stdout, done.stderr[-2000:]
    assert files(disk / "run" / "checkpoints" / "2") == before
    logs = [
        [line.split(', "real_tokens"')[0] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (disk / "run", disk.parent / "whole")
    ]
    assert logs[0] == logs[1]
