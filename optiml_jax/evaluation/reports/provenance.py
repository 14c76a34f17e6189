"""Provenance of a report: date, command, commit, devices, versions, configuration."""

import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax


def provenance(configuration: str = "") -> dict[str, str]:
    """Returns the provenance fields by name; fields without a value are left out.

    The date is SOURCE_DATE_EPOCH if it is set (reproducible-builds.org), so that equal evaluations can give equal
    bytes.

    Args:
      configuration: every value in force, as text.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = int(epoch) if epoch.isdecimal() else time.time()
    devices = jax.devices()
    fields = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds)),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": commit(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "versions": f"jax {jax.__version__}, Python {platform.python_version()}",
        "configuration": configuration,
    }
    return {name: text for name, text in fields.items() if text}


def commit() -> str:
    """The commit of this package's checkout, with " and changes" if files differ; empty outside a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else ""

    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():  # an installed package, which may lie inside another project's checkout
        return ""
    try:
        head = git("rev-parse", "HEAD")
        return head + " and changes" * bool(head and git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.TimeoutExpired):
        return ""
