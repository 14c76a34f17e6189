"""Headless Chromium for the tests of pages; where there is none they are skipped."""

import contextlib
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OFFLINE = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")


@functools.cache
def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _run(page: Path, *options: str) -> bytes:
    if not _chromium():
        pytest.skip("needs Chromium")
    with tempfile.TemporaryDirectory() as profile:
        words = [_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *OFFLINE, *options]
        words += [f"--user-data-dir={profile}", page.as_uri()]
        return subprocess.run(words, check=True, capture_output=True, timeout=120).stdout


def dom(page: Path) -> str:
    """The page's markup after its script ran."""
    return _run(page, "--dump-dom").decode()


@contextlib.contextmanager
def picture(page: Path, width: int, height: int) -> Iterator[Any]:
    """The page as it is drawn, a PIL image of width x height pixels."""
    image = pytest.importorskip("PIL.Image")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        _run(page, f"--window-size={width},{height}", "--hide-scrollbars", f"--screenshot={shot}")
        with image.open(shot) as drawn:
            assert drawn.size == (width, height)
            yield drawn


def colours(page: Path, width: int, height: int) -> dict[tuple[int, int, int], int]:
    """Counts the pixels of each colour of the page."""
    with picture(page, width, height) as drawn:
        return {colour: count for count, colour in drawn.convert("RGB").getcolors(1 << 24)}
