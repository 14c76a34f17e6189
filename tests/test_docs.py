"""The documents, followed to the letter."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def recipes(path: Path) -> None:
    """Two hundred records in the forms of docs/your_own_data.md."""
    foods = ["flour", "sugar", "butter", "milk", "salt", "rice", "beans", "cheese"]
    records = []
    for i in range(50):
        one, other = foods[i % 8], foods[(3 * i + 1) % 8]
        said = [{"role": "user", "content": f"I have {i} {one}."}, {"role": "assistant", "content": f"Cook the {one}."}]
        records += [
            {"instruction": "Name the first one.", "input": f"{i} {one} and {other}", "output": one},
            {
                "instruction": "Is it sweet?",
                "context": f"{i} spoons of {one}",
                "response": "yes" if i % 8 == 1 else "no",
            },
            {"prompt": f"How many are {i} {one} and one more?\nA:", "completion": f" {i + 1}"},
            {"messages": said},
        ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


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
    for folder in ("evaluation", "again"):
        found = json.loads((tmp_path / "runs/recipes" / folder / "results.json").read_text())
        assert found["tasks"]["jsonl.recipes"]["examples"] == 20
        assert (tmp_path / "runs/recipes" / folder / "report.html").stat().st_size > 1000
