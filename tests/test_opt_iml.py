"""The headline command: `opt_iml` of all its benchmarks, built and trained on by the shipped gin files."""

import json

import numpy as np
import pytest

from optiml_jax.data.block_plan import mean_positions, rates
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.sampling import probabilities, shares
from optiml_jax.data.settings import Data
from optiml_jax.data.store import TokenStore
from tasks.benchmarks.samples import TOKENIZER
from tasks.catalog.mixtures import PROPORTIONS
from tests.stores import only_manifest
from tests.tasks.prompting.wordings import write
from tests.test_train import losses, rows, run
from tools import cache_tasks

PATTERNS = {
    "sst2": [("Review:\n{sentence}\n\nIs it good?\n\n{options_}", "{answer}"), ("{sentence}\n{options_}", "{answer}")]
}
TEXT = "pretrain_text"
SAMPLED = ("super_natural_instructions", "promptsource", "exmix", "unifiedskg", "reasoning", "pretrain_text")
SMALL = {
    "OPTConfig.vocab_size": 1536,  # of the samples' tokenizer, in which the same texts are twice as long
    "OPTConfig.layers": 1,
    "OPTConfig.model_dim": 64,
    "OPTConfig.heads": 4,
    "OPTConfig.ffn_dim": 256,
    "OPTConfig.dropout": 0.0,
    "Computation.accumulation": 1,
    "FSDP_AXIS": 1,
    "TENSOR_AXIS": 1,
    "BATCH_ROWS": 1,
    "TRAIN_STEPS": 20,
    "WARMUP_STEPS": 2,
    "LEARNING_RATE": 3e-3,
    "PRECISION": "fp32",
    "REMAT": "none",
    "LOG_EVERY": 1,
}


@pytest.fixture(scope="module")
def data_dir(shared, tmp_path_factory):
    """Samples of the six whose official files are at hand, and files of the form of the other three."""
    directory = tmp_path_factory.mktemp("data")
    for name in SAMPLED[1:]:
        (directory / name).symlink_to(shared / "data" / name)
    few = sorted((shared / "data" / SAMPLED[0] / "tasks").glob("*.json"))[::5]  # of 260 files, which take their time
    (directory / SAMPLED[0] / "tasks").mkdir(parents=True)
    (directory / SAMPLED[0] / "splits").symlink_to(shared / "data" / SAMPLED[0] / "splits")
    for path in few:
        (directory / SAMPLED[0] / "tasks" / path.name).symlink_to(path)
    reviews = [{"sentence": f"the film is watched {i} times .", "label": i % 2} for i in range(900)]
    write(
        directory,
        **{
            "flan/flan/templates.py": f"PATTERNS = {PATTERNS!r}\n",
            "flan/rows/glue/sst2/train.jsonl": "\n".join(map(json.dumps, reviews)),
            "crossfit/search_qa_train.tsv": "".join(f"question {i}?\tanswer {i}\n" for i in range(200)),
            "t5/rows/wmt14/fr-en/train.jsonl": "\n".join(
                json.dumps({"translation": {"en": f"{i} cats.", "fr": f"{i} chats."}}) for i in range(200)
            ),
        },
    )
    return directory


