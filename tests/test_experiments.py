"""The paper's experiments as shipped: what every member sets, and three steps of each over real rows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optiml_jax import gin_cli
from optiml_jax.data.block_plan import mean_positions, rates
from optiml_jax.data.demonstrations import distribution
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.sampling import shares
from optiml_jax.data.store import TokenStore
from optiml_jax.data.subset import selected
from optiml_jax.training.token_store import open_store
from tasks.benchmarks.samples import TOKENIZER
from tasks.paper import numbers
from tests.conftest import ROOT
from tests.stores import only_manifest
from tests.test_opt_iml import SMALL, data_dir  # noqa: F401
from tests.test_train import environment, losses
from tools import cache_tasks, paper_tables
from tools.sweep import members, state
from tools.sweep.members import Member

SWEEPS = sorted(  # of the paper
    path.parent.name
    for path in gin_cli.SEARCH_PATH.glob("experiments/*/sweep.toml")
    if not path.parent.name.startswith("small")
)
MEMBERS = [path for name in SWEEPS for path in sorted(gin_cli.SEARCH_PATH.glob(f"experiments/{name}/*.gin"))]
INSTRUCTIONS = ("crossfit", "exmix", "flan", "super_natural_instructions", "promptsource", "t5", "unifiedskg")
SHORT = {"metaicl", "tasks", "categories", "attention"}  # 2,000 steps


def loaded(name: str) -> members.Sweep:
    return members.load([f"experiments/{name}"])[0]


def trained() -> list[Member]:
    """Every run that trains, once."""
    runs = [run for name in SWEEPS for run in members.runs(loaded(name), Path("runs"), [1], [])]
    return list({run.folder: run for run in runs if run.command == "train"}.values())


def expected(sweep: str, member: str) -> dict:
    """What a member sets, from the row of the paper's table."""
    row = loaded(sweep).rows.get(member, "")
    if sweep == "eps":
        base, power = map(int, row.split("^"))
        return {"eps": base**power}
    if sweep == "proportions":
        return {"proportions": dict(zip(INSTRUCTIONS, map(int, row.split("/"))))}
    if sweep == "dialogue":
        original = dict(zip(INSTRUCTIONS, (2, 1, 5, 71, 18, 1, 2)))
        if member == "baseline":
            return {"proportions": original}
        return {"proportions": original | {"dialogue": 0.5025}, "mixture": "opt_iml+dialogue"}
    if sweep == "metaicl" and (match := re.fullmatch(r"Zipf a=(\d)( sf\.)?", row)):
        return {"demonstrations": int(match[1])} | ({"objective": "suffix"} if match[2] else {})
    if sweep in ("tasks", "categories"):
        return {f"scale_{sweep}": int(row)}
    if sweep == "pretraining":
        return {"token_shares": {"pretrain_text": int(row) / 100}}
    if sweep == "reasoning":
        share = {} if row == "Baseline" else {"reasoning": int(row[0])}
        parts = dict(zip(INSTRUCTIONS, (2, 1, 27, 40 - share.get("reasoning", 0), 27, 1, 2)))
        return {"proportions": parts | share}
    if sweep == "attention":
        return {"document_attention": False}
    assert (sweep, member) == ("metaicl", "baseline")
    return {}


