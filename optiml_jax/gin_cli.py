"""t5x-style flags: --gin_file=F (repeatable), --gin.NAME=VALUE, --gin_search_paths=A,B. The only place that binds
gin."""

import ast
import dataclasses
import functools
import logging
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import gin

from optiml_jax import settings_page, weights
from optiml_jax.checkpoints.runs import is_run, read_run_config
from optiml_jax.common import distributed, paths, programs, xla_flags
from optiml_jax.common.errors import UserError, exit_on_user_error, named, nearest
from optiml_jax.common.settings import check_arguments
from optiml_jax.data.settings import Data
from optiml_jax.evaluation.run import evaluate
from optiml_jax.evaluation.validation import Validation
from optiml_jax.inference.placement import Axes
from optiml_jax.model.adapter import Lora
from optiml_jax.model.config import NOT_IN_WEIGHTS, OPTConfig
from optiml_jax.model.sharding import make_mesh
from optiml_jax.training.hooks import Logging
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.run import train
from optiml_jax.training.step import Computation

# Names that gin files may bind.
CONFIGURABLES: dict[str, Callable[..., Any]] = {
    "train": train,
    "evaluate": evaluate,
    "OPTConfig": OPTConfig,
    "Lora": Lora,
    "Optimization": Optimization,
    "Computation": Computation,
    "Data": Data,
    "Mesh": make_mesh,
    "Axes": Axes,
    "Logging": Logging,
    "Validation": Validation,
}
NOT_BOUND = {
    "train": ["hooks", "operative_config"],
    "evaluate": ["check_only", "operative_config"],
}  # passed by callers, not by gin files


def shipped_gin_files() -> Path:
    """The folder of the shipped gin files: the checkout's `gin`, or the copy inside an installed wheel.

    In an installed environment a sibling folder called `gin` is the gin library.
    """
    checkout = Path(__file__).resolve().parents[1] / "gin"
    return checkout if (checkout / "train.gin").is_file() else Path(__file__).parent / "gin_files"


VERBOSE = "--verbose"
SEARCH_PATH = shipped_gin_files()
USAGE = """usage: python -m {module} --gin_file=FILE [...] [--gin.NAME=VALUE ...] [--gin_search_paths=A,B] [--verbose]
       [--coordinator=HOST:PORT --processes=N --process_id=I]   (not needed under Slurm and Open MPI)

FILE is searched for here, in gin/ and in the search paths. NAME is a macro (MODEL_DIR) or a parameter (Data.eps); VALUE
is a Python literal. Where a string is expected, a bare word or path is accepted: --gin.MODEL_DIR=runs/tiny. --verbose
prints the programs that are compiled, and for how long. --help_settings lists every NAME with its default and meaning,
--help_settings=WORD those that have a word in either."""


@exit_on_user_error
def main(name: str) -> None:
    """The entry point `python -m optiml_jax.{name}`."""
    xla_flags.set_defaults(os.environ)
    programs.use_cache()
    arguments, processes = distributed.find_processes(sys.argv[1:], os.environ)
    verbose = VERBOSE in arguments
    bound = parse([argument for argument in arguments if argument != VERBOSE], f"optiml_jax.{name}")
    distributed.initialize(processes)
    compiled = programs.Programs() if verbose else None
    with distributed.failing_together():
        try:
            bound[name](operative_config=lambda: gin.operative_config_str(max_line_length=110))
        except TypeError as error:  # of the call of a configurable that lacks arguments
            raise _not_bound(error) or error from error
    if compiled:
        print(compiled)


def _not_bound(error: TypeError) -> UserError | None:
    """Names the parameters that no gin file binds; None for another error."""
    missing = re.match(r"(?:([\w.]+)\.)?(\w+)\(\) missing \d+ required [\w-]+ arguments?: (.*)", str(error))
    if not missing:
        return None
    owner = missing[1] if missing[2] == "__init__" else missing[2]
    names = ", ".join(f"{owner}.{name}" for name in re.findall(r"'(\w+)'", missing[3]))
    return UserError(f"no gin file sets {names}; start with a shipped one, such as --gin_file=tiny.gin, and add yours")


def read_settings(arguments: Sequence[str], module: str, command: str = "train") -> dict[str, Any]:
    """Returns the arguments of `train` that the gin files bind, without running anything or touching a device.

    The model has the shape of initial weights that are on this machine. The mesh is returned as its three axes (data,
    fsdp, tensor). Called, `evaluate_after` returns the arguments of the evaluation. Raises as `parse`.

    Args:
      command: "evaluate" for the arguments of `evaluate`.
    """
    gin.clear_config()
    replaced = {"train": _arguments_of(train), "evaluate": _arguments_of(evaluate), "Mesh": _axes}
    return parse(arguments, module, CONFIGURABLES | replaced, only_local=True)[command]()


