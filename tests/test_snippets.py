"""Every command and snippet of the documents, as it stands, in a copy of the checkout.

A small OPT with random weights stands in for `facebook/opt-125m`, and flags at the end make runs short. What needs a
GPU, a cluster, a download or hours is named in `NOT_RUN`.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers

from tests.conftest import ROOT

SHARED = ROOT.parent / "shared"
# In this order, because later ones use the runs and caches of earlier ones.
DOCUMENTS = [
    "docs/tutorial.md",
    "README.md",
    "docs/index.md",
    "docs/training.md",
    "docs/asking.md",
    "docs/adapters.md",
    "docs/weights.md",
    "docs/your_own_data.md",
    "docs/adding_a_benchmark.md",
    "docs/extending.md",
    "docs/evaluation.md",
    "docs/benchmark.md",
    "docs/mixtures.md",
    "docs/experiments.md",
    "docs/caching_on_a_cluster.md",
    "docs/cluster.md",
    "docs/small_study/report.md",
    "CONTRIBUTING.md",
]
# Document -> command that prepares the checkout for it.
BEFORE = {
    # The tutorial has used these names otherwise.
    "README.md": "rm -r cache runs/before runs/after exported",
    # The mixture that is searched for what it shares with the evaluations.
    "docs/evaluation.md": "python -m tools.cache_tasks --mixture=opt_iml --missing_benchmarks=leave_out "
    "--data_dir=data --cache_dir=cache --tokenizer=facebook/opt-125m",
}
WITHOUT = {"bibtex", "json", "dockerfile"}  # languages of blocks that are neither commands nor Python

# Start of a command or of a Python block -> why it is not run.
NOT_RUN = {
    "python3 -m venv": "installs",
    "source .venv": "the environment of the tests is used",
    "pip install": "installs",
    "python -m tools.fetch_data --data_dir": "download",
    "tools/demo.sh": "installs; its command is the first of the preparation",
    "tools/test": "the tests themselves",
    ".venv/bin/python -m pytest": "the tests themselves",
    "python -m optiml_jax.harness": "download of the harness's tasks",
    "python -m optiml_jax.train --gin_file=opt30b_iml.gin": "a cluster of GPUs",
    "python -m tools.convert_weights --source=opt_1.3b": "download of Meta's checkpoint",
    "python -m tools.run_sweep": "hours; the experiments have tests of their own",
    "python -m tools.compare_runs --sweep": "needs the sweep above it",
    "python -m tools.paper_tables": "needs the runs of the paper's experiments",
    "tools/small_study/run.sh": "an hour; it has a test of its own",
    "python -m tools.cache_tasks --mixture=super_natural_instructions --data_dir=/shared": "a Flink cluster",
    "python -m tools.cache_tasks ... --runner": "a Spark cluster or Dataflow",
    "sbatch": "Slurm; tests/tools/test_launch.py runs the script",
    "docker build": "Docker",
    '"""Attention mask': "an example of style",
}
SHORT = {  # start of a command -> flags that make it short
    "python -m optiml_jax.train --gin_file=tiny.gin": (),
    "python -m optiml_jax.train": (
        *(
            "TRAIN_STEPS=2",
            "WARMUP_STEPS=1",
            "BATCH_ROWS=1",
            "ROW_LENGTH=1024",
            "PRECISION=fp32",
            "REMAT=none",
            "Computation.accumulation=1",
        ),
        *("OPTConfig.layers=2", "OPTConfig.model_dim=64", "OPTConfig.heads=2", "OPTConfig.ffn_dim=128"),
        *("LIMIT=1", "MAX_NEW_TOKENS=4"),
    ),
    "python -m optiml_jax.evaluate --gin_file=evaluate.gin --gin.WEIGHTS=runs/r": (),  # recipes and riddles
    "python -m optiml_jax.evaluate": ("LIMIT=1", "MAX_NEW_TOKENS=4"),
}
# The module that a Python block is, or to which it is added, by its first line.
MODULES = {
    '"""Riddles: tab-separated': "tasks/benchmarks/riddles.py",
    '"""Riddles: the held-out task, and': "tasks/suites/riddles.py",
    '"""Riddles: the held-out task, with': "tasks/suites/riddles_few_shot.py",
    "def same_length": "optiml_jax/evaluation/metrics/definitions.py",
}
REQUESTS = (
    """{"instruction": "Name it.", "input": "a day"}\n"""  # for the interactive commands and the file of requests
)


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    text: str


@functools.cache
def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [Block(*pair) for pair in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)]


