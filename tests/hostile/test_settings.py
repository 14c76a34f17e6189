"""A value of the wrong type is refused in every setting, in the line that names it. The settings are those of the
dataclasses and functions that gin binds, not a list."""

import dataclasses
import functools
import json
import subprocess
import sys
import types
import typing

import pytest

from optiml_jax import gin_cli
from optiml_jax.common.errors import UserError
from optiml_jax.common.settings import check_arguments
from optiml_jax.data.settings import Data
from optiml_jax.model.config import OPTConfig
from tests.conftest import ROOT
from tests.test_train import environment

WRONG = {"x": [None]}, ["x", 3], True, "no number", -7, 0.5, 1e300, float("nan"), (), object
NEEDED = {OPTConfig: {"vocab_size": 64, "layers": 1, "model_dim": 8, "heads": 2, "ffn_dim": 16, "max_positions": 8}}
NEEDED |= {Data: {"mixture": "samples", "cache_dir": "cache"}}
CLASSES = {name: kind for name, kind in gin_cli.CONFIGURABLES.items() if dataclasses.is_dataclass(kind)}
FIELDS = [(name, field.name) for name, kind in CLASSES.items() for field in dataclasses.fields(kind)]
# Read by the mesh and by the evaluation, which check these numbers when they use them.
LATER = {"DATA_AXIS", "FSDP_AXIS", "TENSOR_AXIS", "LIMIT", "MAX_NEW_TOKENS", "EVALUATION_ROWS"}


def alternatives(kind):
    """The types that a setting may have."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_field_refuses_what_is_not_of_its_type(name, field):
    kind, refused = CLASSES[name], 0
    needed = NEEDED.get(kind) or {}
    for value in WRONG:
        try:
            made = getattr(kind(**needed | {field: value}), field)
        except UserError as error:
            refused += 1
            assert f"{name}.{field}" in str(error) or field in str(error), error
            assert "\n" not in str(error)
        else:
            annotation = typing.get_type_hints(kind)[field]
            expected = (
                typing.get_args(annotation) if typing.get_origin(annotation) not in (list, dict) else [annotation]
            )
            kinds = tuple(typing.get_origin(one) or one for one in expected or [annotation])
            assert isinstance(made, (*kinds, int) if float in kinds else (*kinds, tuple) if list in kinds else kinds)
    assert refused >= 4


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_every_argument_refuses_what_is_not_of_its_type(name):
    function = gin_cli.CONFIGURABLES[name]
    checked = check_arguments(functools.wraps(function)(lambda **arguments: arguments), name)
    numbers = {int, float, type(None)}
    for argument, kind in typing.get_type_hints(function).items():
        if argument == "return" or set(alternatives(kind)) <= numbers:  # the function checks its numbers
            continue
        with pytest.raises(UserError, match=rf"^{name}\.{argument} is "):
            checked(**{argument: {"x": [None]}})


@pytest.mark.parametrize(("where", "count"), [("once", 50), pytest.param("everywhere", 300, marks=pytest.mark.slow)])
def test_every_macro_of_every_shipped_file_refuses_what_is_not_of_its_type(where, count):
    words = [sys.executable, "-m", "tests.hostile.wrong_settings", where]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) > count
    for file, macro, outcome in outcomes:
        assert outcome is None or (outcome.startswith("error: ") and "Traceback" not in outcome), (file, macro, outcome)
        assert outcome is not None or macro in LATER, (file, macro)
