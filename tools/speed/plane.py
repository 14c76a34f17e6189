"""`data`: the data pipeline, compared with seqio: start, row fill, packing, resuming, caching, rendering of
templates."""

import argparse
import collections
import importlib.util
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from optiml_jax.common.errors import UserError
from optiml_jax.data.manifest import Manifest
from tools.speed import machine, synthetic
from tools.speed.figures import BATCH_ROWS, ROW_LENGTH

STEP = 1_000_000
DEMONSTRATIONS = (4, 2)  # shapes of the paper (4.8)
NI = "super_natural_instructions"
SHARED = synthetic.ROOT.parent / "shared"
QUICK_EXAMPLES = 300  # a task
PEER_EXAMPLES = 16_384
CACHED_TIMES = 8  # each instance of the sample and its variants; with only 100 per task, startup would dominate
RENDERED = 6_000  # rows of each template file, repeating its sample
PEER_RENDERED = 2_000  # rows that PromptSource's own code renders
PEER_TASKS = 24  # tokenised through tf.data


def compare(flags: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """Returns the rows of the requested parts, and lines that describe the measurement."""
    peer = not flags.no_peer and importlib.util.find_spec("seqio") is not None
    notes = [] if peer or flags.no_peer else ["seqio is not installed (pip install '.[tasks]'): no peer"]
    parts = flags.parts.split(",")
    rows = []
    with tempfile.TemporaryDirectory(dir=flags.scratch) as directory:
        folder = Path(directory)
        for part, measure in (("start", _start), ("pack", _pack), ("cache", _cache), ("render", _render)):
            if part in parts:
                result, message = measure(flags, folder, peer)
                rows += result
                notes += message
    return rows, notes


def child(what: str, *arguments: object) -> dict:
    """Runs `figures.py` in a fresh process; returns its result, with `seconds` from its start to its result."""
    command = [sys.executable, "-m", "tools.speed.figures", what, *map(str, arguments)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    start = time.perf_counter()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=synthetic.ROOT, env=environment, **pipes) as process:
        answer, complaints = process.communicate()
        seconds = time.perf_counter() - start
    if not answer:
        raise UserError(f"{what}: {(complaints.strip().splitlines() or ['no answer'])[-1]}")
    return json.loads(answer.splitlines()[-1]) | {"seconds": seconds}


def interleaved(rounds: int, sides: dict[str, Callable[[], dict]]) -> dict[str, dict]:
    """Runs all sides in turn, `rounds` times; returns the median of every figure, and all values as `..._all`."""
    result: dict[str, dict[str, list]] = {side: collections.defaultdict(list) for side in sides}
    with tqdm(total=rounds * len(sides), unit="run") as progress:
        for _ in range(rounds):
            for side, run in sides.items():
                progress.set_description(side)
                for name, value in run().items():
                    result[side][name].append(value)
                progress.update()
    return {
        side: {name: statistics.median(values) for name, values in figures.items()}
        | {f"{name}_all": values for name, values in figures.items()}
        for side, figures in result.items()
    }


def row(name: str, unit: str, ours: float, peer: float | None, goal: str, lower_is_better: bool, **more) -> dict:
    """`ratio`: speed of this project relative to the peer."""
    ratio = None if peer is None else (peer / ours if lower_is_better else ours / peer)
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "unit": unit, "goal": goal} | more


def _store(directory: Path, tasks: tuple[list, str], quick: bool, linked: bool = False) -> tuple[Path, str]:
    directory.mkdir()
    return synthetic.write_store(directory, tasks, QUICK_EXAMPLES if quick else None, linked)


