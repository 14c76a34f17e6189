"""Converts weights of Hugging Face, metaseq or a training run to Hugging Face's format or to a folder that this project
loads.

python -m tools.convert_weights --source=runs/tiny --target=exported --to=hf
python -m tools.convert_weights --source=runs/lora --target=adapter --to=peft
python -m tools.convert_weights --source=opt_1.3b/reshard.pt --tokenizer=facebook/opt-1.3b --target=opt-1.3b --to=hf

The format of the source is detected. `hf` loads in transformers' OPTForCausalLM and keeps the type of the weights,
unless --dtype changes it; the adapter of a run is merged. `peft` is that adapter alone, in float32. `orbax` is a
MODEL_DIR with parameters only, in float32, which `load_model`, WEIGHTS and INIT_WEIGHTS accept. The weights must fit
into the memory of this machine.
"""

import argparse
import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optiml_jax import weights
from optiml_jax.checkpoints.orbax import Checkpoints
from optiml_jax.checkpoints.runs import INIT_WEIGHTS, is_run, read_adapter, read_run, read_run_config
from optiml_jax.common.errors import UserError, exit_on_user_error
from optiml_jax.common.tables import Parser, output_folder
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer
from optiml_jax.weights import output_folder as targets

DTYPES = ("float32", "float16", "bfloat16")


class WeightSource(NamedTuple):
    """A detected weight format, and the function that reads it.

    Attributes:
      dtype: type of the tensors on disk.
      leading_eos: whether the model was trained with `</s>` before every text.
    """

    kind: str
    config: OPTConfig
    dtype: jnp.dtype
    tokenizer: Tokenizer | None
    leading_eos: bool = True


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.convert_weights", __doc__)
    add = parser.add_argument
    add("--source", required=True, help="Hugging Face directory or hub name, metaseq checkpoint, MODEL_DIR of a run")
    add("--target", type=output_folder, required=True, help="folder to write; it appears when it is complete")
    add("--to", required=True, choices=("hf", "orbax", "peft"), help="what to write")
    add("--dtype", choices=DTYPES, help="type of the written tensors, for --to=hf (that of the source)")
    add("--tokenizer", help="directory or hub name, for weights without a tokenizer (metaseq)")
    flags = parser.parse_args(arguments)
    if flags.dtype and flags.to != "hf":
        parser.error(f"--dtype applies only to --to=hf; --to={flags.to} writes float32")
    return flags


def _check_apart(source: Path, target: Path) -> None:
    """Refuses a target that would replace the source, or lie inside of it.

    Raises:
      UserError: the folders are not apart.
    """
    if not source.exists():  # a name on the hub
        return
    here, there = source.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"--target={target}: is, or is in, or holds --source={source}; choose a folder beside it")


def recognise(source: str, tokenizer: str | None) -> WeightSource:
    """Detects the format of `source`.

    Raises:
      UserError: it has no weights of OPT's architecture.
    """
    if is_run(source):
        config, meta = read_run_config(source)
        vocabulary = Tokenizer.load(tokenizer or Path(source) / "tokenizer")
        if vocabulary.fingerprint != meta["settings"]["tokenizer"]:
            raise UserError(f"--tokenizer={tokenizer}: not the one that {source} was trained with")
        kind = f"run of this project, step {meta['step']}"
        return WeightSource(kind, config, jnp.float32, vocabulary, meta["settings"]["Data.leading_eos"])
    path = weights.resolve(source)
    config, metaseq = weights.read_config(path), weights.is_metaseq(path)
    vocabulary = None if metaseq and tokenizer is None else Tokenizer.load(tokenizer or weights.tokenizer_source(path))
    kind = "metaseq checkpoint" if metaseq else "Hugging Face directory"
    return WeightSource(kind, config, weights.stored_dtype(path, config), vocabulary)


def read(path: str, config: OPTConfig, dtype: str) -> dict:
    """Reads the parameters in `dtype`; those of a run in float32."""
    if is_run(path):
        return read_run(path, sharding.make_mesh(devices=jax.devices()[:1]))[1]
    return weights.load(path, config, dtype=jnp.dtype(dtype))


def write_run(params: dict, source: WeightSource, origin: str, target: Path) -> None:
    """Writes a MODEL_DIR that holds only parameters."""
    settings = {"tokenizer": source.tokenizer.fingerprint, "Data.leading_eos": source.leading_eos}
    meta = {"settings": settings | {"converted from": origin}, "model": vars(source.config)}
    partial = targets.prepare(target, sum(x.nbytes for x in jax.tree.leaves(params)))
    try:
        with contextlib.closing(Checkpoints(partial, keep=1)) as checkpoints:
            checkpoints.save_weights(0, params, meta)
            checkpoints.wait()
        source.tokenizer.save(partial / "tokenizer")
        targets.put_in_place(partial, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_adapter(source: str, target: Path) -> None:
    """Writes the adapter of a run in the format of `peft`.

    Raises:
      UserError: the source is no run with adapters.
    """
    if not is_run(source):
        raise UserError(f"--source={source}: is no run; --to=peft writes the adapter of a run")
    lora, tree, meta = read_adapter(source)
    partial = targets.prepare(target, sum(x.nbytes for x in jax.tree.leaves(tree)), weights.peft.is_adapter)
    try:
        weights.peft.write(partial, lora, tree, meta["settings"][INIT_WEIGHTS])
        targets.put_in_place(partial, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"wrote {target}: peft, rank {lora.rank}, of {', '.join(lora.targets)}, step {meta['step']}")


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    _check_apart(Path(flags.source), Path(flags.target))
    if flags.to == "peft":
        write_adapter(flags.source, Path(flags.target))
        return
    source = recognise(flags.source, flags.tokenizer)
    count = decoder.parameter_count(source.config)
    stored = jnp.dtype(source.dtype).name
    print(f"{flags.source}: {source.kind}, {count / 1e6:,.1f} M parameters in {stored}")
    if flags.to == "orbax" and source.tokenizer is None:
        raise UserError(f"{flags.source}: has no tokenizer; pass one with --tokenizer=facebook/opt-125m")
    dtype = "float32" if flags.to == "orbax" else flags.dtype or stored
    target = Path(flags.target)
    size = count * jnp.dtype(dtype).itemsize
    # Checked first, because reading takes longer.
    may_go = weights.was_exported if flags.to == "hf" else lambda _: False
    targets.prepare(target, size, may_go).rmdir()
    print("reading ...", flush=True)
    params = read(flags.source, source.config, dtype)
    decoder.check_params(params, source.config, flags.source)
    print(f"writing {size / 1e9:,.2f} GB to {target} ...", flush=True)
    if flags.to == "hf":
        weights.save_hf(params, source.config, source.tokenizer, target, jnp.dtype(dtype))
    else:
        write_run(params, source, flags.source, target)
    remark = "" if source.tokenizer else ", without a tokenizer (--tokenizer)"
    print(f"wrote {target}: {flags.to}, {dtype}{remark}")


if __name__ == "__main__":
    main()
