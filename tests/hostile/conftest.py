"""The sound material that hostile inputs are made from."""

import os
from pathlib import Path

import filelock
import pytest

from tests.hostile.material import build


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Path:
    """A cache, a run, an evaluation and an export; to be copied before it is damaged. Workers share it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return build(tmp_path_factory.mktemp("material"))
    folder = tmp_path_factory.getbasetemp().parent / "material"
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            build(folder)
    return folder
