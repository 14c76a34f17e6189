"""Many command lines in one process: starting one takes seconds, and a mistake is told of in milliseconds.

Run by itself it reads [[module, words], ...] as JSON and writes [[exit code, stderr], ...]. What the programs that it
starts say counts too.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # not from conftest, which changes the number of devices


def run_all(commands: list[tuple[str, list[str]]], environment: dict[str, str]) -> list[tuple[int, str]]:
    """Exit code and stderr of each (module, words), one after the other."""
    words = [sys.executable, "-m", "tests.commands"]
    done = subprocess.run(
        words, input=json.dumps(commands), cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return [tuple(result) for result in json.loads(done.stdout.splitlines()[-1])]


def _run(module: str, words: list[str]) -> tuple[int, str]:
    import gin

    gin.clear_config()
    sys.argv = [module, *words]
    saved_stderr = os.dup(2)
    with tempfile.TemporaryFile() as output:
        os.dup2(output.fileno(), 2)
        try:
            importlib.import_module(module).main()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stderr.flush()
            os.dup2(saved_stderr, 2)
            os.close(saved_stderr)
        output.seek(0)
        return code, output.read().decode()


if __name__ == "__main__":
    print("\n" + json.dumps([_run(*command) for command in json.load(sys.stdin)]))
