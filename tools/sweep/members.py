"""What a sweep consists of: a folder of gin files, one per member, and a `sweep.toml` that says what they compare."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optiml_jax import gin_cli
from optiml_jax.common.errors import DataError, UserError, nearest

DESCRIPTION = "sweep.toml"


@dataclass(frozen=True)
class Sweep:
    """Members to compare.

    Attributes:
      members: name -> its gin file as `--gin_file` takes it, in the order of the paper's table.
      table: the paper's table that shows them, if there is one.
      rows: member -> row of the table.
      baseline: the member with which the others are compared.
      same_as: member -> "SWEEP/MEMBER", the run of another sweep that it is; runs that two sweeps need exist once.
      weights: the sweep whose models the members evaluate, each the model of its own name; None: members are trained.
    """

    name: str
    members: Mapping[str, str]
    title: str = ""
    table: int | None = None
    rows: Mapping[str, str] = field(default_factory=dict)
    baseline: str | None = None
    same_as: Mapping[str, str] = field(default_factory=dict)
    weights: str | None = None

    @property
    def command(self) -> str:
        """The command that runs a member: "train" or "evaluate"."""
        return "evaluate" if self.weights else "train"


@dataclass(frozen=True)
class Member:
    """A run of a sweep: a member with a seed.

    Attributes:
      folder: the MODEL_DIR of its training, or the OUTPUT_DIR of its evaluation.
      arguments: of the command line.
    """

    sweep: str
    name: str
    seed: int
    folder: Path
    command: str
    arguments: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.name} seed {self.seed}"

    @property
    def words(self) -> list[str]:
        """The command line after "python"."""
        return ["-m", f"optiml_jax.{self.command}", *self.arguments]


def load(paths: Sequence[str], name: str = "sweep") -> list[Sweep]:
    """Reads sweeps: each folder is one, and gin files together are one of the given name.

    Folders are searched for here and among the shipped gin files.

    Raises:
      UserError: there is no such folder or file, or a folder has no member.
      DataError: a sweep.toml is not valid.
    """
    sweeps, files = [], {}
    for path in paths:
        if path.endswith(".gin"):
            stem = Path(path).stem
            if stem in files:
                raise UserError(f"{path}: there is another member {stem}; give the files different names")
            files[stem] = path
        else:
            sweeps.append(_read(_find(path)))
    return [*sweeps, *([Sweep(name, files)] if files else [])]


def _find(path: str) -> Path:
    places = [Path(path), gin_cli.SEARCH_PATH / path]
    for place in places:
        if place.is_dir():
            return place
    shipped = [str(file.parent.relative_to(gin_cli.SEARCH_PATH)) for file in gin_cli.SEARCH_PATH.rglob(DESCRIPTION)]
    raise UserError(f"{path}: no such folder here or in {gin_cli.SEARCH_PATH}{nearest(path, shipped)}")


def _read(folder: Path) -> Sweep:
    files = {path.stem: _gin_name(path) for path in sorted(folder.glob("*.gin"), key=_natural)}
    path = folder / DESCRIPTION
    about = {}
    if path.exists():
        try:
            about = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from None
    if unknown := about.keys() - _KEYS.keys():
        raise DataError(f"{path}: unknown {', '.join(sorted(unknown))}; known are {', '.join(_KEYS)}")
    for key, kind in _KEYS.items():
        if key in about and not isinstance(about[key], kind):
            raise DataError(f"{path}: {key} is {about[key]!r}, not {kind.__name__}")
    for member, other in about.get("same_as", {}).items():
        file = folder.parent / f"{other}.gin"
        if not file.is_file():
            raise DataError(f"{path}: same_as.{member} is {other}, but there is no {file}")
        files[member] = _gin_name(file)
    order = (*about.pop("order", ()), *about.get("rows", {}))
    for member in (*order, *filter(None, [about.get("baseline")])):
        if member not in files:
            raise DataError(f"{path}: {member} has no {member}.gin beside it{nearest(member, files)}")
    if inner := sorted(path.parent.name for path in folder.glob(f"*/{DESCRIPTION}")):
        raise UserError(f"{folder}: is a folder of sweeps; choose of {', '.join(inner)}")
    if not files:
        raise UserError(f"{folder}: has no .gin file; a sweep is a folder with one per member")
    ordered = {member: files[member] for member in (*order, *(file for file in files if file not in order))}
    return Sweep(folder.name, ordered, **about)


def _gin_name(path: Path) -> str:
    """A file as --gin_file takes it; of a shipped one its name on the search path, which other machines have too."""
    return str(path.relative_to(gin_cli.SEARCH_PATH) if path.is_relative_to(gin_cli.SEARCH_PATH) else path)


_KEYS = {"title": str, "order": list, "table": int, "rows": dict, "baseline": str, "same_as": dict, "weights": str}


def _natural(path: Path) -> list:
    """Sorts numbers in names by their values."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.stem)]


def runs(sweep: Sweep, output: Path, seeds: Sequence[int], extra: Sequence[str]) -> list[Member]:
    """The runs of a sweep: every member with the first seed, then with the second, and so on.

    Args:
      output: folder of all sweeps; a run goes to OUTPUT/SWEEP/MEMBER/seedN, with the names of `same_as` if it is there.
      extra: arguments of all members, after those of each.
    """
    members = []
    for seed in seeds:
        for name, file in sweep.members.items():
            folder = output / sweep.same_as.get(name, f"{sweep.name}/{name}") / f"seed{seed}"
            arguments = [f"--gin_file={file}", *(word for word in extra if word.startswith("--gin_file="))]
            if sweep.weights:
                weights = output / sweep.weights / name / f"seed{seed}"
                arguments += [f"--gin.WEIGHTS={_literal(weights)}", f"--gin.OUTPUT_DIR={_literal(folder)}"]
            else:
                arguments += [f"--gin.MODEL_DIR={_literal(folder)}", f"--gin.SEED={seed}"]
            arguments += [word for word in extra if not word.startswith("--gin_file=")]
            members.append(Member(sweep.name, name, seed, folder, sweep.command, tuple(arguments)))
    return members


def _literal(path: Path) -> str:
    """A path as a value of the command line; one with unusual characters needs Python's quotes."""
    return str(path) if re.fullmatch(r"[\w./:+-]+", str(path)) else repr(str(path))


def seeds_of(sweep: Sweep, output: Path) -> set[int]:
    """The seeds with which members were run before."""
    places = [output / sweep.same_as.get(name, f"{sweep.name}/{name}") for name in sweep.members]
    folders = [folder for place in places for folder in place.glob("seed*")]
    return {int(folder.name[4:]) for folder in folders if folder.is_dir() and folder.name[4:].isdigit()}
