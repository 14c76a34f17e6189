"""Paths as users write them, as settings and as flags of commands."""

from pathlib import Path

import pytest

from optiml_jax import gin_cli
from optiml_jax.common import paths
from optiml_jax.common.errors import UserError
from optiml_jax.common.tables import Parser


def test_home_and_variables_are_expanded_and_other_values_left_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    for path, want in {
        "~": "/home/me",
        "~/x/y": "/home/me/x/y",
        "$SCRATCH/x": "/scratch/me/x",
        "${SCRATCH}_2/x": "/scratch/me_2/x",
        "facebook/opt-125m": "facebook/opt-125m",
        "./a~b": "./a~b",
        None: None,
    }.items():
        assert paths.local("X", path) == want
    assert paths.local("X", Path("~/x")) == Path("~/x")
    for wrong in ("s3://b/x", "GS://b", "https://hub/x", "$NOT_SET/x", "~no.such.user/x"):
        with pytest.raises(UserError, match=r"^X: "):
            paths.local("X", wrong)


def test_flags_of_commands_are_expanded_after_the_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = Parser("command", "")
    for name in ("--data_dir", "--output", "--gin.MODEL_DIR"):
        parser.add_argument(name)
    flags = vars(parser.parse_args(["--data_dir=~/data", "--output", "~/out", "--gin.MODEL_DIR=~/kept"]))
    assert list(flags.values()) == ["/home/me/data", "/home/me/out", "~/kept"]
    with pytest.raises(UserError, match=r"--output: gs://b/x is not a local path"):
        parser.parse_args(["--output=gs://b/x"])


def test_a_text_needs_no_quotes_even_if_it_looks_like_a_number_or_is_a_list(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["--gin_file=tiny.gin", "--gin.MODEL_DIR=20261128", "--gin.DATA_DIR=True", "--gin.INIT_WEIGHTS=1.5"]
    settings = gin_cli.read_settings([*words, "--gin.TASKS=[sample007, samples.*]", "--gin.CACHE_DIR=~/cache"], "tests")
    assert (settings["model_dir"], settings["data"].data_dir, settings["init_weights"]) == ("20261128", "True", "1.5")
    assert settings["data"].tasks == ["sample007", "samples.*"] and settings["data"].cache_dir == "/home/me/cache"
    for value, want in (("sample.*", ["sample.*"]), ("a,b", ["a", "b"]), ("['a', 'b']", ["a", "b"]), ("None", None)):
        assert gin_cli.read_settings(["--gin_file=tiny.gin", f"--gin.TASKS={value}"], "tests")["data"].tasks == want
    with pytest.raises(UserError, match=r"--gin\.BATCH_ROWS=1e4x: is not a number"):
        gin_cli.read_settings(["--gin_file=tiny.gin", "--gin.BATCH_ROWS=1e4x"], "tests")
