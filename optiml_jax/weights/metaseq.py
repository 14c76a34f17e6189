"""metaseq checkpoints (facebookresearch/metaseq), read without running their pickles.

A checkpoint is a family of files `<prefix>[-model_part-P][-shardR].pt`: P counts Megatron's tensor-parallel parts, R
FSDP's shards of each. A file's `model` holds either tensors by name (consolidated by `distributed/stitch_fsdp_ckpt.py`)
or one flat parameter per FSDP wrapper (fairscale's `FlatParameter`), whose contents `shard_metadata` lists. The
released 125M-66B files (`reshard-model_part-*.pt`, `scripts/reshard_mp.py`) lost that list, so for them the order in
which the modules of that time registered their parameters is needed: `metaseq_names.parameter_order`.
"""

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from optiml_jax.common.errors import UserError
from optiml_jax.model.config import OPTConfig
from optiml_jax.weights import metaseq_names, metaseq_pickles, torch_file
from optiml_jax.weights.directory import FORMS
from optiml_jax.weights.place import place
from optiml_jax.weights.stored import Flat, Joined, Stored, Tensor, cut

FILE = re.compile(r"(?P<prefix>.+?)(?:-model_part-(?P<part>\d+))?(?:-shard(?P<shard>\d+))?\.pt")
FLAT = re.compile(r"(?:(?P<path>.+)\.)?flat_param_\d+")

Family = dict[int, dict[int, Path]]  # part -> shard -> file


def is_metaseq(path: str | os.PathLike) -> bool:
    """Whether `path` is a metaseq checkpoint: a `.pt` file, its name without part and shard, or a directory with
    one."""
    path = Path(path)
    if path.is_dir():
        return any(path.glob("*.pt")) and not any(any(path.glob(f"{stem}*.{suffix}")) for stem, suffix in FORMS)
    return bool(_named(path))


def load_metaseq(
    source: str | os.PathLike,
    config: OPTConfig,
    shardings: dict | None = None,
    dtype: jnp.dtype | dict = jnp.float32,
    separate: bool = False,
) -> dict:
    """Loads parameters from a metaseq checkpoint; arguments, result and errors as in `load_hf`.

    Args:
      source: a directory with one checkpoint, a `.pt` file, or `<directory>/<prefix>[.pt]` of a sharded one.
    """
    return place(read_tensors(source, config), config, shardings, dtype, separate, str(source))


def read_metaseq_config(source: str | os.PathLike) -> OPTConfig:
    """Reads the architecture from the checkpoint's configuration and the shapes of its tensors.

    Raises:
      UserError: the checkpoint has no configuration, or one that `OPTConfig` cannot represent.
    """
    family = find_family(source)
    first = _load(family[0][0])
    model = first["model"]
    flat = {name: sum(_load(file)["model"][name].shape[0] for file in family[0].values()) for name in _flat_keys(model)}
    shapes = {} if flat and "shard_metadata" not in first else _shapes(family)
    return metaseq_names.read_config(first, shapes, flat.get("flat_param_0"), len(family), str(family[0][0]))


def find_family(source: str | os.PathLike) -> Family:
    """Finds the files of one checkpoint, by part and shard.

    Raises:
      UserError: there is no checkpoint, more than one, or parts or shards are missing.
    """
    source = Path(source)
    if source.is_dir():
        groups = _families(source.glob("*.pt"))
        if len(groups) > 1:
            names = sorted(groups)
            raise UserError(
                f"{source}: holds {len(groups)} checkpoints ({', '.join(names[:4])}); "
                f"choose one of them, as in {source / names[0]}"
            )
        family = next(iter(groups.values()), {})
    else:
        family = _named(source)
    if not family:
        raise UserError(f"{source}: contains no metaseq checkpoint (.pt files)")
    count = max(len(shards) for shards in family.values())
    for part in range(max(family) + 1):
        for shard in range(max(count, max(family.get(part, {0: None})) + 1)):
            if shard not in family.get(part, {}):
                some = next(iter(family[min(family)].values()))
                raise UserError(f"{some.parent}: model part {part}, shard {shard} of {some.name} is missing")
    return family


def _named(source: Path) -> Family:
    """The family of `<directory>/<prefix>[.pt]`, or of one of its files."""
    if source.is_file() and (match := FILE.fullmatch(source.name)):
        prefix = match["prefix"]
        if match["part"] is None and match["shard"] is None:
            return {0: {0: source}}
    else:
        prefix = source.name
    groups = _families(source.parent.glob("*.pt")) if source.parent.is_dir() else {}
    return groups.get(prefix) or groups.get(prefix.removesuffix(".pt"), {})


def _families(files: Iterable[Path]) -> dict[str, Family]:
    groups: dict[str, Family] = {}
    for file in files:
        match = FILE.fullmatch(file.name)
        groups.setdefault(match["prefix"], {}).setdefault(int(match["part"] or 0), {})[int(match["shard"] or 0)] = file
    return groups


@functools.lru_cache(maxsize=2048)  # read twice: for the configuration and the tensors; holds names and offsets only
def _load_cached(file: Path, size: int, modified: int) -> dict:
    state = torch_file.load(file, metaseq_pickles.inert_class)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise UserError(f"{file}: has no 'model'; is this a metaseq checkpoint?")
    for name, tensor in state["model"].items():
        if not isinstance(tensor, Stored):
            raise UserError(f"{file}: {name} is not a tensor; is this a metaseq checkpoint?")
    return state


