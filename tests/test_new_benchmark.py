"""A second benchmark: one file for it, one for its suite, and it trains and is evaluated."""

import functools
import json

import jax

from optiml_jax.data.settings import Data
from optiml_jax.evaluation.prompts.ledger import read_ledger
from optiml_jax.evaluation.run import evaluate
from optiml_jax.model import sharding
from optiml_jax.training.hooks import Logging
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.run import train
from optiml_jax.training.step import Computation
from tasks import benchmarks, suites
from tasks.benchmarks.samples import TOKENIZER
from tests.training.test_hooks import MODEL
from tools import cache_tasks

BENCHMARK = """
import functools
from optiml_jax.evaluation.metrics import Metric
from tasks.example import Example, Record, Template
from tasks.catalog.registry import Benchmark, CatalogRow
from tasks.task import Task

BUILT_IN = True  # it reads no files
NUMBERS = "zero one two three four five six seven eight nine".split()
TEXTS = ("Write {} as a number.", "What is {} in digits?", "{} ->")
TEMPLATES = tuple(Template(f"t{i}", Metric("accuracy"), text) for i, text in enumerate(TEXTS))

def read(most, split):
    places = range(40) if split == "train" else range(40, 60)
    return (Record(f"{split}{i}", {"word": NUMBERS[i % most], "digit": str(i % most)}) for i in places)

def render(most, record, template, worded_as=None):
    digit = record.fields["digit"]
    source = template.text.format(record.fields["word"])
    return Example(record.id, source, digit, (digit,), tuple(map(str, range(most))))

def task(most):
    functions = (functools.partial(read, most), functools.partial(render, most))
    return Task(f"toy.below_{most}", "toy", f"numbers_{most}", "toy", (), ("train", "test"), TEMPLATES, *functions)

def discover(directory, options):
    tasks = {"train": task(5), "test": task(10)}
    rows = {t.name: CatalogRow(t.name, "toy", t.category, "toy", split, "accuracy") for split, t in tasks.items()}
    return Benchmark({t.name: t for t in tasks.values()}, rows=rows)
"""
SUITE = """
from tasks.suites import Part, Suite
def parts(benchmark):
    return [Part(task, "test", "fully_held_out", shots=(0, 2)) for task in benchmark.listed("test")]

SUITE = Suite("toy", ("toy",), parts)
"""


def test_a_benchmark_and_a_suite_are_a_file_each(tmp_path, monkeypatch):
    for package, text in ((benchmarks, BENCHMARK), (suites, SUITE)):
        (tmp_path / package.__name__).mkdir()
        (tmp_path / package.__name__ / "toy.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / package.__name__)])
    cache, run = tmp_path / "cache", tmp_path / "run"
    cache_tasks.main(["--mixture=toy", f"--cache_dir={cache}", f"--tokenizer={TOKENIZER}"])
    names = next(cache.glob("tasks/toy.below_5/*/*.ids")).read_text().split()
    assert len(names) == 40 and {name.split("/")[1] for name in names} == {"t0", "t1", "t2"}
    ledger = read_ledger(cache / "ledgers" / "toy.jsonl")
    assert len(ledger) == 20 * 3 * 2 and {len(prompt.demonstration_ids) for prompt in ledger} == {0, 2}

    data = Data("toy", str(cache), row_length=128, batch_rows=4, block_draws=64)
    optimization = Optimization(learning_rate=1e-3, train_steps=12, warmup_steps=2)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    after = functools.partial(evaluate, str(run), mixture="toy", cache_dir=str(cache), mesh=mesh, max_new_tokens=4)
    record = train(MODEL, optimization, Computation("fp32"), data, mesh, Logging(), str(run), evaluate_after=after)
    assert record.step == 12 and record.metrics[-1]["loss"] < record.metrics[0]["loss"]
    assert record.evaluation == json.loads((run / "evaluation" / "toy" / "results.json").read_text())
    assert record.evaluation["levels"]["fully_held_out"]["shots"].keys() == {"0", "2"}
    assert record.model_dir == run and record.evaluation["tasks"]["toy.below_10"]["examples"] == 120
