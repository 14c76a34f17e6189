"""The sound material that hostile inputs are made from."""

from pathlib import Path

import pytest

from tests.hostile.material import build


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Path:
    """A cache, a run, an evaluation and an export; to be copied before it is damaged."""
    return build(tmp_path_factory.mktemp("material"))
