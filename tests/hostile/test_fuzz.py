"""Every parser, with sound inputs that were changed at random: it reads them, or refuses them with a `UserError`.

No other exception, no more than five seconds, no gigabyte of memory, no code of the input run, and no file outside of
the folder. A few hundred inputs per parser, and ten thousand with the mark `slow`.
"""

import contextlib
import dataclasses
import itertools
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gin
import jax
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optiml_jax import gin_cli, weights
from optiml_jax.common.errors import UserError
from optiml_jax.common.metrics_log import read_metrics
from optiml_jax.data.specification import CacheOptions
from optiml_jax.data.store import SPLIT, TokenStore
from optiml_jax.evaluation.answers.cache import AnswerStore, key
from optiml_jax.evaluation.prompts.ledger import read_ledger
from optiml_jax.evaluation.scores.samples import read_samples
from optiml_jax.model import decoder, trainable
from optiml_jax.model.adapter import Lora
from optiml_jax.tokenizer import Tokenizer
from optiml_jax.weights import torch_file
from tasks.benchmarks import jsonl, promptsource, super_natural_instructions
from tasks.benchmarks.samples import TOKENIZER
from tasks.prompting import jinja_sandbox
from tasks.prompting.subsampling import examples
from tasks.reading import records
from tests.conftest import ROOT
from tests.hf import VARIANTS, write
from tests.hostile import material as sound
from tests.hostile.damage import the_file

