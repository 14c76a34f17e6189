"""The notebooks run from top to bottom, and what is committed of them is what a run shows."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook) -> list[int]:
    """Returns the number of pictures of every code cell."""
    return [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in cells(notebook)]


def test_there_are_those_that_the_readme_names():
    assert NOTEBOOKS == ["evaluate", "experiments", "mixture", "plan", "tune"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_committed_notebook_was_run_whole_and_shows_no_error(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert [cell.execution_count for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    outputs = [output for cell in cells(notebook) for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs) and sum(pictures(notebook)) >= 4
    text = "".join(str(output) for output in outputs)
    assert "Traceback" not in text and str(Path.home()) not in text and str(ROOT) not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    """In an empty folder, by its own commands; where the committed one has pictures, so has this."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XLA_FLAGS", "")
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    expected = pictures(notebook)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert pictures(notebook) == expected
