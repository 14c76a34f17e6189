"""`all`: runs every benchmark in a separate process, within a time limit."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import jax

from optiml_jax.common.errors import UserError
from optiml_jax.common.tables import table
from tools.speed.rows import ROOT

# (name of the file, arguments), the most important first, because time may be short.
GPU_ROWS = "--row_length=2048 --precision=bf16 --quick"
GPU = (
    ("train_1.3b", f"train --model=1.3b --rows=8 {GPU_ROWS} --remat=dots --steps=4 --profile --no_torch_compile"),
    ("evaluate_1.3b", "evaluate --model=1.3b --precision=bf16 --prompts=64 --batch=64 --quick"),
    ("evaluate_125m", "evaluate --model=125m --precision=bf16 --prompts=64 --batch=64 --quick"),
    ("train_125m", f"train --model=125m --rows=16 {GPU_ROWS} --remat=dots --steps=4 --profile"),
    ("train_1.3b_32_rows", f"train --model=1.3b --rows=32 {GPU_ROWS} --remat=dots --steps=2 --profile --no_peer"),
    ("train_2.7b", f"train --model=2.7b --rows=16 {GPU_ROWS} --remat=dots --steps=2 --profile --no_peer"),
    ("train_6.7b", f"train --model=6.7b --rows=8 {GPU_ROWS} --remat=full --steps=2 --profile --no_peer"),
    ("attention_1.3b", f"attention --model=1.3b --rows=8 {GPU_ROWS}"),
    ("attention_2.7b", f"attention --model=2.7b --rows=8 {GPU_ROWS}"),
    ("attention_6.7b", f"attention --model=6.7b --rows=8 {GPU_ROWS}"),
    ("data", "data --parts=batches --quick --row_length=2048"),
)
CPU = (
    ("train_125m_512", "train --model=125m --rows=2 --row_length=512 --quick"),
    ("train_125m_1024", "train --model=125m --rows=2 --row_length=1024 --quick"),
    ("train_125m_2048", "train --model=125m --rows=1 --row_length=2048 --quick"),
    ("attention_125m", "attention --model=125m --rows=2 --row_length=2048 --quick"),
    ("data", "data --parts=batches --quick"),
    ("evaluate_125m", "evaluate --quick --prompts=32 --new=32"),
)


def run(flags: argparse.Namespace) -> None:
    """Writes `flags.out`/NAME.json for each part and prints its result."""
    out = Path(flags.out)
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * flags.minutes
    parts = [part for part in (CPU if jax.default_backend() == "cpu" else GPU) if flags.only in part[0]]
    if not parts:
        raise UserError(f"--only={flags.only} matches none of: {', '.join(name for name, _ in (*GPU, *CPU))}")
    lines = []
    for name, arguments in parts:
        started = time.monotonic()
        problem = _run_one(arguments.split(), out / f"{name}.json", end - started)
        seconds = f"{time.monotonic() - started:.0f}"
        if problem:
            lines.append([name, problem, *[None] * 4, seconds])
            continue
        results = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        for row in results["rows"]:
            mfu = row.get("ours_mfu")
            shown = [f"{row['ours']:,.1f} {row['unit']}", mfu and f"{mfu:.1%}", row["ratio"], results["quiet"]]
            lines.append([row["name"], *shown, row.get("exact"), seconds])
            seconds = ""
    print("\n" + table(["part", "ours", "MFU", "ratio", "quiet", "exact", "seconds"], lines))


def _run_one(arguments: list[str], path: Path, seconds: float) -> str | None:
    """Runs a part; returns None, or why there is no result."""
    if seconds < 20:
        return "left out: the time limit was reached"
    command = [sys.executable, "-m", "tools.benchmark", *arguments, f"--json={path}"]
    print(f"\n=== {path.stem}: python -m tools.benchmark {' '.join(arguments)}", flush=True)
    try:
        code = subprocess.run(command, cwd=ROOT, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return "stopped: the time limit was reached"
    return f"failed with exit code {code}: see its message above" if code else None