def _load(file: Path) -> dict:
    stat = file.stat()
    return _load_cached(file, stat.st_size, stat.st_mtime_ns)


def _flat_keys(model: dict[str, Stored]) -> list[str]:
    return [name for name in model if FLAT.fullmatch(name)]


def read_tensors(source: str | os.PathLike, config: OPTConfig) -> dict[str, Tensor]:
    """Reads every weight by Hugging Face's bare name."""
    family = find_family(source)
    return _join([_read_part(family[part], len(family), config) for part in sorted(family)], str(source))


def _shapes(family: Family) -> dict[str, tuple[int, ...]]:
    parts = [_read_part(family[part], len(family), None) for part in sorted(family)]
    return {name: tensor.shape for name, tensor in _join(parts, str(family[0][0])).items()}


def _read_part(files: dict[int, Path], parts: int, config: OPTConfig | None) -> dict[str, Stored | Flat]:
    """Reads the tensors of one tensor-parallel part by metaseq's names, with FSDP's sharding undone."""
    states = [_load(files[shard]) for shard in sorted(files)]
    model = states[0]["model"]
    flat = _flat_keys(model)
    if not flat:
        if len(states) > 1:
            raise UserError(
                f"{files[0]}: tensors by name in a checkpoint of {len(states)} shards; keep one file per part"
            )
        return dict(model)
    if "shard_metadata" in states[0]:
        names, padding = _described(states, files)
    else:
        combined = parts > 1 or metaseq_names.is_megatron(states[0])
        names, padding = metaseq_names.parameter_order(config, parts, combined, flat, files[0]), None
    tensors: dict[str, Stored | Flat] = {}
    for key in flat:
        if key not in names:
            raise UserError(f"{files[0]}: {key} is not listed in shard_metadata; write the checkpoint again")
        runs = []
        for shard, state in zip(sorted(files), states):
            if key not in state["model"]:
                raise UserError(f"{files[shard]}: {key} is missing, but other shards have it")
            run = state["model"][key]
            if len(run.shape) != 1 or run.strides is not None or run.dtype != model[key].dtype:
                raise UserError(f"{files[shard]}: {key} is not a flat parameter: {run.shape}, {run.dtype}")
            runs.append(run.rows(0, run.shape[0] - (padding[shard][key] if padding else 0)))
        tensors |= _unflatten(tuple(runs), names[key], key, files[0], spare=0 if padding else len(runs) - 1)
    return tensors


def _unflatten(
    runs: tuple[Stored, ...], names: list[tuple[str, tuple[int, ...]]], key: str, file: Path, spare: int
) -> dict[str, Flat]:
    """Splits a flat parameter into its tensors; at most `spare` elements at its end are padding."""
    actual, expected = sum(run.shape[0] for run in runs), sum(metaseq_names.size(shape) for _, shape in names)
    if not 0 <= actual - expected <= spare:
        raise UserError(
            f"{file}: {key} has {actual:,} elements in {len(runs)} shards, expected {expected:,}; "
            "are shards missing or unexpected?"
        )
    tensors, start = {}, 0
    for name, shape in names:
        stop = start + metaseq_names.size(shape)
        tensors[name] = Flat(cut(runs, start, stop), shape)
        start = stop
    return tensors


def _described(states: list[dict], files: dict[int, Path]) -> tuple[dict, dict]:
    """Reads `shard_metadata`: names and shapes of each flat parameter, and its padding in each shard."""
    names: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    padding: dict[int, dict[str, int]] = {}
    for shard, state in zip(sorted(files), states):
        padding[shard] = {}
        try:
            for wrapper in state["shard_metadata"]["param_metadata"]:
                path = wrapper["fsdp_path"]
                for backing, metadata in wrapper["params"].items():
                    key = _dotted(path, backing)
                    padding[shard][key] = int(metadata["padding"])
                    shapes = [tuple(map(int, shape)) for shape in metadata["shapes"]]
                    names[key] = [(_dotted(path, name), shape) for name, shape in zip(metadata["names"], shapes)]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{files[shard]}: shard_metadata is damaged or of an older fairscale ({error})") from error
    return names, padding


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _join(parts: list[dict[str, Any]], origin: str) -> dict[str, Tensor]:
    """Joins tensor-parallel parts: whole tensors by Hugging Face's bare names."""
    for number, part in enumerate(parts):
        if part.keys() != parts[0].keys():
            name = min(part.keys() ^ parts[0].keys())
            raise UserError(f"{origin}: tensor {name} is not in every model part (0 and {number} differ)")
    tensors: dict[str, Tensor] = {}
    for name in parts[0]:
        slices = [part[name] for part in parts]
        if any(slice_.shape != slices[0].shape for slice_ in slices):
            raise UserError(f"{origin}: tensor {name} has different shapes in different model parts")
        for bare, thirds, axis in metaseq_names.targets(name):
            selected = slices
            if thirds is not None:
                rows = slices[0].shape[0] // 3
                selected = [slice_.rows(thirds * rows, (thirds + 1) * rows) for slice_ in slices]
            whole = len(selected) == 1 or axis is None  # a tensor that is not split is equal in every part
            tensors[bare] = selected[0] if whole else Joined(tuple(selected), axis)
    return tensors
