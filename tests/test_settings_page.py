"""The list of settings: complete, described, and with the defaults that a run has."""

import ast
import dataclasses

import gin
import pytest

from optiml_jax import gin_cli, settings_page
from optiml_jax.common.errors import UserError
from tests.commands import run_all
from tests.test_train import environment
from tools import write_settings_page


@pytest.fixture(scope="module")
def everything() -> list[settings_page.Section]:
    return settings_page.sections(gin_cli.CONFIGURABLES, gin_cli.SEARCH_PATH)


def test_the_page_is_that_of_the_code():
    page = write_settings_page.PAGE.read_text(encoding="utf-8")
    assert page == write_settings_page.text(), "write it again: python -m tools.write_settings_page"


def test_every_setting_is_listed_once_and_described(everything):
    settings = [setting for section in everything for setting in section.settings]
    assert [setting for setting in settings if not setting.meaning] == []
    set_or_listed = [name for setting in settings for name in (setting.sets or setting.name).split(", ")]
    for name, kind in gin_cli.CONFIGURABLES.items():
        if dataclasses.is_dataclass(kind):
            for field in dataclasses.fields(kind):
                assert f"{name}.{field.name}" in set_or_listed
    for owner in ("train", "evaluate"):
        hints = gin_cli.CONFIGURABLES[owner].__annotations__
        plain = {name for name, hint in hints.items() if hint in (str, int, bool, "str", str | None, int | None)}
        assert {f"{owner}.{name}" for name in plain - {"check_only", "return"}} <= set(set_or_listed)


@pytest.mark.parametrize(("file", "command"), [("train.gin", "train"), ("evaluate.gin", "evaluate")])
def test_defaults_are_those_that_gin_reads(everything, file, command):
    gin_cli.read_settings([f"--gin_file={file}"], "tests", command)
    (section,) = [section for section in everything if section.title == file]
    for setting in section.settings:
        value = gin.query_parameter(f"{setting.name}/macro.value")
        if setting.default.startswith("%"):
            assert str(value).removeprefix("@").removesuffix("/macro()") == setting.default
        else:
            assert value == ast.literal_eval(setting.default)


def test_defaults_of_parameters_are_those_of_the_classes(everything):
    for section in everything:
        kind = gin_cli.CONFIGURABLES.get(section.title)
        for setting in section.settings if kind else ():
            field = kind.__dataclass_fields__[setting.name.partition(".")[2]]
            assert ast.literal_eval(setting.default) == field.default


def test_words_select_by_name_and_else_by_meaning(everything):
    def names(word: str) -> list[str]:
        return [setting.name for section in settings_page.selected(everything, word) for setting in section.settings]

    assert names("warmup") == ["WARMUP_STEPS"] and names("Lora.alpha") == ["Lora.alpha"]
    assert names("rsLoRA") == ["Lora.rank_stabilized"]
    with pytest.raises(UserError, match="no setting has it in its name or meaning; did you mean LEARNING_RATE"):
        names("learning_rte")


def test_both_commands_print_the_list():
    commands = [("optiml_jax.train", ["--help_settings"]), ("optiml_jax.evaluate", ["--help_settings=warmup"])]
    commands.append(("optiml_jax.evaluate", ["--help_settings=zzz"]))
    done = run_all(commands, environment())
    assert [code for code, _ in done] == [0, 0, 2]
    assert done[2][1].startswith("error: --help_settings=zzz: no setting has it")


def test_the_text_fits_the_terminal(everything):
    text = settings_page.plain_text(everything, 80)
    assert max(map(len, text.splitlines())) <= 110  # a long default stands in one line
    assert "  LEARNING_RATE = 5e-5\n      the peak" in text
