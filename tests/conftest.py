"""Eight CPU devices for every test (single-device tests take the first), and the shared sample data where it exists."""

import json
import os
import shutil
from pathlib import Path

from tests import QUICK_TO_COMPILE

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # "cuda" runs tests of tests/model on a GPU
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton
    # Threads of the CPU client: kernels interpreted on eight devices occupy eight, and need others to copy arrays.
    os.environ.setdefault("NPROC", "16")
    # Programs run longer, but most tests wait for the compiler.
    os.environ["XLA_FLAGS"] = f"{QUICK_TO_COMPILE} {os.environ.get('XLA_FLAGS', '')}"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # a name that is no folder is not looked up, which takes half a minute offline
# What one test compiles the others, and the commands they start, need not: a quarter of the time of a run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{Path(__file__).parents[1]}/.pytest_cache/compiled-{os.getpid()}")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import pytest

from optiml_jax.model.config import OPTConfig

ROOT = Path(__file__).resolve().parents[1]


def pytest_unconfigure() -> None:
    if (cache_dir := Path(os.environ["JAX_COMPILATION_CACHE_DIR"])).name == f"compiled-{os.getpid()}":  # no worker's
        shutil.rmtree(cache_dir, ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real samples of the benchmarks in their official formats and OPT's vocabulary, kept outside the repository."""
    directory = ROOT.parent / "shared"
    if not (directory / "data").is_dir():
        pytest.skip(f"needs the sample data in {directory}, which is not part of the repository")
    return directory


@pytest.fixture(scope="session", params=["ours", "real"])
def raw_data(request) -> Path:
    """A DATA_DIR of official formats: small files written for the tests, and real samples where they are at hand."""
    return ROOT / "tests" / "data" if request.param == "ours" else request.getfixturevalue("shared") / "data"


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory) -> Path:
    """A tokenizer that differs from the samples': it lacks their last hundred merges."""
    source, target = ROOT / "tasks" / "samples" / "tokenizer", tmp_path_factory.mktemp("other") / "tokenizer"
    target.mkdir()
    merges = (source / "merges.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
    (target / "merges.txt").write_text("\n".join(merges[:-100]) + "\n", encoding="utf-8")
    smaller = {piece: index for piece, index in vocabulary.items() if index < len(vocabulary) - 100}
    (target / "vocab.json").write_text(json.dumps(smaller), encoding="utf-8")
    return target


@pytest.fixture(scope="session")
def config() -> OPTConfig:
    """A small model with eight heads, so that every mesh of eight devices divides it."""
    return OPTConfig(vocab_size=256, layers=3, model_dim=64, heads=8, ffn_dim=128, max_positions=64)
