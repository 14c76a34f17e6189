"""The documents, followed to the letter."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from optiml_jax import __version__
from tests.conftest import ROOT


def recipes(path: Path) -> None:
    """Two hundred records in the forms of docs/your_own_data.md."""
    foods = ["flour", "sugar", "butter", "milk", "salt", "rice", "beans", "cheese"]
    records = []
    for i in range(50):
        single, other = foods[i % 8], foods[(3 * i + 1) % 8]
        output = [
            {"role": "user", "content": f"I have {i} {single}."},
            {"role": "assistant", "content": f"Cook the {single}."},
        ]
        records += [
            {"instruction": "Name the first one.", "input": f"{i} {single} and {other}", "output": single},
            {
                "instruction": "Is it sweet?",
                "context": f"{i} spoons of {single}",
                "response": "yes" if i % 8 == 1 else "no",
            },
            {"prompt": f"How many are {i} {single} and one more?\nA:", "completion": f" {i + 1}"},
            {"messages": output},
        ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / document).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_a_benchmark_is_added_in_less_than_60_lines(tmp_path):
    for name in ("optiml_jax", "tasks", "tools", "gin"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for split, count in (("animals_train", 200), ("animals_dev", 20), ("things_test", 20)):
        lines = [
            f"It has {i % 9} legs and sings.\tbird\n" if i % 2 else f"It barks {i} times.\tdog\n" for i in range(count)
        ]
        path = tmp_path / "data" / "riddles" / f"{split}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))
    catalog, wordings, commands = blocks("adding_a_benchmark.md", "bash")
    benchmark, suite = blocks("adding_a_benchmark.md", "python")
    assert len("".join((catalog, wordings, benchmark, suite, commands)).splitlines()) < 60
    (tmp_path / "tasks" / "benchmarks" / "riddles.py").write_text(benchmark)
    (tmp_path / "tasks" / "suites" / "riddles.py").write_text(suite)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for command in (catalog, wordings, *commands.splitlines()):
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs/riddles/evaluation/riddles/results.json").read_text())
    requests = {name: task["examples"] for name, task in report["tasks"].items()}
    assert requests == {"riddles.animals": 20, "riddles.things": 20}
    assert report["levels"].keys() == {"held_out_task", "held_out_instances"}
    assert (tmp_path / "runs/riddles/evaluation/riddles/report.html").stat().st_size > 1000


@pytest.mark.slow
def test_your_own_data_goes_from_file_to_report(tmp_path):
    document = (ROOT / "docs" / "your_own_data.md").read_text(encoding="utf-8")
    commands = re.search(r"```bash\n(.*?)```", document, re.DOTALL)[1].splitlines()
    assert len(commands) == 4
    recipes(tmp_path / "recipes.jsonl")
    (tmp_path / "tasks").symlink_to(ROOT / "tasks")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in (tmp_path / "runs/recipes/metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 20 and "<title>" in (tmp_path / "recipes.html").read_text(encoding="utf-8")
    for folder in ("evaluation/jsonl", "again"):
        report = json.loads((tmp_path / "runs/recipes" / folder / "results.json").read_text())
        assert report["tasks"]["jsonl.recipes"]["examples"] == 20
        assert (tmp_path / "runs/recipes" / folder / "report.html").stat().st_size > 1000


def test_the_version_is_that_of_the_changelog_and_the_citation():
    newest, date = re.search(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).groups()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest == __version__ == citation["version"] and str(citation["date-released"]) == date
    forms = list((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3
    for form in forms:
        assert {"name", "description", "labels", "body"} == yaml.safe_load(form.read_text()).keys()


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    """Warnings of mkdocs are dead links, missing anchors, pages that are in no list, and unknown names."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path / 'site'}"]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert all(f'id="optiml_jax.inference.model.{name}"' in page for name in ("load_model", "Model.instruct"))
    for path in (tmp_path / "site").glob("*.html"):
        fetched = re.findall(
            r'<(?:link|script|img)[^>]*(?:href|src)="(https?:[^"]*)"', path.read_text(encoding="utf-8")
        )
        assert not fetched, (path, fetched)


def test_links_of_the_files_beside_it_lead_somewhere():
    for file in sorted(ROOT.glob("*.md")):
        for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", file.read_text(encoding="utf-8")):
            target = ROOT / link if link else file
            assert target.exists(), f"{file.name}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor[1:] in slugs, f"{file.name}: {link}{anchor}"