def commands(text: str) -> list[str]:
    """The commands of a block. Lines that end in a backslash and here-documents go on."""
    result, lines = [], iter(text.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = f"{line[:-1]}{next(lines).strip()}"
        if marker := re.search(r"<<'(\w+)'$", line):
            for following in lines:
                line += f"\n{following}"
                if following == marker[1]:
                    break
        line = re.sub(r"(^|\s{2,})# .*$", "", line)
        if line.strip():
            result.append(line)
    return result


def starts(text: str, table: dict) -> str | None:
    """The first key of the table with which the text starts."""
    return next((key for key in table if text.startswith(key)), None)


def short(command: str) -> str:
    """The command with flags that make it short, in the checkout instead of on a shared disk."""
    flags = SHORT.get(starts(command, SHORT) or "", ())
    return " ".join([command.removesuffix(" ...").replace("/shared/", ""), *(f"--gin.{flag}" for flag in flags)])


def hub(folder: Path) -> None:
    """The hub's cache with a small OPT, as `facebook/opt-125m` is there, under the names that the documents use."""
    for name in ("opt-125m", "opt-6.7b", "opt-iml-1.3b"):
        snapshot = folder / f"models--facebook--{name}" / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("0123abc")
        for file in (SHARED / "tokenizer").iterdir():
            shutil.copy(file, snapshot)
        shape = {"hidden_size": 64, "word_embed_proj_dim": 64, "num_hidden_layers": 2, "ffn_dim": 128}
        config = transformers.OPTConfig(vocab_size=50272, num_attention_heads=2, max_position_embeddings=2048, **shape)
        torch.manual_seed(0)
        weights = transformers.OPTForCausalLM(config).state_dict()
        torch.save({key: value.half() for key, value in weights.items()}, snapshot / "pytorch_model.bin")
        (snapshot / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["OPTForCausalLM"]}))


def recipes(path: Path) -> None:
    """Two hundred records in the forms of docs/your_own_data.md."""
    foods = ["flour", "sugar", "butter", "milk", "salt", "rice", "beans", "cheese"]
    records = []
    for i in range(50):
        single, other = foods[i % 8], foods[(3 * i + 1) % 8]
        output = [
            {"role": "user", "content": f"I have {i} {single}."},
            {"role": "assistant", "content": f"Cook the {single}."},
        ]
        records += [
            {"instruction": "Name the first one.", "input": f"{i} {single} and {other}", "output": single},
            {
                "instruction": "Is it sweet?",
                "context": f"{i} spoons of {single}",
                "response": "yes" if i % 8 == 1 else "no",
            },
            {"prompt": f"How many are {i} {single} and one more?\nA:", "completion": f" {i + 1}"},
            {"messages": output},
        ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def riddles(folder: Path) -> None:
    """The files of docs/adding_a_benchmark.md."""
    folder.mkdir()
    for split, count in (("animals_train", 200), ("animals_dev", 20), ("things_test", 20)):
        lines = [
            f"It has {i % 9} legs and sings.\tbird\n" if i % 2 else f"It barks {i} times.\tdog\n" for i in range(count)
        ]
        (folder / f"{split}.tsv").write_text("".join(lines))


class Checkout:
    """A copy of the checkout in which the documents are followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.folder.mkdir()
        for name in ("optiml_jax", "tasks", "tools", "gin", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, self.folder / name, ignore=ignored)
        shutil.copytree(ROOT / "docs", self.folder / "docs")
        data = self.folder / "data"
        data.mkdir()
        for name in ("super_natural_instructions", "opt_eval", "mmlu", "bbh", "flan"):
            (data / name).symlink_to(SHARED / "data" / name)
        riddles(data / "riddles")
        recipes(self.folder / "recipes.jsonl")
        (data / "jsonl").mkdir()
        shutil.copy(self.folder / "recipes.jsonl", data / "jsonl")
        (self.folder / "requests.jsonl").write_text(REQUESTS)
        hub(folder / "hub")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = {"PYTHONPATH": str(self.folder), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PATH": path}
        self._environment = os.environ | variables | {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}

    def run(self, command: str) -> str:
        """Runs a command of bash to its end; returns its output."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._environment,
            input=REQUESTS,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        return done.stdout

    def python(self, text: str) -> None:
        """Runs a block of Python, or writes it where the document says."""
        if module := MODULES.get(starts(text, MODULES) or ""):
            with (self.folder / module).open("a", encoding="utf-8") as file:
                file.write(f"\n\n{text}" if file.tell() else text)
        else:
            (self.folder / "snippet.py").write_text(text)
            self.run("python snippet.py")


@pytest.fixture(scope="module")
def checkout(shared, tmp_path_factory) -> Checkout:
    copy = Checkout(tmp_path_factory.mktemp("documents"))
    flags = "--gin.TRAIN_STEPS=4 --gin.WARMUP_STEPS=2 --gin.LIMIT=2 --gin.MAX_NEW_TOKENS=4"
    copy.run(f"python -m optiml_jax.train --gin_file=tiny.gin {flags}")  # that of tools/demo.sh, shorter
    return copy


def test_every_block_is_either_run_or_named():
    everything = [block for document in DOCUMENTS for block in blocks(document)]
    listed = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]}
    others = [block for document in listed - {*DOCUMENTS} for block in blocks(document)]
    assert {block.language for block in others} <= {"", *WITHOUT}
    assert {block.language for block in everything} <= {"bash", "sh", "python", "", *WITHOUT}
    plain = [block.text for block in [*everything, *others] if not block.language]
    assert not [text for text in plain if text.startswith(("python ", "pip ", "tools/", "import "))]
    texts = [block.text for block in everything if block.language == "python"]
    texts += [text for block in everything if block.language in ("bash", "sh") for text in commands(block.text)]
    for table in (NOT_RUN, SHORT, MODULES):
        assert [key for key in table if starts_nothing(key, texts)] == []


