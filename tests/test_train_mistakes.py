"""Mistakes in a training command: each is one line with the way out, and exit code 2."""

import pytest

from tests.commands import run_all
from tests.test_train import SMALL, cache, command, environment  # noqa: F401


class Reference(str):
    """A gin reference, which needs no quotes."""

    __repr__ = str.__str__


BAD = {
    "unknown macro": ({"TRAIN_STEP": 3}, (), "--gin.TRAIN_STEP: no gin file uses a macro of that name; did you mean"),
    "unknown parameter": ({"OPTConfig.layer": 3}, (), "OPTConfig has no parameter 'layer'; did you mean layers"),
    "unknown name": ({"OPTConfi.layers": 3}, (), "no configurable 'OPTConfi'; did you mean OPTConfig"),
    "unknown file": ({}, ("--gin_file=tinny.gin",), "tinny.gin is not in"),
    "unknown flag": ({}, ("--steps=3",), "--steps=3: unknown flag"),
    "mesh": ({"DATA_AXIS": 3}, (), "DATA_AXIS * FSDP_AXIS * TENSOR_AXIS = 3 * 1 * 1 = 3, but there are 1 devices"),
    "unknown mixture": ({"MIXTURE": "sampels"}, (), "did you mean samples"),
    "missing data": ({"MIXTURE": "super_natural_instructions", "TOKENIZER": "tasks/samples/tokenizer"}, (), "data_dir"),
    "microbatches": ({"BATCH_ROWS": 12, "Computation.accumulation": 8}, (), "BATCH_ROWS 12 is not divisible by"),
    "row too long": ({"ROW_LENGTH": 1024}, (), "ROW_LENGTH 1024 exceeds the model's 512 positions"),
    "label longer than a row": ({"ROW_LENGTH": 8}, (), "raise ROW_LENGTH"),
    "small vocabulary": (
        {"OPTConfig.vocab_size": 1000},
        (),
        "the tokenizer has 1536 ids, OPTConfig.vocab_size is 1000",
    ),
    "part of a step": ({"TRAIN_STEPS": 4.5}, (), "Optimization.train_steps is 4.5; it must be a whole number from 1"),
    "falling rate": ({"LEARNING_RATE": -1}, (), "Optimization.learning_rate is -1; it must be a number above 0"),
    "rows as text": ({"BATCH_ROWS": "many"}, (), "Data.batch_rows is 'many'; it must be a whole number from 1"),
    "half a device": ({"FSDP_AXIS": 0.5}, (), "FSDP_AXIS is 0.5; it must be a whole number from 1"),
    "bare word for a number": ({}, ("--gin.BATCH_ROWS=many",), "--gin.BATCH_ROWS=many: is not a number"),
    "no ledger at the end": (
        {"train.evaluate_after": Reference("@evaluate"), "LEDGER": "nowhere.jsonl"},
        (),
        "nowhere.jsonl: no such ledger",
    ),
    "no precision at the end": (
        {"train.evaluate_after": Reference("@evaluate"), "evaluate.precision": "fp8"},
        (),
        "no PRECISION fp8; did you mean fp32",
    ),
    "a suffix after a number": ({}, ("--gin.LEARNING_RATE=1e-4f",), "--gin.LEARNING_RATE=1e-4f: is not a number"),
    "a bucket": ({}, ("--gin.MODEL_DIR=gs://bucket/run",), "MODEL_DIR: gs://bucket/run is not a local path, and gs://"),
    "a variable": ({}, ("--gin.CACHE_DIR=$NO_SUCH/x",), "Data.cache_dir: $NO_SUCH/x: the environment variable NO_SUCH"),
    "a user": ({}, ("--gin.DATA_DIR=~nosuchuser/x",), "Data.data_dir: ~nosuchuser/x: there is no such user"),
    "no such tokenizer": ({"TOKENIZER": "nowhere/at/all"}, (), "nowhere/at/all"),
    "no such weights": ({"INIT_WEIGHTS": "./nowhere"}, (), "nowhere"),
    "missing benchmarks": (
        {"MISSING_BENCHMARKS": "leave out"},
        (),
        "Data.missing_benchmarks is 'leave out'; it must be 'refuse' or 'leave_out'",
    ),
    "part of a mixture": ({"CATEGORIES": ["sentimnt"]}, (), "categories: 'sentimnt' matches no category"),
    "precision": ({"PRECISION": "fp8"}, (), "'fp8' is unknown; use one of fp32, bf16, fp16"),
    "heads": ({"OPTConfig.heads": 7}, (), "model_dim 64 is not a multiple of heads 7"),
}


@pytest.fixture(scope="module")
def mistakes(cache, tmp_path_factory) -> dict[str, tuple[int, str]]:  # noqa: F811
    """Exit code and stderr of every case."""
    directory = tmp_path_factory.mktemp("mistakes")
    commands = []
    for number, (change, flags, _) in enumerate(BAD.values()):
        cache_dir = str(directory / "cache") if "MIXTURE" in change else cache
        settings = SMALL | {"CACHE_DIR": cache_dir, "MODEL_DIR": str(directory / str(number))} | change
        commands.append(("optiml_jax.train", command("train", settings, *flags)[3:]))
    return dict(zip(BAD, run_all(commands, environment())))


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_with_the_way_out(case, mistakes):
    code, error = mistakes[case]
    lines = [line for line in error.splitlines() if not line.startswith("caching")]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and BAD[case][2] in lines[0], error
