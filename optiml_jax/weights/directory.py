"""Weight files of a Hugging Face directory: safetensors or `.bin`, one file or several with an index."""

from pathlib import Path

from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError
from optiml_jax.weights import safetensors, torch_file
from optiml_jax.weights.stored import Stored

FORMS = (("model", "safetensors"), ("pytorch_model", "bin"))  # in order of preference


def weight_files(directory: Path) -> dict[Path, set[str] | None]:
    """Lists the files to read, each with the tensors that the index assigns to it (None without an index).

    Raises:
      UserError: there are no weight files, a shard is missing, or a shard is not in the index.
    """
    for stem, suffix in FORMS:
        single, index = directory / f"{stem}.{suffix}", directory / f"{stem}.{suffix}.index.json"
        shards = set(directory.glob(f"{stem}-*-of-*.{suffix}"))
        if single.is_file():
            if shards:
                raise UserError(f"{min(shards)}: unexpected beside {single.name}; remove the files that do not belong")
            return {single: None}
        if index.is_file():
            indexed = _read_index(index)
            if missing := sorted(indexed.keys() - shards):
                raise UserError(f"{missing[0]}: missing, but {index.name} names it; fetch or write it again")
            if surplus := sorted(shards - indexed.keys()):
                raise UserError(f"{surplus[0]}: not listed in {index.name}; remove the files that do not belong")
            return indexed
        if shards:
            raise UserError(f"{index}: missing beside its shards; fetch or write it again")
    raise UserError(f"{directory}: no model.safetensors, pytorch_model.bin or index of either; are the weights here?")


def _read_index(index: Path) -> dict[Path, set[str]]:
    indexed: dict[Path, set[str]] = {}
    try:
        for name, file in typed_json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            if Path(file).name != file:
                raise ValueError(f"{file} is not a file name")
            indexed.setdefault(index.parent / file, set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{index}: damaged ({error}); fetch or write it again") from error
    return indexed


def read_tensors(directory: Path) -> dict[str, Stored]:
    """Reads the headers of every weight file; tensors are ordered by file and offset.

    Raises:
      UserError: a file is damaged, or holds other tensors than the index says.
    """
    tensors: dict[str, Stored] = {}
    for file, expected in sorted(weight_files(directory).items()):
        tensors_of_file = safetensors.read_header(file) if file.suffix == ".safetensors" else _read_bin(file)
        if expected is not None and tensors_of_file.keys() != expected:
            name = min(tensors_of_file.keys() ^ expected)
            state = "is missing, but the index names it" if name in expected else "is not in the index"
            raise UserError(f"{file}: tensor {name} {state}; fetch or write the directory again")
        if twice := tensors.keys() & tensors_of_file.keys():
            raise UserError(f"{file}: tensor {min(twice)} is also in another file; fetch or write the directory again")
        tensors |= tensors_of_file
    return tensors


def _read_bin(file: Path) -> dict[str, Stored]:
    state = torch_file.load(file)
    if not isinstance(state, dict) or not all(isinstance(value, Stored) for value in state.values()):
        raise UserError(f"{file}: not a state dictionary of tensors; is this a Hugging Face checkpoint?")
    return dict(sorted(state.items(), key=lambda item: item[1].offset))