def starts_nothing(key: str, texts: list[str]) -> bool:
    return not any(text.startswith(key) for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_is_followed_to_the_letter(checkout, document):
    if document in BEFORE:
        checkout.run(BEFORE[document])
    skipped = []
    for block in blocks(document):
        if block.language == "python":
            texts = [block.text]
        else:
            texts = commands(block.text) if block.language in ("bash", "sh") else []
        for text in texts:
            if reason := starts(text, NOT_RUN):
                skipped.append(f"{text.splitlines()[0]} ({NOT_RUN[reason]})")
            elif block.language == "python":
                checkout.python(text)
            else:
                checkout.run(short(text))
    print(*skipped, sep="\n")
    CHECKS.get(document, lambda folder: None)(checkout.folder)


# Checks of the files that a document's commands write.


def check_recipes(folder: Path) -> None:
    assert len(commands(blocks("docs/your_own_data.md")[0].text)) == 4
    steps = [json.loads(line)["step"] for line in (folder / "runs/recipes/metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 20
    assert "<title>" in (folder / "recipes.html").read_text(encoding="utf-8")
    for name in ("evaluation/jsonl", "again"):
        report = json.loads((folder / "runs/recipes" / name / "results.json").read_text())
        assert report["tasks"]["jsonl.recipes"]["examples"] == 20
        assert (folder / "runs/recipes" / name / "report.html").stat().st_size > 1000


def check_riddles(folder: Path) -> None:
    written = [block.text for block in blocks("docs/adding_a_benchmark.md") if block.language]
    assert len("".join(written).splitlines()) < 60
    report = json.loads((folder / "runs/riddles/evaluation/riddles/results.json").read_text())
    requests = {name: task["examples"] for name, task in report["tasks"].items()}
    assert requests == {"riddles.animals": 20, "riddles.things": 20}
    assert report["levels"].keys() == {"held_out_task", "held_out_instances"}
    assert (folder / "runs/riddles/evaluation/riddles/report.html").stat().st_size > 1000


def check_extensions(folder: Path) -> None:
    report = json.loads((folder / "runs/riddles/evaluation/riddles_few_shot/results.json").read_text())
    assert report["tasks"]["riddles.things"]["shots"].keys() == {"0", "3"}


def check_tutorial(folder: Path) -> None:
    for name in ("runs/before", "runs/after/evaluation/super_natural_instructions"):
        assert (folder / name / "report.html").stat().st_size > 1000
    assert (folder / "runs/compared/comparison.html").stat().st_size > 1000
    assert transformers.OPTForCausalLM.from_pretrained(folder / "exported").config.num_hidden_layers == 2


CHECKS = {
    "docs/tutorial.md": check_tutorial,
    "docs/your_own_data.md": check_recipes,
    "docs/adding_a_benchmark.md": check_riddles,
    "docs/extending.md": check_extensions,
}


@pytest.mark.slow
def test_commands_within_sentences_have_flags_that_exist():
    inline: dict[str, set[str]] = {}
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for line in re.findall(r"`python -m ([^`]*)`", path.read_text(encoding="utf-8")):
            module, *words = line.split()
            if words and module == "tools.benchmark":  # what is measured is a subcommand
                module = f"{module} {words.pop(0)}"
            flags = {word.partition("=")[0] for word in words if word.startswith("--")}
            inline.setdefault(module, set()).update(flag for flag in flags if not flag.startswith("--gin."))
    assert len(inline) > 15
    for module, flags in inline.items():
        assert (ROOT / f"{module.split()[0].replace('.', '/')}.py").exists(), module
        if flags:
            words = [sys.executable, "-m", *module.split(), "--help"]
            text = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            assert not {flag for flag in flags if flag not in text}, module
