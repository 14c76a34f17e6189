"""The cache of compiled programs: where it is, who may change that, and that a second command reads it."""

import os
import re
import subprocess
import sys

import jax
import pytest

from optiml_jax.common.programs import cache_folder, use_cache
from optiml_jax.evaluation.prompts.ledger import write_ledger
from tests.conftest import ROOT
from tests.evaluation.small_model import prompt, small_model


def test_the_cache_is_in_the_users_cache_folder():
    assert str(cache_folder({"XDG_CACHE_HOME": "/x"})) == "/x/optiml_jax/programs"
    assert cache_folder({}) == cache_folder({"XDG_CACHE_HOME": ""})
    assert cache_folder({}).parts[-3:] == (".cache", "optiml_jax", "programs")


@pytest.fixture
def updates(monkeypatch):
    made = {}
    monkeypatch.setattr(jax.config, "update", made.__setitem__)
    return made


def test_jaxs_own_variable_and_a_folder_that_cannot_be_written_leave_the_settings_alone(updates, tmp_path):
    use_cache({"JAX_COMPILATION_CACHE_DIR": "/elsewhere", "XDG_CACHE_HOME": str(tmp_path / "unused")})
    (tmp_path / "file").touch()
    use_cache({"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert not updates and not (tmp_path / "unused").exists()
    use_cache({"XDG_CACHE_HOME": str(tmp_path / "home")})
    assert updates == {"jax_compilation_cache_dir": str(tmp_path / "home/optiml_jax/programs")}
    assert (tmp_path / "home/optiml_jax/programs").is_dir()


def test_a_second_command_reads_what_the_first_compiled_and_answers_the_same(tmp_path):
    small_model().save(str(tmp_path / "weights"))
    write_ledger(tmp_path / "ledger.jsonl", [prompt(n) for n in range(4)], {})
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    counts, answers = [], []
    for number in range(2):
        settings = {
            "WEIGHTS": tmp_path / "weights",
            "LEDGER": tmp_path / "ledger.jsonl",
            "OUTPUT_DIR": tmp_path / str(number),
        }
        words = [
            sys.executable,
            "-m",
            "optiml_jax.evaluate",
            "--gin_file=evaluate.gin",
            "--verbose",
            "--gin.DATA_AXIS=8",
        ]
        words += [f"--gin.{name}={value}" for name, value in settings.items()]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        line = re.search(r"programs  (\d+) in [\d.]+ s, (\d+) of them read from (.*)", done.stdout)
        assert len(re.findall("(?m)^program   ", done.stdout)) == int(line[1]) and line[3] == str(
            cache_folder(environment)
        )
        counts.append((int(line[1]), int(line[2])))
        answers.append((tmp_path / str(number) / "samples.jsonl").read_bytes())
    (total, before), (same, after) = counts
    assert total == same and before < total == after and answers[0] == answers[1]
