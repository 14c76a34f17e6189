"""Command lines that a user can get wrong: each ends in one line that names the flag, the setting or the file."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from tasks.benchmarks.samples import TOKENIZER
from tests.commands import run_all
from tests.hostile import material as sound
from tests.test_train import environment

LONG = "x" * 300  # longer than a file's name may be
NOT_A_FOLDER = "/dev/null/x"

# Macro or parameter of training -> wrong values; the message names the last part of it.
TRAINING = {
    "PROPORTIONS": ("x", {"samples": "x"}, [1], {"samples": None}, (1,), True, 3, {"samples": -1}, {3: 1}, {}),
    "TOKEN_SHARES": (3, {"samples": "x"}, {"samples": 1}, {"nope": 0.1}, {"samples": -0.1}),
    "TASKS": (3, [3], [None], "samples.*", [], {"a": 1}, True, ["nope.*"]),
    "CATEGORIES": (3, [3], [None], "x", [], {"a": 1}, True, ["nope"]),
    "BATCH_ROWS": (10**12, -1, 0, 1.5, None, [1], True, "4x"),
    "ROW_LENGTH": (1, "x", 10**9, 1e300),
    "MIXTURE": ("", ["samples"], "samples+samples", "+", "a/b", "*", "sampels"),
    "MODEL_DIR": ("a\0b", LONG, ["x"], "", "gs://bucket/run"),
    "CACHE_DIR": ("a\0b", LONG, ["x"], "s3://bucket"),
    "DATA_DIR": (["x"], "gs://bucket"),
    "TOKENIZER": (3, ["x"], "no/such/tokenizer"),
    "INIT_WEIGHTS": (3, {"x": 1}, "./nowhere"),
    "OBJECTIVE": ("x", ["x"], None),
    "SEED": (-1, 2**64, "x", 1.5),
    "EPS": (0, "x", 1.5),
    "SCALE_TASKS": ("x", 0, 10**9),
    "SCALE_CATEGORIES": ("x", 0, 10**9),
    "DEMONSTRATIONS": ("x", -1, True),
    "TRAIN_STEPS": (1e30, 0, "x", 4.5),
    "LEARNING_RATE": ("x", -1, True, 0),
    "WARMUP_STEPS": (-1, "x"),
    "PRECISION": ("int8", 3),
    "REMAT": ("x", 3),
    "VALIDATE_EVERY": (-1, "x"),
    "Computation.attention": ("x", "flash", "triton", 3, None),
    "Computation.layers": ("x", 3),
    "Computation.accumulation": (0, 3, "x"),
    "Data.demonstration_separator": ("x", 3, ""),
    "Logging.peak_flops": ("x", -1),
    "OPTConfig.embedding_dim": ("x", 0),
    "OPTConfig.heads": (0, 7, "x"),
    "OPTConfig.model_dim": (2**40, 0),
    "OPTConfig.dropout": (1.0, "x"),
    "Mesh.devices": (3, "x"),
    "train.model": ("x", 3),
    "train.mesh": ("x", 3),
    "train.hooks": ("x",),
    "train.evaluate_after": ("x", 3),
    "train.validation": ("x", 3),
}
EVALUATION = {
    "SHOTS": ([], [0, "x"], 1.5, "x", {"a": 1}, [None], -1, True),
    "SUITE": (["bbh"], "samples,samples", "", "samples,", "nope"),
    "LEDGER": (["x"], {"a": 1}, "nowhere.jsonl", 3),
    "WEIGHTS": (["x"], {"a": 1}, "./nowhere", 3),
    "OUTPUT_DIR": (["x"], {"a": 1}, LONG, NOT_A_FOLDER),
    "RANKED_BY": (["x"], 3, "x"),
    "PRECISION": (["x"], 3, "int8"),
    "TEMPLATES": (["x"], 3, "x"),
    "LIMIT": (["x"], "x", 1.5, -1),
    "MAX_NEW_TOKENS": (["x"], "x", 1.5, 0),
    "EVALUATION_ROWS": (["x"], "x", 0),
    "TENSOR_AXIS": ("x", 0),
    "evaluate.mesh": ("x", 3),
}
# What the message says where it does not repeat the name of the setting.
SAYS = {
    ("MIXTURE", "samples+samples"): "samples is twice in it",
    ("MIXTURE", "+"): "no benchmark",
    ("MIXTURE", "sampels"): "did you mean samples",
    ("MODEL_DIR", LONG): "File name too long",
    ("CACHE_DIR", LONG): "File name too long",
    ("OUTPUT_DIR", LONG): "File name too long",
    ("OUTPUT_DIR", NOT_A_FOLDER): "/dev/null: not a folder",
    ("INIT_WEIGHTS", 3): "3: neither a directory nor a hub name",
    ("INIT_WEIGHTS", "./nowhere"): "nowhere",
    ("TOKENIZER", "no/such/tokenizer"): "no/such/tokenizer",
    ("WEIGHTS", "./nowhere"): "nowhere: neither a directory",
    ("WEIGHTS", 3): "3: neither a directory",
    ("LEDGER", "nowhere.jsonl"): "nowhere.jsonl: no such ledger",
    ("LEDGER", 3): "3: no such ledger",
    ("SUITE", "nope"): "nope.jsonl: no such ledger",
}
# Macros whose parameter has another name.
PARAMETERS = {"VALIDATE_EVERY": "Validation.every", "EVALUATION_ROWS": "batch_rows", "TENSOR_AXIS": "Axes.tensor"}
GIN_FILES = {
    "circle": (b"include 'tiny.gin'\nA = %B\nB = %A\nTRAIN_STEPS = %A\n", "circle: A -> B -> A"),
    "not UTF-8": (b"\xff\xfe = 3", "is not UTF-8"),
    "NUL": (b"A = 'a\0b'\n", "has a NUL character"),
    "syntax": (b"A = (\n", "EOF in multi-line statement"),
    "no literal": (b"include 'tiny.gin'\nPROPORTIONS = {'samples': nan}\n", "not a Python literal"),
    "includes nothing": (b"include 'nowhere.gin'\n", "nowhere.gin"),
    "includes itself": (b"include 'includes itself.gin'\n", "recursion"),
    "imports": (b"import nowhere.at.all\n", "No module named 'nowhere'"),
    "deep": (b"A = " + b"[" * 5000 + b"\n", "recursion"),
    "empty": (b"", "no gin file sets train.model, train.optimization"),
}


def cases(material: Path, folder: Path) -> dict[str, tuple[str, list[str], str]]:
    """Name -> module, words, and what the message says."""
    made: dict[str, tuple[str, list[str], str]] = {}
    for setting, values in TRAINING.items():
        for value in values:
            words = sound.training(material, folder / "new", **{"VALIDATE_EVERY": 0, setting: value})
            made[f"train {setting}={value!r}"] = "optiml_jax.train", words, _says(setting, value)
    for setting, values in EVALUATION.items():
        for value in values:
            of_suite = {"LEDGER": None, "CACHE_DIR": str(material / sound.CACHE)} if setting == "SUITE" else {}
            words = sound.evaluation(material, folder / "new", **of_suite | {setting: value})
            made[f"evaluate {setting}={value!r}"] = "optiml_jax.evaluate", words, _says(setting, value)
    for name, (content, says) in GIN_FILES.items():
        file = folder / f"{name}.gin"
        file.write_bytes(content)
        words = [f"--gin_file={file}", f"--gin_search_paths={folder}"]
        made[f"gin {name}"] = "optiml_jax.train", words, says
    for name, (words, says) in (_places(material, folder) | _flags(material, folder) | _data(folder)).items():
        made[name] = f"tools.{words[0]}" if "." not in words[0] else words[0], [*map(str, words[1:])], says
    return made


def _says(setting: str, value: object) -> str:
    known = {key: says for key, says in SAYS.items() if key[0] == setting and key[1] == value}
    return next(iter(known.values()), PARAMETERS.get(setting, setting.rpartition(".")[2]))


def _places(material: Path, folder: Path) -> dict[str, tuple[list, str]]:
    """Outputs whose place is taken, or cannot be written."""
    occupied, file = folder / "occupied", folder / "file"
    occupied.mkdir()
    file.write_text("")
    cache, evaluation = f"--cache_dir={material / sound.CACHE}", material / sound.EVALUATION
    files = {
        "inspect_mixture --html": ["inspect_mixture", "--mixture=samples", cache, "--html="],
        "inspect_mixture --json": ["inspect_mixture", "--mixture=samples", cache, "--json="],
        "find_overlap": ["find_overlap", "--train=samples", "--eval=samples", cache, "--processes=1", "--output="],
        "export_predictions": ["export_predictions", evaluation, "--output="],
        "paper_tables": ["paper_tables", "--table=1", "--output="],
        "dataset_statistics": ["dataset_statistics", "--json="],
    }
    folders = {
        "cache_tasks": ["cache_tasks", "--mixture=samples", "--cache_dir="],
        "convert_weights": ["convert_weights", f"--source={material / sound.RUN}", "--to=hf", "--target="],
        "compare_runs": ["compare_runs", evaluation, material / "other", "--output="],
        "run_sweep": ["run_sweep", "--sweep=eps", "--output="],
        "fetch_data": ["fetch_data", "--benchmarks=bbh", "--mirror=file:///nowhere", "--data_dir="],
    }
    made = {}
    places = [(occupied, "occupied: is a folder"), (file, "file: "), (NOT_A_FOLDER, "/dev/null"), (folder / LONG, LONG)]
    for commands, wrong in ((files, places[:1] + places[2:]), (folders, places[1:])):
        for name, words in commands.items():
            made |= {f"{name} {says}": ([*words[:-1], f"{words[-1]}{place}"], says) for place, says in wrong}
    for name in ("samples.jsonl", "report.html", "results.json", "evaluation.json", "report.md", "chain.txt", ".lock"):
        (folder / f"in {name}" / name).mkdir(parents=True)
        words = sound.evaluation(material, folder / f"in {name}")
        made[f"evaluate into a folder {name}"] = ["optiml_jax.evaluate", *words], f"in {name}"
    for name in ("checkpoints", "tokenizer", "tensorboard", "best"):
        (folder / f"run {name}").mkdir()
        (folder / f"run {name}" / name).write_text("")
        made[f"train into a file {name}"] = (
            ["optiml_jax.train", *sound.training(material, folder / f"run {name}")],
            f"{name}: is a file",
        )
    made["cache in a run"] = (
        ["cache_tasks", "--mixture=samples", f"--cache_dir={material / sound.RUN}"],
        "holds files but no token store",
    )
    return made


def _flags(material: Path, folder: Path) -> dict[str, tuple[list, str]]:
    cache, export, run = material / sound.CACHE, material / sound.EXPORT, material / sound.RUN
    inspect = ["inspect_mixture", "--mixture=samples", f"--cache_dir={cache}"]
    made: dict[str, tuple[list, str]] = {
        f"inspect {flag}": ([*inspect, flag], flag.partition("=")[0])
        for flag in ("--train_tokens=-1", "--train_tokens=nan", "--train_tokens=inf", "--examples=-1", "--nope=3")
    }
    for name in ("Nope", "apache_beam.nope.Runner", ""):
        runner = f"--runner={name}"
        made[f"cache {runner}"] = ["cache_tasks", "--mixture=samples", f"--cache_dir={folder / 'c'}", runner], runner
        words = ["find_overlap", "--train=samples", "--eval=samples", f"--cache_dir={cache}"]
        made[f"overlap {runner}"] = [*words, f"--output={folder / 'o.tsv'}", runner], runner
    for flag in ("--suite=", "--suite=samples,", "--suite=samples,samples", "--mixture=", "--mixture=nope", "--check"):
        says = "mixture nope" if flag.endswith("nope") else "--suite"
        made[f"cache {flag}"] = ["cache_tasks", f"--cache_dir={folder / 'c'}", flag], says
    for address in ("/nowhere", "http://[::x", "http://a b", "ftp://", "x"):
        words = ["fetch_data", f"--data_dir={folder / 'f'}", "--benchmarks=bbh", f"--mirror={address}"]
        made[f"fetch {address}"] = words, f"--mirror={address}"
    for source, target in ((export, export), (export, export / "x"), (run, run), (run, run / "x"), (run, material)):
        words = ["convert_weights", f"--source={source}", f"--target={target}", "--to=hf"]
        made[f"convert {source.name} to {target.name}"] = words, f"--target={target}"
    for flag in ("--dtype=int8", "--to=x"):
        words = ["convert_weights", f"--source={export}", f"--target={folder / 'w'}", "--to=hf", flag]
        made[f"convert {flag}"] = words, flag.partition("=")[0]
    made["render nothing"] = ["render_report", folder], "has no evaluation.json"
    return made


def _data(folder: Path) -> dict[str, tuple[list, str]]:
    """Raw data of several benchmarks, each damaged as a whole or in a record."""
    deep, digits = b"[" * 200_000, b'{"Definition": ' + b"1" * 10_000 + b"}"
    task = {"Definition": ["Say it."], "Categories": ["x"], "Instances": [{"id": "1", "input": "q", "output": ["x"]}]}
    wholes: dict[str, bytes] = {"deep": deep, "digits": digits, "empty": b"", "list": b"[]", "latin": b'"\xff"'}
    wholes |= {
        f"{field} {value!r}": json.dumps(task | {field: value}).encode()
        for field, value in itertools.product(("Categories", "Definition", "Instances"), (3, [3], {"a": 1}))
    }
    made: dict[str, tuple[list, str]] = {}

    def cache(name: str, mixture: str, data: Path, says: str) -> None:
        words = [f"--data_dir={data}", f"--cache_dir={folder / f'cache of {name}'}", f"--tokenizer={TOKENIZER}"]
        made[f"{mixture} {name}"] = ["cache_tasks", f"--mixture={mixture}", *words], says

    for name, content in wholes.items():
        benchmark = folder / f"sni {name}" / "super_natural_instructions"
        for path, text in (
            ("splits/default/train_tasks.txt", b"task1_a\n"),
            ("splits/default/test_tasks.txt", b""),
            ("splits/default/excluded_tasks.txt", b""),
            ("tasks/task1_a.json", content),
        ):
            (benchmark / path).parent.mkdir(parents=True, exist_ok=True)
            (benchmark / path).write_bytes(text)
        cache(f"sni {name}", "super_natural_instructions", benchmark.parent, "task1_a.json")
    latin = folder / "sni latin list" / "super_natural_instructions"
    shutil.copytree(folder / "sni list" / "super_natural_instructions", latin)
    (latin / "splits/default/train_tasks.txt").write_bytes(b"task1_a\n\xff\n")
    cache("sni latin list", "super_natural_instructions", latin.parent, "train_tasks.txt: not UTF-8")
    record = {"prompt": "p", "completion": "c"}
    for name, lines, says in (
        ("long category", [record | {"category": "x" * 300}], "longer than 200 bytes"),
        ("role", [{"messages": [{"role": {}, "content": "a"}, {"role": "assistant", "content": "b"}]}], "role"),
        ("numbers", [3], "own numbers.jsonl"),
        ("surrogate", [record | {"completion": "\ud83d"}], "half a surrogate pair"),
    ):
        path = folder / f"own {name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines * 20))
        cache(f"own {name}", "jsonl", path, says)
    for name, content in {"deep": deep, "latin": b"\xff", "tag": b"!!python/object/apply:os.system ['true']\n"}.items():
        data = folder / f"promptsource {name}" / "promptsource"
        (data / "templates" / "copa").mkdir(parents=True)
        (data / "rows" / "copa").mkdir(parents=True)
        (data / "templates" / "copa" / "templates.yaml").write_bytes(content)
        (data / "rows" / "copa" / "train.jsonl").write_text('{"a": "b"}\n')
        cache(f"promptsource {name}", "promptsource", data.parent, "templates.yaml")
    return made


@pytest.fixture(scope="module")
def outcomes(material, tmp_path_factory):
    """Name -> what the message must say, exit code and stderr; and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("commands")
    made = cases(material, folder)
    results = run_all([(module, words) for module, words, _ in made.values()], environment())
    return {name: (case[2], *result) for (name, case), result in zip(made.items(), results, strict=True)}, folder


def test_each_is_one_line_that_names_the_mistake(outcomes):
    results, _ = outcomes
    assert len(results) > 250
    wrong = []
    for name, (says, code, stderr) in results.items():
        lines = [line for line in stderr.splitlines() if line and not line.startswith("caching")]
        one_line = len(lines) == 1 and lines[0].startswith("error: ")
        if code != 2 or not one_line or says.lower() not in lines[0].lower():
            wrong.append((name, says, code, stderr[-500:]))
    assert not wrong, "\n".join(map(str, wrong))


def test_nothing_is_left_half_written(outcomes):
    _, folder = outcomes
    assert not [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".partial"))]
    assert not (folder / "new" / "checkpoints").exists() and not (folder / "new" / "samples.jsonl").exists()