@pytest.mark.parametrize("run", trained(), ids=lambda run: f"{run.sweep}/{run.name}")
def test_a_member_differs_from_the_others_by_what_its_row_says(run):
    sweep, member = run.folder.parts[1:3]
    settings = state.settings(run)
    data, wanted = settings["data"], expected(sweep, member)
    common = {"mixture": "opt_iml", "eps": 4096, "proportions": "natural", "token_shares": None}
    common |= {"demonstrations": None, "objective": "label", "scale_tasks": None, "scale_categories": None}
    common |= {"document_attention": True, "max_demonstrations": 5, "demonstration_separator": "\n\n\n"}
    for name, value in (common | wanted).items():
        assert getattr(data, name) == value, name
    extra = {"dialogue": "dialogue", "reasoning": "reasoning", "pretraining": "pretrain_text"}.get(sweep)
    drawn = {*INSTRUCTIONS} | ({extra} if extra and member not in ("baseline", "0") else set())
    assert {pattern.removesuffix(".*") for pattern in data.tasks} == drawn
    assert settings["optimization"].train_steps == (2_000 if sweep in SHORT else 4_000)
    assert (data.batch_rows, data.row_length, settings["optimization"].learning_rate) == (256, 2_048, 5e-5)
    assert settings["model"].layers == 48 and settings["evaluate_after"]["suite"] == "validation"


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_has_every_row_of_its_table(name):
    sweep = loaded(name)
    if sweep.table:
        assert sorted(sweep.rows.values()) == sorted(numbers.printed(sweep.table))
        assert list(sweep.rows.values()) == list(numbers.printed(sweep.table))  # in its order
    assert sweep.baseline in sweep.members