@pytest.mark.parametrize(
    ("name", "token_shares"),
    [("opt30b_iml", {TEXT: 0.05}), pytest.param("opt175b_iml_max", None, marks=pytest.mark.slow)],
)
def test_the_shipped_run_trains_on_its_mixture(name, token_shares, data_dir, tmp_path_factory):
    """With the share of the tokens that the gin file states, or with shares of the draws alone."""
    cache = tmp_path_factory.getbasetemp() / "opt_iml_cache"
    model_dir = tmp_path_factory.mktemp(name)
    places = {"DATA_DIR": data_dir, "TOKENIZER": TOKENIZER, "CACHE_DIR": cache, "MODEL_DIR": model_dir}
    settings = SMALL | {key: str(path) for key, path in places.items()}
    done = run("train", settings | ({} if token_shares else {"TOKEN_SHARES": None}), gin_file=f"{name}.gin")
    losses_ = losses(model_dir)
    assert len(losses_) == 20 and np.mean(losses_[-4:]) < np.mean(losses_[:4]) - 1
    fills = [row["row_fill"] for row in rows(model_dir)]
    # of opt_iml_max, one of the 20 rows is 98.8% full: in these few files, no example is short enough for the rest of
    # it
    assert (np.mean(fills) if name.endswith("max") else min(fills)) >= 0.99
    manifest = Manifest.read(only_manifest(cache, "opt_iml_max" if name.endswith("max") else "opt_iml"))
    drawn = shares(probabilities(manifest), manifest.tasks)
    assert all(abs(share - PROPORTIONS[name] / 100) < 1e-6 for name, share in drawn.items()) and len(drawn) == 9
    if token_shares is None:
        assert "promptsource 42.75%, super_natural_instructions 22.80%, flan 19.00%, pretrain_text 5.00%" in done.stdout
        return
    # pre-training text has 5% of the positions, and fewer of the draws; the others share those as the paper says
    store = TokenStore.open(only_manifest(cache, manifest.name))
    data = Data(manifest.name, str(cache), token_shares=token_shares)
    by_task = rates(store, manifest, data)
    positions = mean_positions(store, data, by_task)
    taken = shares({task: rate * positions[task] for task, rate in by_task.items()}, manifest.tasks)
    assert abs(taken[TEXT] / sum(taken.values()) - 0.05) < 1e-9
    drawn = shares(by_task, manifest.tasks)
    assert abs(drawn["promptsource"] / drawn["flan"] - 45 / 20) < 1e-9
    printed = ", ".join(f"{name} {share:.2%}" for name, share in drawn.items())
    assert f"shares of the draws: {printed}" in done.stdout and drawn[TEXT] < 0.05


@pytest.mark.slow
def test_the_shipped_run_trains_with_each_objective(data_dir, tmp_path_factory):
    """With demonstrations. Label, suffix and document have ever more label tokens in the same rows."""
    cache, labels = tmp_path_factory.getbasetemp() / "opt_iml_cache", {}
    for objective in ("label", "suffix", "document"):
        model_dir = tmp_path_factory.mktemp(objective)
        places = {"DATA_DIR": data_dir, "TOKENIZER": TOKENIZER, "CACHE_DIR": cache, "MODEL_DIR": model_dir}
        settings = SMALL | {key: str(path) for key, path in places.items()}
        run("train", settings | {"DEMONSTRATIONS": 2, "OBJECTIVE": objective}, gin_file="opt30b_iml.gin")
        losses_ = losses(model_dir)
        assert len(losses_) == 20 and np.mean(losses_[-4:]) < np.mean(losses_[:4]) - 1
        assert np.mean([row["row_fill"] for row in rows(model_dir)]) >= 0.995
        labels[objective] = np.array([row["label_tokens"] for row in rows(model_dir)])
        print(objective, labels[objective].mean(), np.mean(losses_[:4]), np.mean(losses_[-4:]))
    assert (labels["label"] <= labels["suffix"]).all() and labels["suffix"].sum() > 1.5 * labels["label"].sum()
    assert (labels["suffix"] <= labels["document"]).all() and (labels["document"] > 0.97 * 2048).all()


def test_without_some_of_its_data_the_mixture_is_refused_by_name(data_dir, tmp_path, capsys):
    for name in SAMPLED[:3]:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(data_dir / name)
    flags = [f"--data_dir={tmp_path / 'data'}", f"--tokenizer={TOKENIZER}", f"--cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(SystemExit) as refused:
        cache_tasks.main(["--mixture=opt_iml", *flags])
    error = capsys.readouterr().err
    assert refused.value.code == 2 and error.count("\n") == 1
    assert "crossfit" in error and "MISSING_BENCHMARKS = 'leave_out'" in error
