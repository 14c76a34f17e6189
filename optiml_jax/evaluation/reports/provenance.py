"""Where a report comes from: when, by which command, of which state of the code, on what."""

import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax


def provenance(configuration: str = "") -> dict[str, str]:
    """What a report says of its making, by name.

    The date is that of SOURCE_DATE_EPOCH where it is set (reproducible-builds.org), so that equal evaluations can give
    equal bytes.

    Args:
      configuration: every value in force, as text.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = int(epoch) if epoch.isdecimal() else time.time()
    devices = jax.devices()
    made = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds)),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": commit(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "versions": f"jax {jax.__version__}, Python {platform.python_version()}",
        "configuration": configuration,
    }
    return {name: text for name, text in made.items() if text}


def commit() -> str:
    """The commit of the checkout that this package runs from, with " and changes" where files differ; else nothing."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else ""

    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():  # an installed package, perhaps inside somebody else's checkout
        return ""
    try:
        found = git("rev-parse", "HEAD")
        return found + " and changes" * bool(found and git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.TimeoutExpired):
        return ""