@functools.cache
def _arguments_of(function: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A function that takes the arguments of another one and returns them."""

    @functools.wraps(function)
    def arguments_of(**arguments: Any) -> dict[str, Any]:
        return arguments

    arguments_of.__annotations__ = {name: kind for name, kind in function.__annotations__.items() if name != "mesh"}
    return arguments_of


def _axes(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: None = None) -> tuple[int, int, int]:
    """Replaces `make_mesh`; a run's config.gin binds its `devices` to None."""
    return data, fsdp, tensor


def parse(
    arguments: Sequence[str],
    module: str,
    configurables: Mapping[str, Callable[..., Any]] = CONFIGURABLES,
    only_local: bool = False,
) -> dict[str, Callable[..., Any]]:
    """Reads the gin files and bindings of a command line.

    Args:
      arguments: without the program's name.
      module: for the usage text.
      configurables: functions and classes that may be bound, by name.
      only_local: whether initial weights that are not here, such as those of the hub, are left alone; the model then
        has the shape that the gin files give it.

    Returns:
      The configurables with their parameters bound, by name.

    Raises:
      UserError: an unknown flag, file, name or parameter, or a macro that nothing uses; suggests near names.
      SystemExit: after printing the usage for --help.
    """
    files, bindings, search_paths = [], {}, [".", str(SEARCH_PATH)]
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if flag in ("--help", "-h"):
            print(USAGE.format(module=module))
            raise SystemExit(0)
        if flag == "--help_settings":
            everything = settings_page.sections(configurables, SEARCH_PATH)
            print(settings_page.plain_text(settings_page.selected(everything, value) if value else everything))
            raise SystemExit(0)
        if flag == "--gin_file" and value:
            files.append(value)
        elif flag == "--gin_search_paths" and value:
            search_paths += value.split(",")
        elif flag.startswith("--gin.") and value:
            bindings[flag.removeprefix("--gin.")] = value
        else:
            usage = ("--gin_file=FILE", "--gin.NAME=VALUE", "--gin_search_paths=A,B")
            raise UserError(f"{argument}: unknown flag or no value; use {', '.join(usage)}")
    if not files:
        shipped = ", ".join(sorted(path.name for path in SEARCH_PATH.glob("*.gin")))
        raise UserError(f"--gin_file is missing; for example --gin_file=tiny.gin (there are {shipped})")
    for file in files:
        if not any((Path(path) / file).is_file() for path in search_paths):
            shipped = (str(path.relative_to(SEARCH_PATH)) for path in SEARCH_PATH.rglob("*.gin"))
            raise UserError(f"--gin_file: {file} is not in {', '.join(search_paths)}{nearest(file, shipped)}")
        _check_text(next(path for path in (Path(folder) / file for folder in search_paths) if path.is_file()))
    for path in search_paths:
        gin.add_config_file_search_path(path)
    bound = {
        name: gin.external_configurable(_checked(function, name), name, denylist=NOT_BOUND.get(name))
        for name, function in configurables.items()
    }
    logging.getLogger().addFilter(_no_search_noise)
    try:
        gin.parse_config_files_and_bindings(files, [], finalize_config=False)
        gin.parse_config([f"{name} = {_quoted(name, value)}" for name, value in bindings.items()])
        _refuse_circles()
        _take_shape_from_weights(only_local)
        gin.finalize()
    except UserError:
        raise
    except Exception as error:  # gin raises ValueError, OSError, SyntaxError and its own classes, the reason first
        raise UserError(_one_line(error)) from error
    _refuse_unused_macros(bindings)
    return bound


def _check_text(file: Path) -> None:
    """Refuses a file that is no text, of which gin would not say the name."""
    try:
        if "\0" in file.read_text(encoding="utf-8"):
            raise UserError(f"--gin_file: {file}: has a NUL character; write it again as text")
    except UnicodeDecodeError as error:
        raise UserError(f"--gin_file: {file}: is not UTF-8 (byte {error.start}); write it again as text") from None


@functools.cache  # gin refuses another object of the same name
def _checked(configurable: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function that checks the types of its arguments; classes check their own. An error of a path becomes a
    `UserError` within it, because the copy that gin raises of an exception has lost the name of its file."""
    return configurable if isinstance(configurable, type) else named(check_arguments(configurable, name))


def _take_shape_from_weights(only_local: bool) -> None:
    """Binds the fields of OPTConfig that nothing sets to those of the initial weights, if there are any."""
    source = paths.local("INIT_WEIGHTS", _bound("train.init_weights"))
    fields = [field.name for field in dataclasses.fields(OPTConfig) if field.name not in NOT_IN_WEIGHTS]
    unset = [name for name in fields if _bound(f"OPTConfig.{name}") is None]
    if not isinstance(source, str) or not unset or (only_local and not Path(source).exists()):
        return
    config = read_run_config(source)[0] if is_run(source) else weights.read_config(source)
    for name in unset:
        gin.bind_parameter(f"OPTConfig.{name}", getattr(config, name))


def _bound(name: str) -> Any:
    """The value of a parameter, through macros; None if it has none."""
    try:
        value = gin.query_parameter(name)
        while isinstance(value, gin.config.ConfigurableReference) and str(value).startswith("%"):
            value = gin.query_parameter(str(value))
    except ValueError:
        return None
    return value


def _no_search_noise(record: logging.LogRecord) -> bool:
    """Drops gin's log of each search path that lacks a file which it then finds in the next."""
    return not record.getMessage().startswith("Path not found:")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    missing = re.match(r"No configurable matching '([\w.]+)'", text)
    if missing:
        return f"gin: no configurable {missing[1]!r}{nearest(missing[1], CONFIGURABLES)}"
    parameter = re.search(r"Configurable '?([\w.]+)'? doesn't have a parameter named '(\w+)'", text)
    if parameter:
        owner = CONFIGURABLES.get(parameter[1].split(".")[-1])
        names = getattr(owner, "__dataclass_fields__", None) or owner.__code__.co_varnames if owner else ()
        return f"gin: {parameter[1]} has no parameter {parameter[2]!r}{nearest(parameter[2], names)}"
    text = re.sub(r"malformed node or string[^:]*: <[^>]*>", "not a Python literal", text)
    return f"gin: {text}"


def _quoted(name: str, value: str) -> str:
    """Returns a command-line value as a gin literal. Where a text is expected, quotes may be left out, also in lists,
    and what looks like a number is text.

    Raises:
      UserError: the value is not a Python literal and no text is expected, or its quotes do not match.
    """
    kinds = set().union(*(_kinds(*use) for use in _uses(name)))
    is_text, is_list = str in kinds, list[str] in kinds or Sequence[str] in kinds
    if value[0] in "@%({":  # gin's references, and collections that may hold some
        return value
    try:
        literal = ast.literal_eval(value)
        only_text = is_text and not kinds & {int, float, bool}
        return repr(value) if only_text and isinstance(literal, int | float) else value
    except (ValueError, SyntaxError):
        pass
    if is_list and not set(value) & set("@%"):
        inner = value[1:-1] if value[0] == "[" and value[-1] == "]" else value
        words = [word.strip().strip("'\"") for word in inner.split(",") if word.strip()]
        if words and not any(set(word) & set("'\"[]") for word in words):
            return repr(words)
    if value[0] == "[":
        return value
    if not set(value) & set("'\"") and is_text:
        return repr(value)
    if kinds & {int, float} and not kinds & {str, list[str]}:
        raise UserError(f"--gin.{name}={value}: is not a number")
    raise UserError(f"--gin.{name}={value}: needs quotes: --gin.{name}=\"'...'\"; numbers, True, False and None do not")


def _uses(name: str) -> Iterator[tuple[str, str]]:
    """The (owner, parameter) pairs that a macro or parameter sets, following macros that refer to macros."""
    if "." in name:
        yield tuple(name.split("/")[-1].rsplit(".", 1))
        return
    for target in re.findall(rf"^([\w./]+) = %{name}$", gin.config_str(max_line_length=10_000), re.MULTILINE):
        yield from _uses(target)


def _kinds(owner: str, parameter: str) -> set[Any]:
    """The types that a parameter may have."""
    function = CONFIGURABLES.get(owner.split(".")[-1])
    kind = typing.get_type_hints(function).get(parameter) if function else None
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return set(typing.get_args(kind)) if union else {kind}


def _refuse_circles() -> None:
    """Refuses macros that refer to each other in a circle, which gin would follow forever."""
    config = gin.config_str(max_line_length=10_000)
    values = re.findall(r"^(\w+) = (.*)$", config, re.MULTILINE)
    try:
        TopologicalSorter({name: re.findall(r"%(\w+)", value) for name, value in values}).prepare()
    except CycleError as error:
        raise UserError(f"gin: macros refer to each other in a circle: {' -> '.join(error.args[1])}") from None


def _refuse_unused_macros(bindings: Iterable[str]) -> None:
    """Refuses a macro on the command line that no file refers to, which gin would silently accept."""
    config = gin.config_str(max_line_length=10_000)
    used = set(re.findall(r"%([A-Z_][A-Z0-9_]*)", config))
    for name in bindings:
        if re.fullmatch(r"[A-Za-z_]\w*", name) and name not in used:
            raise UserError(f"--gin.{name}: no gin file uses a macro of that name{nearest(name, used)}")