SOME, MANY = 200, 10_000
SECONDS, GIGABYTE = 5, 1 << 20  # ru_maxrss is in KiB
# Bytes that break parsers: ends of numbers, nesting, marks, code.
PIECES = (
    *(b"", b"\0", b"\xff", b"\xed\xa0\xbd", b"\n", b"\r", b"\t", b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"%"),
    *(
        b"null",
        b"true",
        b"-1",
        b"0",
        b"1e999",
        b"NaN",
        b"9" * 30,
        b"1" * 5000,
        b"[" * 2000,
        b'{"a":' * 2000,
        b"\\ud83d",
    ),
    *(
        b"../../x",
        b"{{",
        b"}}",
        b"{%",
        b"|||",
        b"{{ x.__class__ }}",
        b"{% for i in range(10**9) %}",
        b"!!python/name:os",
    ),
    *(b"&a ", b"*a", b"<<: *a", b"- ", b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02", b"@x", b"%X", b"x.y = 1\n"),
)
VALUES = (None, True, -1, 0, 2**70, 0.5, 1e308, "", "x", "\0", "a" * 300, [], {}, [[]], [None], {"": None}, [1, "x"])


class Changes(random.Random):
    """Random changes of a sound input."""

    def changed(self, content: bytes) -> bytes:
        """The bytes after up to four edits; of JSON, also with other values in place of some."""
        if self.random() < 0.4 and (changed := self._json(content)) is not None:
            content = changed
        for _ in range(self.randrange(5)):
            start = self.randrange(len(content) + 1)
            end = min(len(content), start + self.choice((0, 0, 1, 2, 8, 100, len(content))))
            piece = self.choice((*PIECES, bytes([self.randrange(256)]), content[start:end] * 2))
            content = content[:start] + piece + content[end:]
        return content

    def _json(self, content: bytes) -> bytes | None:
        lines = content.split(b"\n")
        number = self.randrange(len(lines))
        for text, put in (
            (content, lambda new: new),
            (lines[number], lambda new: b"\n".join([*lines[:number], new, *lines[number + 1 :]])),
        ):
            with contextlib.suppress(ValueError):
                return put(json.dumps(self._value(json.loads(text))).encode())
        return None

    def _value(self, value: Any) -> Any:
        """A value in which one part is another."""
        if self.random() < 0.15 or not isinstance(value, dict | list) or not value:
            return self.choice(VALUES)
        place = self.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if isinstance(value, dict) and self.random() < 0.2:
            return {name: item for name, item in value.items() if name != place}
        value[place] = self._value(value[place])
        return value


def _whole(iterable: Iterator) -> None:
    for _ in itertools.islice(iterable, 10_000):
        pass


class Parsers:
    """Sound files below `folder`, and for each parser the file to change and the function that reads it."""

    def __init__(self, folder: Path, material: Path) -> None:
        self.folder = folder
        for part in (sound.CACHE, sound.EVALUATION):
            shutil.copytree(material / part, folder / part)
        (folder / sound.RUN).mkdir()
        shutil.copyfile(material / sound.RUN / "metrics.jsonl", folder / sound.RUN / "metrics.jsonl")
        shutil.copytree(TOKENIZER, folder / "tokenizer")
        shutil.copytree(ROOT / "tasks" / "samples" / "tasks", folder / "samples")
        self.cache = folder / sound.CACHE
        self.manifest = the_file(self.cache, "mixtures/samples/*.json")
        self.task = "samples.sample001_hotel_review_sentiment"
        write(folder / "safetensors", VARIANTS["pre_norm"], sharded=True)
        write(folder / "bin", VARIANTS["pre_norm"], form="bin")
        (folder / "peft").mkdir()
        lora = Lora(rank=2, targets=("query", "down"))
        adapted = dataclasses.replace(VARIANTS["pre_norm"], adapter=lora)
        adapters, _ = trainable.split(decoder.init_params(jax.random.key(0), adapted), "lora")
        weights.peft.write(folder / "peft", lora, adapters, "base")
        legacy = {"x": torch.arange(6.0).reshape(2, 3), "y": torch.ones(2)}
        torch.save(legacy, folder / "legacy.bin", _use_new_zipfile_serialization=False)
        (folder / "rows").mkdir()
        self._own()

    def _own(self) -> None:
        texts = {
            "own.jsonl": "".join(
                json.dumps(record) + "\n"
                for record in (
                    {"instruction": "Say it.", "input": "q", "output": "a", "category": "c"},
                    {"prompt": "p", "completion": "c", "candidates": ["c", "d"], "weight": 1},
                    {
                        "messages": [
                            {"role": "user", "content": "a"},
                            {"role": "assistant", "content": "b", "weight": 1},
                        ]
                    },
                    {"question": "q", "answer": "a", "history": [["x", "y"]]},
                    {"text": "document"},
                )
                * 3
            ),
            "own.csv": 'prompt,completion\n"a, b",c\n"d\ne",f\n',
            "table.tsv": "a\tb\n1\t2\n3\t4\n",
            "lines.txt": "one\ntwo\n",
            "templates.yaml": (
                "dataset: copa\ntemplates:\n  1: !Template\n    answer_choices: a ||| b\n    id: '1'\n"
                "    jinja: '{{premise}} {% if x is defined %}{{ x | upper }}{% endif %} ||| {{ answer_choices[0] }}'\n"
                "    metadata: !TemplateMetadata\n      metrics: [Accuracy]\n      original_task: true\n    name: n\n"
            ),
            "rows/train.jsonl": '{"premise": "p", "x": "y", "label": 0}\n',
        }
        for name, text in texts.items():
            (self.folder / name).write_text(text)

    def parsers(self) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
        """Name -> the file that is changed, and what reads it."""
        content = the_file(self.cache, f"tasks/{self.task}/*/train.json").parent
        answers = the_file(self.folder / sound.EVALUATION, "answers-*.jsonl")
        vocabulary = self.folder / "tokenizer"
        return {
            "task of Super-NaturalInstructions": (
                the_file(self.folder / "samples", "*001*.json"),
                lambda path: _whole(super_natural_instructions.read(path)),
            ),
            "own data in JSON lines": (self.folder / "own.jsonl", self._read_own),
            "own data in a table": (self.folder / "own.csv", self._read_own),
            "table": (self.folder / "table.tsv", lambda path: _whole(records.table(path, delimiter="\t"))),
            "lines of text": (self.folder / "lines.txt", lambda path: _whole(records.lines(path))),
            "templates of PromptSource": (self.folder / "templates.yaml", self._render),
            "rows of PromptSource": (self.folder / "rows/train.jsonl", lambda path: _whole(records.read([path]))),
            "ledger": (self.cache / "ledgers" / "samples.jsonl", self._read_ledger),
            "answers": (answers, self._read_answers),
            "samples": (self.folder / sound.EVALUATION / "samples.jsonl", read_samples),
            "log of a run": (self.folder / sound.RUN / "metrics.jsonl", lambda path: read_metrics(path.parent)),
            "header of a store": (self.cache / "store.json", self._read_store),
            "manifest": (self.manifest, self._read_store),
            "counts of a store": (content / "train.json", self._read_store),
            "index of a store": (the_file(content, "*.index"), self._read_store),
            "safetensors": (
                the_file(self.folder / "safetensors", "*.safetensors"),
                lambda path: weights.load_hf(path.parent, VARIANTS["pre_norm"]),
            ),
            "index of safetensors": (
                self.folder / "safetensors" / "model.safetensors.index.json",
                lambda path: weights.load_hf(path.parent, VARIANTS["pre_norm"]),
            ),
            "settings of peft": (
                self.folder / "peft" / weights.peft.CONFIG,
                lambda path: weights.peft.read(path.parent, VARIANTS["pre_norm"]),
            ),
            "adapters of peft": (
                self.folder / "peft" / weights.peft.TENSORS,
                lambda path: weights.peft.read(path.parent, VARIANTS["pre_norm"]),
            ),
            "config.json": (self.folder / "safetensors" / "config.json", lambda path: weights.read_config(path.parent)),
            "file of torch": (self.folder / "bin" / "pytorch_model.bin", torch_file.load),
            "legacy file of torch": (self.folder / "legacy.bin", torch_file.load),
            "merges": (vocabulary / "merges.txt", lambda path: Tokenizer.load(path.parent)),
            "vocabulary": (vocabulary / "vocab.json", lambda path: Tokenizer.load(path.parent)),
        }

    def _read_own(self, path: Path) -> None:
        jsonl._survey.cache_clear()
        benchmark = jsonl.discover(path, CacheOptions(allow_bad_records=True))
        for task in benchmark.tasks.values():
            _whole(examples(task, "train"))

    def _render(self, path: Path) -> None:
        promptsource._load.cache_clear()
        row = {"premise": "p", "x": "y", "label": 0}
        for template in promptsource.load(path):
            with contextlib.suppress(jinja_sandbox.TemplateError):
                promptsource._rendered(template, False, row, 0)

    def _read_ledger(self, path: Path) -> None:
        path.with_name("samples.about.json").unlink(missing_ok=True)  # with its checksum
        read_ledger(path)

    def _read_answers(self, path: Path) -> None:
        header = json.loads(self.sound(path).splitlines()[0])
        prompts = read_ledger(self.cache / "ledgers" / "samples.jsonl")
        with AnswerStore(path.parent, [key(prompt, 4, "sum") for prompt in prompts[:3]], header["settings"]) as store:
            assert all(isinstance(answer["prediction"], str | None) for answer in store.answers.values())

    def _read_store(self, _: Path) -> None:
        store = TokenStore.open(self.manifest)
        for i in range(3):
            store.read(self.task, SPLIT, i)
        store.check()

    def sound(self, path: Path) -> bytes:
        """The content of a file before it was changed."""
        return self.contents[path]

    contents: dict[Path, bytes]


@pytest.fixture(scope="module")
def parsers(material, tmp_path_factory) -> Parsers:
    made = Parsers(tmp_path_factory.mktemp("fuzz") / "inside", material)
    made.contents = {path: path.read_bytes() for path, _ in made.parsers().values()}
    return made


NAMES = (
    *("task of Super-NaturalInstructions", "own data in JSON lines", "own data in a table", "table", "lines of text"),
    *("templates of PromptSource", "rows of PromptSource", "ledger", "answers", "samples", "log of a run"),
    *("header of a store", "manifest", "counts of a store", "index of a store", "safetensors", "index of safetensors"),
    *(
        "settings of peft",
        "adapters of peft",
        "config.json",
        "file of torch",
        "legacy file of torch",
        "merges",
        "vocabulary",
    ),
)


def fuzz(parsers: Parsers, name: str, count: int) -> dict[str, int]:
    """Reads `count` changed inputs; returns how many were read, and how many refused."""
    path, parse = parsers.parsers()[name]
    content, outcomes = parsers.sound(path), {"read": 0, "refused": 0}
    around = sorted(parsers.folder.parent.iterdir())
    parse(path)  # what is changed is sound

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**63))
    def run(seed: int) -> None:
        path.write_bytes(Changes(seed).changed(content))
        start = time.perf_counter()
        try:
            parse(path)
            outcomes["read"] += 1
        except UserError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        assert time.perf_counter() - start < SECONDS

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        run()
    finally:
        path.write_bytes(content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIGABYTE
    assert sorted(parsers.folder.parent.iterdir()) == around
    return outcomes


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_input_is_read_or_refused(parsers, name):
    assert set(parsers.parsers()) == set(NAMES)
    outcomes = fuzz(parsers, name, SOME)
    assert sum(outcomes.values()) >= SOME // 2 and outcomes["refused"] + outcomes["read"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_changed_inputs_are_read_or_refused(parsers, name, capsys):
    outcomes = fuzz(parsers, name, MANY)
    with capsys.disabled():
        print(f"\n{name}: {outcomes['read']:,} read, {outcomes['refused']:,} refused")


@pytest.mark.parametrize("count", [SOME // 2, pytest.param(MANY, marks=pytest.mark.slow)])
def test_values_of_gin_are_read_or_refused(count):
    """In a process of its own, because gin's configuration is that of the process."""
    words = [sys.executable, "-m", "tests.hostile.test_fuzz", str(count)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["refused"] > count // 4


def fuzz_gin(count: int) -> dict[str, int]:
    """Reads settings with `count` changed values and files."""
    outcomes, changes = {"read": 0, "refused": 0}, Changes(0)
    texts = (
        b"3",
        b"'x'",
        b"[1, 'a']",
        b"{'samples': 0.5}",
        b"%SEED",
        b"@evaluate",
        b"1e-4",
        b"True",
        b"None",
        b"x/y.z",
    )
    names = ("EPS", "TASKS", "PROPORTIONS", "LEARNING_RATE", "MIXTURE", "OPTConfig.layers", "Data.fields", "REMAT")
    for _ in range(count):
        value = changes.changed(changes.choice(texts)).decode(errors="surrogateescape")
        try:
            gin_cli.read_settings(["--gin_file=tiny.gin", f"--gin.{changes.choice(names)}={value}"], "tests")
            outcomes["read"] += 1
        except UserError:
            outcomes["refused"] += 1
        gin.clear_config()
    return outcomes


if __name__ == "__main__":
    print("\n" + json.dumps(fuzz_gin(int(sys.argv[1]))))
