"""Which settings a resumed run may have: those it was started with, in whatever version."""

import json
import re
from pathlib import Path

import pytest

from optiml_jax.checkpoints import runs
from optiml_jax.checkpoints.runs import INIT_WEIGHTS
from optiml_jax.common.errors import UserError
from optiml_jax.data.store import TokenStore
from optiml_jax.model.config import OPTConfig
from optiml_jax.training import settings as settings_module
from optiml_jax.training.settings import INIT_CONTENT, RunSettings, check_same_run, defaults
from tests.evaluation.small_model import small_model
from tests.training.test_hooks import cache, run  # noqa: F401

HERE = Path(__file__).parent
OLD = json.loads((HERE / "settings_of_041b8a4.json").read_text())  # a run of gin/tiny.gin, as that version saved it


@pytest.fixture
def now(monkeypatch) -> dict:
    """The settings of the same run in this version, and one that was added since."""
    monkeypatch.setattr(settings_module, "defaults", lambda: defaults() | {"Optimization.weight_decay": 0.0})
    current = {name: value for name, value in OLD["settings"].items() if not name.startswith("tokens of ")}
    current |= {f"tokens of {task}": "0123456789abcdef" for task in stored()}
    return current | {INIT_CONTENT: None, "Optimization.weight_decay": 0.0}


def stored() -> dict[str, str]:
    """Checksums of each task's files, as the earlier version saved them."""
    return {name[10:]: value for name, value in OLD["settings"].items() if name.startswith("tokens of ")}


def test_a_run_of_an_earlier_version_resumes(now, tmp_path):
    check_same_run(OLD["settings"], now, tmp_path, stored().__getitem__)
    assert OPTConfig(**OLD["model"]).layers == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Optimization.weight_decay": 0.1}, "Optimization.weight_decay = 0.0, now it is 0.1"),
        ({"Optimization.learning_rate": 1e-3}, "Optimization.learning_rate = 0.0008, now it is 0.001"),
        ({"tokens of samples.new": "f" * 16}, "tokens of samples.new = None, now it is"),
    ],
)
def test_what_differs_is_named(now, tmp_path, change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_same_run(OLD["settings"], now | change, tmp_path, stored().__getitem__)


def test_other_tokens_and_removed_settings_are_named(now, tmp_path):
    with pytest.raises(UserError, match=r"tokens of samples.sample001_hotel_review_sentiment = 584d68ad cdc39fc8"):
        check_same_run(OLD["settings"], now, tmp_path, lambda task: "00000000 00000000")
    with pytest.raises(UserError, match=r"Data.shuffle = 3, a setting that this version does not have"):
        check_same_run(now | {"Data.shuffle": 3}, now, tmp_path)


def test_initial_weights_may_move_and_not_change(now, tmp_path):
    before = now | {INIT_WEIGHTS: "weights/opt", INIT_CONTENT: "abc"}
    check_same_run(before, now | {INIT_WEIGHTS: "elsewhere/opt", INIT_CONTENT: "abc"}, tmp_path)
    check_same_run(before, now | {INIT_WEIGHTS: "weights/opt", INIT_CONTENT: None}, tmp_path)  # no longer needed
    for other in (
        {INIT_WEIGHTS: "elsewhere/opt", INIT_CONTENT: "def"},
        {INIT_WEIGHTS: "nowhere", INIT_CONTENT: None},
        {INIT_WEIGHTS: None},
    ):
        with pytest.raises(UserError, match=r"train.init_weights = weights/opt, now it is (elsewhere|nowhere|None)"):
            check_same_run(before, now | other, tmp_path)


def test_the_content_of_weights_is_that_of_their_files(tmp_path):
    model = small_model()
    for name in ("one", "two"):
        model.save(str(tmp_path / name))
    (tmp_path / "two" / "evaluation").mkdir()
    first, second = (runs.content(str(tmp_path / name)) for name in ("one", "two"))
    assert first == second and runs.content(None) is runs.content(str(tmp_path / "nowhere")) is None
    (weights,) = (tmp_path / "two").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert runs.content(str(tmp_path / "two")) != first
    assert runs.content("facebook/opt-125m") == "facebook/opt-125m"


def test_a_run_of_an_earlier_version_resumes_from_its_checkpoint(cache, tmp_path, monkeypatch):  # noqa: F811
    """The first run saves what that version saved: fewer settings, and checksums of its tokens' files."""
    fixed = RunSettings.fixed

    def as_earlier(self, tokenizer, manifest, init_content):
        saved = fixed(self, tokenizer, manifest, init_content)
        for name in (INIT_CONTENT, "Data.leading_eos", "OPTConfig.biases"):
            del saved[name]
        store = TokenStore(cache, manifest)
        return saved | {f"tokens of {task.name}": store.checksums(task.name) for task in manifest.tasks}

    def fail(step, params):
        raise RuntimeError("stopped")

    whole = run(cache, tmp_path / "whole", steps=6)
    monkeypatch.setattr(RunSettings, "fixed", as_earlier)
    with pytest.raises(RuntimeError, match="stopped"):
        run(cache, tmp_path / "run", steps=6, hooks=[(4, fail)])
    monkeypatch.setattr(RunSettings, "fixed", fixed)
    resumed = run(cache, tmp_path / "run", steps=6)
    assert resumed.step == 6 and resumed.metrics[-1]["loss"] == whole.metrics[-1]["loss"]
    assert [row["step"] for row in resumed.metrics] == [1, 2, 4, 6]