def _start(flags: argparse.Namespace, folder: Path, peer: bool) -> tuple[list[dict], list[str]]:
    whole, note = _store(folder / "whole", synthetic.opt_iml_max(), flags.quick, linked=True)
    all_tasks = len(Manifest.read(whole).tasks)
    sides = {"ours": lambda: child("our_start", whole)}
    counts = (all_tasks,) if flags.full_peer else (flags.peer_tasks // 4, flags.peer_tasks)
    for count in counts if peer else ():
        manifest = synthetic.some_tasks(whole, count)
        sides[f"seqio {count}"] = lambda manifest=manifest: child("seqio_start", manifest)
    result = interleaved(flags.rounds, sides)
    ours, seconds, megabytes, notes = result["ours"], None, None, [note]
    if peer:
        few, many = (result[f"seqio {count}"] for count in (counts[0], counts[-1]))
        seconds, megabytes = many["seconds"], many["megabytes"]
        if not flags.full_peer:
            steps = (all_tasks - counts[1]) / (counts[1] - counts[0])
            seconds += steps * (many["seconds"] - few["seconds"])
            megabytes += steps * (many["megabytes"] - few["megabytes"])
            notes.append(
                f"seqio's start and memory are EXTRAPOLATED linearly to {all_tasks:,} tasks: measured "
                f"{few['seconds']:.1f} s, {few['megabytes']:,.0f} MB with {counts[0]} and {many['seconds']:.1f} s, "
                f"{many['megabytes']:,.0f} MB with {counts[1]} (--full_peer measures all)"
            )
    message = {"peer_extrapolated": peer and not flags.full_peer}
    title = f"{synthetic.WHOLE}, {all_tasks:,} tasks, process start to first batch"
    return [
        row(title, "s", ours["seconds"], seconds, "<= 3", True, runs=ours["seconds_all"], **message),
        row(f"{title}: memory", "MB", ours["megabytes"], megabytes, "<= 600", True, **message),
    ], notes


def _pack(flags: argparse.Namespace, folder: Path, peer: bool) -> tuple[list[dict], list[str]]:
    manifest, note = _store(folder / "store", synthetic.task_sizes(), flags.quick)
    blocks = 3 if flags.quick else 8
    sides = {"ours": lambda: child("our_rates", manifest, blocks)}
    sides |= {f"a = {a}": lambda a=a: child("our_rates", manifest, blocks, a) for a in DEMONSTRATIONS}
    if peer:
        sides["seqio"] = lambda: child("seqio_pack", manifest, PEER_EXAMPLES // (8 if flags.quick else 1))
    result = interleaved(flags.rounds, sides)
    ours, theirs = result["ours"], result.get("seqio", {})
    packed = theirs.get("packed_per_second")
    replay = packed and STEP * BATCH_ROWS * ROW_LENGTH / packed
    unit = "tokens/s, one process"
    notes = [
        note,
        f"rows of {ROW_LENGTH:,}, batches of {BATCH_ROWS}; first reading, possibly from the disk: "
        f"{ours['first_read_per_second'] / 1e6:.1f} million tokens/s",
    ]
    if peer:
        notes.append(f"seqio resumes by replaying: CALCULATED from its packing rate for {STEP:,} steps")
    with_demonstrations = [
        row(
            f"packing with demonstrations (Zipf, a = {a}), {what}; beside packing without",
            unit,
            result[f"a = {a}"][f"{name}_per_second"],
            ours[f"{name}_per_second"],
            ">= half of it",
            False,
            row_fill=result[f"a = {a}"]["row_fill"],
            same_bytes=all(result[f"a = {a}"]["same_bytes_all"]),
        )
        for a in DEMONSTRATIONS
        for name, what in (("planned", "planned"), ("emitted", "read and emitted"))
    ]
    return [
        row("row fill", "of a row", ours["row_fill"], theirs.get("row_fill"), ">= 0.998", False),
        row("packing, planned", unit, ours["planned_per_second"], packed, ">= 100 M", False),
        row("packing, read and emitted", unit, ours["emitted_per_second"], packed, ">= 25 M", False),
        row(
            f"restore at step {STEP:,}",
            "s",
            ours["restore_seconds"],
            replay,
            "< 0.1",
            True,
            same_bytes=all(ours["same_bytes_all"]),
        ),
        *with_demonstrations,
    ], notes


def _cache(flags: argparse.Namespace, folder: Path, peer: bool) -> tuple[list[dict], list[str]]:
    times = 1 if flags.quick else CACHED_TIMES
    raw = SHARED / "data" / NI
    if not raw.is_dir() or importlib.util.find_spec("apache_beam") is None:
        return [], [f"caching is not measured: needs apache_beam and the sample of {NI} in {raw}"]
    tokenizer = SHARED / "tokenizer"
    files = _varied(raw, folder / "raw" / NI, times)
    few = folder / "few" / NI / "tasks"
    few.mkdir(parents=True)
    shutil.copytree(raw / "splits", few.parent / "splits")
    trained = {f"{name}.json" for name in (raw / "splits/default/train_tasks.txt").read_text().split()}
    subset = [path for path in sorted((raw / "tasks").glob("*.json")) if path.name in trained][:: 4 * (1 + flags.quick)]
    for path in subset[:PEER_TASKS]:
        shutil.copy(path, few)

    sides = {"ours": lambda: _cached(NI, folder / "raw", folder / "cache", tokenizer)}
    if peer:
        sides["seqio through tf.data"] = lambda: child("seqio_tokenise", few.parents[1], tokenizer, NI)
    result = interleaved(flags.rounds, sides)
    ours, theirs = result["ours"], result.get("seqio through tf.data", {})
    notes = [
        f"caching: {files} files of {NI}, each instance and {times - 1} variants with its input's words in another "
        f"order, {ours['tokens']:,.0f} tokens"
    ]
    if theirs:
        notes[0] += f"; seqio: {PEER_TASKS} of its tasks at most, {theirs['tokens']:,.0f} tokens, without its start"
    cores = f"tokens/s, {machine.cores()} cores"
    rate = theirs.get("tokens_per_second")
    return [
        row("caching real text, end to end", cores, ours["tokens_per_second"], rate, ">= 1.0 M", False),
        row("store planned before it starts", "of its tokens", ours["planned_share"], None, "0.95 to 1.05", False),
    ], notes


def _cached(mixture: str, data_dir: Path, target: Path, tokenizer: Path) -> dict:
    """Runs the whole process, including planning."""
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "tools.cache_tasks", f"--mixture={mixture}", f"--data_dir={data_dir}"]
    command += [f"--cache_dir={target}", f"--tokenizer={tokenizer}"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=synthetic.ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"tools.cache_tasks: {done.stderr.strip().splitlines()[-1]}")
    tokens = sum(json.loads(path.read_text())["tokens"] for path in target.glob("tasks/*/*/train.json"))
    planned = int(done.stdout.split(" tokens")[0].split()[-1].replace(",", ""))
    return {"tokens_per_second": tokens / seconds, "tokens": tokens, "planned_share": planned / tokens}


def _render(flags: argparse.Namespace, folder: Path, peer: bool) -> tuple[list[dict], list[str]]:
    """Renders PromptSource's rows with its templates, end to end; the peer compiles the template for each example, as
    `promptsource.templates.Template.apply` does."""
    raw = SHARED / "data" / "promptsource"
    if not raw.is_dir() or importlib.util.find_spec("apache_beam") is None:
        return [], [f"rendering is not measured: needs apache_beam and the sample of promptsource in {raw}"]
    tokenizer, data_dir = SHARED / "tokenizer", folder / "templates"
    rows = _all_to_train_on(raw, data_dir / "promptsource", RENDERED // (10 if flags.quick else 1))
    sides = {"ours": lambda: _cached("promptsource", data_dir, folder / "rendered", tokenizer)}
    if not flags.no_peer:
        sides["promptsource"] = lambda: child("peer_render", data_dir, tokenizer, PEER_RENDERED)
    result = interleaved(flags.rounds, sides)
    ours, theirs = result["ours"], result.get("promptsource", {})
    note = f"rendering: {rows:,} rows of 13 template files, one prompt per row, {ours['tokens']:,.0f} tokens"
    if theirs:
        note += f"; promptsource's way: {PEER_RENDERED:,} of them, {theirs['tokens']:,.0f} tokens, without its start"
    cores, rate = f"tokens/s, {machine.cores()} cores", theirs.get("tokens_per_second")
    return [row("templates to tokens, end to end", cores, ours["tokens_per_second"], rate, ">= 0.3 M", False)], [note]


def _all_to_train_on(source: Path, target: Path, rows: int) -> int:
    """Writes a folder of PromptSource with `count` train rows per template file, repeating its sample; returns their
    number."""
    target.mkdir(parents=True)
    (target / "templates").symlink_to(source / "templates")
    count = 0
    for folder in sorted({path.parent for path in (source / "rows").rglob("*.jsonl")}):
        lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
        lines = list(itertools.islice(itertools.cycle(lines), rows))
        directory = target / "rows" / folder.relative_to(source / "rows")
        directory.mkdir(parents=True)
        (directory / "train.jsonl").write_text("\n".join(lines) + "\n")
        count += len(lines)
    return count


def _varied(source: Path, target: Path, times: int) -> int:
    """Copies a sample folder with variants of each instance, which have different texts and ids; returns the number of
    files."""
    rng = random.Random(0)

    def variant(instance: dict, copy: int) -> dict:
        words = instance["input"].split(" ")
        if copy:
            rng.shuffle(words)
        return instance | {"id": f"{instance.get('id')}-{copy}", "input": " ".join(words)}

    (target / "tasks").mkdir(parents=True)
    shutil.copytree(source / "splits", target / "splits")
    paths = sorted((source / "tasks").glob("*.json"))
    for path in paths:
        task = json.loads(path.read_text(encoding="utf-8"))
        task["Instances"] = [variant(instance, copy) for copy in range(times) for instance in task["Instances"]]
        (target / "tasks" / path.name).write_text(json.dumps(task), encoding="utf-8")
    return len(paths)
