"""Converts weights: Hugging Face, metaseq or a run of ours, to Hugging Face or to a folder that this project loads.

python -m tools.convert_weights --source=runs/tiny --target=exported --to=hf
python -m tools.convert_weights --source=opt_1.3b/reshard.pt --tokenizer=facebook/opt-1.3b --target=opt-1.3b --to=hf

What the source is shows itself. `hf` loads in transformers' OPTForCausalLM and keeps the type that the weights have,
unless --dtype says otherwise; `orbax` is a MODEL_DIR without a training, which `load_model`, WEIGHTS and INIT_WEIGHTS
take, in float32. The weights must fit into this machine's memory.
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
from optiml_jax.checkpoints.checkpoints import Checkpoints, is_run, read_run, read_run_config
from optiml_jax.common.errors import UserError, exit_on_user_error
from optiml_jax.common.tables import Parser
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.tokenizer import Tokenizer
from optiml_jax.weights import output_folder as targets

DTYPES = ("float32", "float16", "bfloat16")


class Source(NamedTuple):
    """What was found, and how to read it.

    Attributes:
      dtype: of the tensors on disk.
      leading_eos: whether `</s>` stood before every text when they were trained.
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
    add("--target", required=True, help="folder to write; it appears when it is complete")
    add("--to", required=True, choices=("hf", "orbax"), help="what to write")
    add("--dtype", choices=DTYPES, help="of the tensors written, for --to=hf (that of the source)")
    add("--tokenizer", help="directory or hub name, for weights that come without one (metaseq's)")
    flags = parser.parse_args(arguments)
    if flags.dtype and flags.to == "orbax":
        parser.error("--dtype is for --to=hf; a folder of ours holds float32")
    return flags


def recognise(source: str, tokenizer: str | None) -> Source:
    """What `source` is.

    Raises:
      UserError: no weights of OPT's architecture there.
    """
    if is_run(source):
        config, meta = read_run_config(source)
        own = Tokenizer.load(tokenizer or Path(source) / "tokenizer")
        if own.fingerprint != meta["settings"]["tokenizer"]:
            raise UserError(f"--tokenizer={tokenizer}: not the one that {source} was trained with")
        kind = f"run of this project, step {meta['step']}"
        return Source(kind, config, jnp.float32, own, meta["settings"]["Data.leading_eos"])
    path = weights.resolve(source)
    config, metaseq = weights.read_config(path), weights.is_metaseq(path)
    own = None if metaseq and tokenizer is None else Tokenizer.load(tokenizer or path)
    kind = "metaseq checkpoint" if metaseq else "Hugging Face directory"
    return Source(kind, config, weights.stored_dtype(path, config), own)


def read(path: str, config: OPTConfig, dtype: str) -> dict:
    """The parameters, in `dtype`; those of a run in float32."""
    if is_run(path):
        return read_run(path, sharding.make_mesh(devices=jax.devices()[:1]))[1]
    return weights.load(path, config, dtype=jnp.dtype(dtype))


def write_run(params: dict, source: Source, origin: str, target: Path) -> None:
    """Writes a MODEL_DIR that holds parameters alone."""
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


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    source = recognise(flags.source, flags.tokenizer)
    count = decoder.parameter_count(source.config)
    stored = jnp.dtype(source.dtype).name
    print(f"{flags.source}: {source.kind}, {count / 1e6:,.1f} M parameters in {stored}")
    if flags.to == "orbax" and source.tokenizer is None:
        raise UserError(f"{flags.source}: comes without a tokenizer; give one with --tokenizer=facebook/opt-125m")
    dtype = "float32" if flags.to == "orbax" else flags.dtype or stored
    target = Path(flags.target)
    size = count * jnp.dtype(dtype).itemsize
    # Before anything is read: reading takes longer than looking at the disk.
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
    said = "" if source.tokenizer else ", without a tokenizer (--tokenizer)"
    print(f"wrote {target}: {flags.to}, {dtype}{said}")


if __name__ == "__main__":
    main()