@pytest.mark.parametrize(
    "path",
    [path for path in MEMBERS if path.parent.name != "separators"],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_a_member_opens_with_its_command_the_papers_numbers_and_the_time(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    sweep, member = path.parent.name, path.stem
    assert f"python -m tools.run_sweep experiments/{sweep} --members={member}" in lines[1]
    assert re.search(r"7\.[23] h|14\.5 h", lines[3])
    table, row = loaded(sweep).table, loaded(sweep).rows.get(member)
    if table:
        assert lines[0].startswith(f"# Table {table}, ")
        stated = [float(text) for text in re.findall(r"\d+\.\d", lines[2])]
        cells = numbers.printed(table)[row].cells
        means = [np.mean([value for (_, k), value in cells.items() if k == shots]) for shots in ("0", "5")]
        assert stated == pytest.approx(means, abs=0.0501)


def settings_of_a_small_run(folder: Path, cache: Path, steps: int) -> list[str]:
    settings = SMALL | {
        "TRAIN_STEPS": steps,
        "CACHE_DIR": str(cache),
        "TOKENIZER": str(TOKENIZER),
        "MODEL_DIR": str(folder),
    }
    return [f"--gin.{name}={value!r}" for name, value in settings.items()]


@pytest.fixture(scope="module")
def cached(data_dir, shared, tmp_path_factory) -> Path:  # noqa: F811
    """`opt_iml` with dialogues over real rows, and the two validation suites."""
    (data_dir / "dialogue").symlink_to(shared / "data" / "dialogue")
    (data_dir / "mmlu").symlink_to(shared / "data" / "mmlu")
    cache = tmp_path_factory.mktemp("cache")
    flags = [f"--data_dir={data_dir}", f"--cache_dir={cache}", f"--tokenizer={TOKENIZER}"]
    for mixture in ("opt_iml", "opt_iml+dialogue"):
        cache_tasks.main([f"--mixture={mixture}", *flags])
    cache_tasks.main(["--suite=validation,validation_table_20", *flags, "--missing_benchmarks=leave_out"])
    return cache


@pytest.mark.slow
def test_every_member_trains_on_real_rows_with_the_probabilities_of_the_paper(cached, tmp_path):
    """Three steps of a tiny model each. Numbers of tasks are those of the paper where the samples have as many."""
    counts = available_counts(cached)
    for run in trained():
        sweep, member = run.folder.parts[1:3]
        words = [word for word in run.words if not word.startswith("--gin.MODEL_DIR")]
        folder = tmp_path / sweep / member
        words += [*settings_of_a_small_run(folder, cached, 3), "--gin.train.evaluate_after=None"]
        for setting, available in counts.items():
            if expected(sweep, member).get(setting, 0) > available:
                words.append(f"--gin.{setting.upper()}={available}")
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env=environment(), check=False
        )
        assert done.returncode == 0, (run.title, done.stderr[-1500:])
        assert len(losses(folder)) == 3 and np.isfinite(losses(folder)).all()
        check_probabilities(sweep, member, words[2:])


def available_counts(cache: Path) -> dict[str, int]:
    """Numbers of tasks and categories of the samples from which the experiments draw."""
    tasks = [task for task in Manifest.read(only_manifest(cache, "opt_iml")).tasks if task.benchmark in INSTRUCTIONS]
    return {"scale_tasks": len(tasks), "scale_categories": len({task.category for task in tasks})}


def check_probabilities(sweep: str, member: str, arguments: list[str]) -> None:
    data = gin_cli.read_settings(arguments, "tests")["data"]
    store: TokenStore = open_store(data)
    manifest: Manifest = selected(store.manifest, data)
    by_task = rates(store, manifest, data)
    by_benchmark = shares(by_task, manifest.tasks)
    wanted = expected(sweep, member)
    capped = {task.name: min(task.examples, data.eps) for task in manifest.tasks}
    if parts := wanted.get("proportions"):
        total = sum(parts.values())
        assert {name: share for name, share in by_benchmark.items() if share} == pytest.approx(
            {name: part / total for name, part in parts.items() if part}, abs=1e-9
        )
        if sweep == "dialogue" and member == "dialogue":
            assert by_benchmark["dialogue"] == pytest.approx(0.005, abs=1e-6)
    else:
        total = sum(capped[task.name] for task in manifest.tasks if task.benchmark != "pretrain_text")
        rest = 1 - by_benchmark.get("pretrain_text", 0.0)
        natural = {name: rest * count / total for name, count in capped.items() if not name.startswith("pretrain_text")}
        assert {name: by_task[name] for name in natural} == pytest.approx(natural, rel=1e-6)
    if token_shares := wanted.get("token_shares"):
        positions = mean_positions(store, data, by_task)
        taken = shares({name: rate * positions[name] for name, rate in by_task.items()}, manifest.tasks)
        share = taken["pretrain_text"] / sum(taken.values())
        assert share == pytest.approx(token_shares["pretrain_text"], abs=1e-6)
    if sweep == "tasks":
        assert len(manifest.tasks) == data.scale_tasks
    if sweep == "categories":
        assert len({task.category for task in manifest.tasks}) == data.scale_categories
    if data.demonstrations:
        stated = {4: 0.925, 2: 0.671}[data.demonstrations]  # section 4.8
        assert distribution(data.demonstrations, data.max_demonstrations, data.demonstration_cap)[0] == pytest.approx(
            stated, abs=5e-4
        )


@pytest.mark.slow
def test_from_a_sweep_on_real_rows_to_its_tables(cached, tmp_path, capsys):
    """Table 8 and, of the same models, Table 20, with a prompt of each task of the validation suites."""
    names = ["--members=baseline,zipf_2_suffix", f"--output={tmp_path}"]
    common = [f"--gin.CACHE_DIR={str(cached)!r}", "--gin.LIMIT=1", "--gin.MAX_NEW_TOKENS=4"]
    small = [word for word in settings_of_a_small_run(tmp_path, cached, 3) if "MODEL_DIR" not in word]
    words = [sys.executable, "-m", "tools.run_sweep"]
    for sweep, more in (("metaicl", small), ("separators", [])):
        done = subprocess.run(
            [*words, f"experiments/{sweep}", *names, *common, *more],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(),
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr[-1500:]
    for table, sweep in ((8, "metaicl"), (20, "separators")):
        capsys.readouterr()
        paper_tables.main([f"--table={table}", f"--runs={tmp_path / sweep}"])
        printed = capsys.readouterr().out
        assert "Zipf a=2 sf." in printed and re.search(r"ours +\d", printed) and "difference" in printed
    record = json.loads((tmp_path / "separators" / "sweep.json").read_text())
    assert set(record["runs"]) == {"baseline", "zipf_2_suffix"}
