"""The command of the overlap: its mistakes end in one line and exit code 2."""

import pytest

from optiml_jax.data.cache_paths import ledger_path, manifest_path
from optiml_jax.evaluation.prompts.ledger import write_ledger
from tests.commands import run_all
from tests.evaluation.example_prompts import prompt
from tests.stores import manifest, write_header
from tests.tasks.prompting.wordings import write
from tests.test_train import environment

FIND, CACHE = "tools.find_overlap", "tools.cache_tasks"
BAD = {
    "no mixture": (FIND, "--train=samples", "--eval=one", "{cache} holds no mixture samples"),
    "no ledger": (FIND, "--train=tiny", "--eval=two", "two.jsonl: no such ledger"),
    "no fraction": (FIND, "--train=tiny", "--eval=one", "--threshold=50", "--threshold=50.0: must be a fraction"),
    "no process": (FIND, "--train=tiny", "--eval=one", "--processes=0", "--processes=0: must be at least 1"),
    "misspelt": (
        FIND,
        "--train=tiny",
        "--eval=one",
        "--treshold=1",
        "neither a flag of this tool nor of Beam; did you mean --threshold",
    ),
    "no review": (FIND, "--train=tiny", "--eval=one", "--review={here}/wrong.tsv", "wrong.tsv:1: the columns are"),
    "no suite": (CACHE, "--suite=mmlu,bhb", "no suite bhb; did you mean bbh"),
    "no data": (CACHE, "--suite=mmlu", "--data_dir={here}", "has no folder mmlu"),
    "no examples": (
        CACHE,
        "--suite=mmlu",
        "--overlap={here}/wrong.tsv",
        "not a list of examples of tools.find_overlap",
    ),
}


@pytest.fixture(scope="module")
def results_and_cache(tmp_path_factory):
    """Runs all commands in one process and returns their messages."""
    here = tmp_path_factory.mktemp("here")
    write(here, **{"wrong.tsv": "train\tevaluation\n"})
    cache = here / "cache"
    cache.mkdir()
    write_header(cache)
    manifest({}).write(manifest_path(cache, "tiny", "0"))
    write_ledger(ledger_path(cache, "one"), [prompt()], {})
    commands = []
    for module, *flags, _ in BAD.values():
        given = [flag.format(here=here, cache=cache) for flag in flags] + [f"--cache_dir={cache}"]
        commands.append((module, given + ([f"--output={here}/out.tsv"] if module == FIND else [])))
    return dict(zip(BAD, run_all(commands, environment()))), cache


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_with_the_way_out(results_and_cache, case):
    results, cache = results_and_cache
    code, error = results[case]
    assert code == 2 and "Traceback" not in error, error
    assert BAD[case][-1].replace("{cache} ", f"{cache}: ") in error
