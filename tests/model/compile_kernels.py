"""Compiles every kernel for a card that is not there: python -m tests.model.compile_kernels CARD [bf16,fp16,fp32]

Prints one JSON line per kernel: its name, constants, type of numbers, and bytes of shared memory. Not in a test's own
process, where Triton interprets kernels.
"""

import json
import sys
import warnings

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from optiml_jax.common.cards import CARDS
from optiml_jax.inference import cache_attention, cache_attention_kernels
from optiml_jax.model import attention_kernels, norm, norm_kernels
from optiml_jax.model.flash_attention import TILES
from optiml_jax.model.triton_call import OPTIONS, column_groups

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
WIDTHS = (768, 2048, norm.WIDEST)
IDS = ("first", "until", "layer", "count", "page", "index", "row", "queries", "position", "pages")
FLOAT32 = {
    attention_kernels: ("log_sum", "inner"),
    cache_attention_kernels: ("out", "top", "total"),
    norm_kernels: ("mean", "inverse", "scale", "d_scale", "d_bias"),
}


def compile_kernel(module, name: str, number: str, constants: dict, capability: int, warps: int, stages: int) -> dict:
    kernel = getattr(module, name)
    types = {}
    for argument in kernel.arg_names:
        if argument not in constants:
            types[argument] = "*i32" if argument in IDS else "*fp32" if argument in FLOAT32[module] else f"*{number}"
    source = ASTSource(
        kernel,
        {argument: types.get(argument, "constexpr") for argument in kernel.arg_names},
        constexprs={(kernel.arg_names.index(argument),): value for argument, value in constants.items()},
        attrs={(kernel.arg_names.index(argument),): [["tt.divisibility", 16]] for argument in types},
    )
    options = {"num_warps": warps, "num_stages": stages, **OPTIONS}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return {"kernel": name, "number": number, "shared_bytes": compiled.metadata.shared, **constants}


def main(card: str, numbers: str = ",".join(BYTES)) -> None:
    major, minor = CARDS[card].capability
    capability = 10 * major + minor
    for K in (64, 80, 128):
        for number in numbers.split(","):
            width = BYTES[number]
            tiles = TILES[min(size for size, bytes_ in TILES if size >= K and bytes_ == width), width]
            sizes = {"T": 2048, "H": 32, "K": K, **column_groups(K)}
            for name, tile, variants in (
                ("attention_forward", tiles.forward, ({"SHARED": False}, {"SHARED": True})),
                ("attention_d_query", tiles.d_query, ({"SHARED": False}, {"SHARED": True})),
                ("attention_d_key", tiles.d_key, ({},)),
            ):
                for variant in variants:
                    constants = {**sizes, "QUERIES": tile.queries, "KEYS": tile.keys, **variant}
                    arguments = name, number, constants, capability, tile.warps, tile.stages
                    print(json.dumps(compile_kernel(attention_kernels, *arguments)), flush=True)
            sizes = {"S": 32, "H": 32, "K": K, **column_groups(K)}
            read = {"ROWS": 64, "PAGES": 999, "PAGE": cache_attention.PAGE, "QUERIES": 16, "PROGRAMS": 32}
            for name, constants, warps, stages in (
                ("cache_attention_read", sizes | read, cache_attention.READ_WARPS, cache_attention.READ_STAGES[width]),
                ("cache_attention_sum", sizes, 1, 1),
            ):
                arguments = name, number, constants, capability, warps, stages
                print(json.dumps(compile_kernel(cache_attention_kernels, *arguments)), flush=True)
    for D in WIDTHS:
        for number in numbers.split(","):
            constants = {"ROWS": 16_384, "D": D, "WIDTH": 1 << (D - 1).bit_length(), "PROGRAMS": norm.PROGRAMS}
            arguments = "norm_gradients", number, constants, capability, norm.warps(D), 1
            print(json.dumps(compile_kernel(norm_kernels, *arguments)), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("error", DeprecationWarning)
    main(*sys.argv[1:])
