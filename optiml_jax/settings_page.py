"""Lists every setting of training and evaluation: `--help_settings` prints the list, docs/settings.md holds it.

    python -m tools.write_settings_page

Names for the command line, their defaults and comments are read from gin/train.gin and gin/evaluate.gin, everything
else from the signatures and docstrings of what gin binds.
"""

import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from optiml_jax.common.errors import UserError, nearest


class Setting(NamedTuple):
    """A setting.

    Attributes:
      name: as on the command line, after `--gin.`.
      default: as a gin literal.
      sets: the parameter that a macro sets; empty for a parameter.
    """

    name: str
    default: str
    meaning: str
    sets: str = ""


class Section(NamedTuple):
    """Settings of one file or configurable, with a sentence on them."""

    title: str
    about: str
    settings: list[Setting]


def meanings(configurable: Callable[..., Any]) -> dict[str, str]:
    """Parameter -> its description in the docstring of a function, or of a class and those that it extends."""
    described: dict[str, str] = {}
    for owner in getattr(configurable, "__mro__", (configurable,)):
        section = re.search(r"^(?:Args|Attributes):\n((?:[ \n].*\n?)*)", inspect.cleandoc(owner.__doc__ or ""), re.M)
        for entry in re.split(r"\n(?=  \S)", "\n" + section[1] if section else ""):
            if names := re.match(r"\s*([\w, ]+): ", entry):
                text = " ".join(entry[names.end() :].split()).removesuffix(".")
                described = {name.strip(): text for name in names[1].split(",")} | described
    return described


class _Macro(NamedTuple):
    default: str
    comment: str


def macros(file: Path) -> tuple[dict[str, _Macro], dict[str, str]]:
    """Reads a gin file; returns its macros by name, and the name of the macro that sets each parameter."""
    by_name: dict[str, _Macro] = {}
    macro_of: dict[str, str] = {}
    last = None
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Z][A-Z_]*) = (.*?)(?:\s+# (.*))?$", line):
            last = match[1]
            by_name[last] = _Macro(match[2], match[3] or "")
        elif last and (more := re.match(r"\s+# (.*)", line)):
            by_name[last] = by_name[last]._replace(comment=f"{by_name[last].comment} {more[1]}".strip())
        else:
            last = None
            if match := re.match(r"([A-Za-z]+\.\w+) = %([A-Z_]+)$", line):
                macro_of[match[1]] = match[2]
    return by_name, macro_of


def _parameters(configurable: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Yields the parameters of a configurable with their defaults."""
    for name, parameter in inspect.signature(configurable).parameters.items():
        yield name, "required" if parameter.default is parameter.empty else repr(parameter.default)


def sections(configurables: Mapping[str, Callable[..., Any]], gin_files: Path) -> list[Section]:
    """Every setting: the macros of train.gin and evaluate.gin, then the parameters that none of them sets.

    Args:
      configurables: what gin may bind, by name.
      gin_files: the folder of the shipped files.
    """
    described = {
        f"{owner}.{name}": text
        for owner, configurable in configurables.items()
        for name, text in meanings(configurable).items()
    }
    listed: list[Section] = []
    macro_of: dict[str, str] = {}  # parameter -> the macro that sets it, in the files read so far
    names_so_far: set[str] = set()
    for file, about in (
        ("train.gin", "Names for `python -m optiml_jax.train`."),
        ("evaluate.gin", "Names for `python -m optiml_jax.evaluate`, and for the evaluation at the end of training."),
    ):
        file_macros, file_macro_of = macros(gin_files / file)
        rows = []
        for name, macro in file_macros.items():
            # train.gin, which is read first, also sets parameters by macros of evaluate.gin that it does not redefine.
            candidates = file_macro_of if name in names_so_far else macro_of | file_macro_of
            targets = [parameter for parameter, used in candidates.items() if used == name]
            text = macro.comment or next((described[target] for target in targets if target in described), "")
            rows.append(Setting(name, macro.default, text, ", ".join(targets)))
        listed.append(Section(file, about, rows))
        macro_of, names_so_far = macro_of | file_macro_of, names_so_far | file_macros.keys()
    for owner, configurable in configurables.items():
        if not isinstance(configurable, type):
            continue  # what functions take beside macros are these classes
        rows = [
            Setting(f"{owner}.{name}", default, described.get(f"{owner}.{name}", ""))
            for name, default in _parameters(configurable)
            if f"{owner}.{name}" not in macro_of
        ]
        if rows:
            listed.append(Section(owner, inspect.cleandoc(configurable.__doc__ or "").split("\n\n")[0], rows))
    return listed


def selected(everything: Iterable[Section], word: str) -> list[Section]:
    """The settings whose name has a word, or if there are none, those whose meaning has it.

    Raises:
      UserError: no setting has it.
    """
    everything = list(everything)
    for part in (lambda setting: setting.name + setting.sets, lambda setting: setting.meaning):
        reduced = [
            section._replace(settings=[item for item in section.settings if word.lower() in part(item).lower()])
            for section in everything
        ]
        if matching := [section for section in reduced if section.settings]:
            return matching
    names = [setting.name for section in everything for setting in section.settings]
    raise UserError(f"--help_settings={word}: no setting has it in its name or meaning{nearest(word.upper(), names)}")


def plain_text(everything: Iterable[Section], width: int | None = None) -> str:
    """The list for a terminal."""
    width = width or min(120, shutil.get_terminal_size((100, 24)).columns)
    lines = []
    for title, about, settings in everything:
        lines += [f"{title}: {about}", ""]
        for name, default, meaning, _ in settings:
            lines.append(f"  {name} = {default}")
            lines += textwrap.wrap(meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines).rstrip()


def markdown(everything: Iterable[Section]) -> str:
    """The content of docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "`--gin.NAME=VALUE` on the command line, or `NAME = VALUE` in a gin file that includes `train.gin` or",
        "`evaluate.gin`, sets any of these. VALUE is a Python literal; on the command line quotes may be left out",
        "where a text is expected. `python -m optiml_jax.train --help_settings` prints the same list, and",
        "`--help_settings=WORD` the settings that have a word in their name or meaning. The names in capitals are",
        "macros: names for the parameters that are set most often. This page is generated from the code.",
        "",
    ]
    for title, about, settings in everything:
        lines += [f"## {title}", "", about, ""]
        has_macros = any(setting.sets for setting in settings)
        lines += ["| name | default | meaning |" + (" sets |" if has_macros else "")]
        lines += ["|---|---|---|" + ("---|" if has_macros else "")]
        for name, default, meaning, sets in settings:
            cells = [f"`{name}`", f"`{default}`", _escaped(meaning)]
            lines.append(f"| {' | '.join([*cells, f'`{sets}`' if sets else ''][: 3 + has_macros])} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
