"""FLAN (Wei et al. 2022): ten pairs of patterns per task, over the rows of data sets.

The patterns are read from a user's checkout of github.com/google-research/flan (`flan/templates.py`, whose dictionary
PATTERNS is parsed, never run). The rows are in `rows/<data set>/[<config>/]<split>.jsonl` or any other file of
`tasks/reading/records.py`, with the field names of TensorFlow Datasets or of `datasets`; missing
rows are searched in PromptSource's folder beside this one. `tasks/reading/flan_fields.py` maps the fields of a row to
those of a template.

Pairs whose target differs from that of their task are left out (paper 2.4) unless `catalog/templates.tsv` keeps them,
with a reason for each. Train splits are the first 30,000 rows, as in FLAN.
"""

import ast
import collections
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from optiml_jax.common.errors import DataError
from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import RANK
from tasks.catalog.registry import Benchmark, CatalogRow, MissingError, catalog, reviewed_templates
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import prompts
from tasks.reading import records
from tasks.reading.fields import UnusableError
from tasks.reading.flan_fields import fields_of
from tasks.task import Task

NAME = "flan"
MAX_EXAMPLES = 30_000
FEW = 10  # one row in FEW is held out if FLAN's number is too large for the data
MAX_FILE = 4 << 20
PLACES = ("templates.py", "flan/templates.py", "flan/flan/templates.py")
FIELD = re.compile(r"{(\w*)}")
# Tasks that share the patterns of one key.
KEYS = {"arc_challenge": "arc", "arc_easy": "arc", "para_crawl_enes": "para_crawl"}
KEYS |= {f"anli_r{i}": "anli" for i in (1, 2, 3)} | {f"mnli_{kind}": "mnli" for kind in ("matched", "mismatched")}
KEYS |= {f"wmt16_translate_{pair}": "wmt16_translate" for pair in ("deen", "tren", "csen", "fien", "roen", "ruen")}
# Where `datasets` has the rows that TensorFlow Datasets has under the catalog's name.
ALSO = {
    "openbookqa": "openbookqa/additional",
    "squad/v1.1": "squad",
    "squad/v2.0": "squad_v2",
    "bool_q": "super_glue/boolq",
    "super_glue/wsc": "super_glue/wsc.fixed",
    "ag_news_subset": "ag_news",
    "imdb_reviews/plain_text": "imdb",
    "yelp_polarity_reviews": "yelp_polarity",
    "paws_wiki": "paws/labeled_final",
    "trivia_qa/rc": "trivia_qa",
    "natural_questions_open": "nq_open",
    "cnn_dailymail": "cnn_dailymail/3.0.0",
    "winogrande": "winogrande/winogrande_xl",
    "story_cloze/2016": "story_cloze",
}
# Validation examples that FLAN takes from the end of the train split, 200 where nothing is said. Then what others call
# validation is its test split, where test labels are hidden.
CARVED = {"wsc": 50, "cb": 50, "copa": 50, "wnli": 30, "piqa": 100, "stsb": 100, "coqa": 100}
CARVED |= {"opinion_abstracts_rotten_tomatoes": 100, "opinion_abstracts_idebate": 100}
OWN_VALIDATION = {
    "aeslc",
    "cnn_dailymail",
    "gigaword",
    "multi_news",
    "newsroom",
    "samsum",
    "xsum",
    "wiki_lingua_english_en",
}
OWN_VALIDATION |= {"paws_wiki", "snli", "openbookqa", "wmt14_enfr"}
OWN_VALIDATION |= {task for task, key in KEYS.items() if key in ("anli", "wmt16_translate")}
TEST_LABELS = {"ag_news_subset", "arc_challenge", "arc_easy", "imdb_reviews", "math_dataset", "sentiment140", "trec"}
TEST_LABELS |= {"yelp_polarity_reviews", "coqa", "wsc273", "story_cloze", "definite_pronoun_resolution"}
# Three tasks take different stretches of one data set.
STARTS = {"fix_punct": 30_200, "word_segment": 60_400}


class Pattern(NamedTuple):
    """A pair of `templates.py`; `id`: its key and index."""

    id: str
    source: str
    target: str


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks that have rows.

    Raises:
      MissingError: no patterns.
      DataError: a file without patterns.
    """
    rows = catalog(NAME)
    path = next((directory / name for name in PLACES if (directory / name).is_file()), None)
    if path is None:
        raise MissingError(f"{directory}: no flan/templates.py; put github.com/google-research/flan there")
    patterns = load(path)
    decisions = reviewed_templates(NAME)
    tasks, left_out = {}, []
    for row in rows.values():
        stem = row.name.removeprefix(f"{NAME}.")
        folders = [
            base / folder for base in _bases(directory) for folder in (row.source, ALSO.get(row.source)) if folder
        ]
        available = next(
            (records.splits(folder) for folder in folders if folder.is_dir() and records.splits(folder)), None
        )
        if available is None:
            continue
        key = KEYS.get(stem, stem)
        if key not in patterns:
            left_out.append(Skipped(str(path), f"no patterns of {key}"))
            continue
        selected, dropped = reviewed(patterns[key], decisions, options.all_templates)
        left_out += [Skipped(f"{path}#{pattern.id}", reason) for pattern, reason in dropped]
        tasks[row.name] = _task(row, stem, path, _splits(stem, available), selected, options)
    return Benchmark(tasks, tuple(left_out), rows)


def _bases(directory: Path) -> tuple[Path, Path]:
    return directory / "rows", directory.parent / "promptsource" / "rows"


@functools.lru_cache(maxsize=8)
def _load(path: Path, stamp: tuple[int, int]) -> dict[str, tuple[Pattern, ...]]:
    try:
        tree = ast.parse(path.read_bytes().decode("utf-8"))
        assigned = (node for node in tree.body if isinstance(node, ast.Assign))
        values = [node.value for node in assigned if [ast.unparse(name) for name in node.targets] == ["PATTERNS"]]
        content = ast.literal_eval(values[-1]) if values else None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start:,}") from None
    except SyntaxError as error:
        raise DataError(f"{path}:{error.lineno}: not Python ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError, TypeError) as error:
        raise DataError(f"{path}: PATTERNS is more than texts ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: no dictionary PATTERNS; it is flan/templates.py of the official repository")
    for key, pairs in content.items():
        if not isinstance(key, str) or not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
            raise DataError(f"{path}: PATTERNS[{key!r}] is no list of pairs of texts")
    return {
        key: tuple(Pattern(f"{key}_{index}", *pair) for index, pair in enumerate(pairs))
        for key, pairs in content.items()
    }


def _is_pair(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def load(path: Path) -> dict[str, tuple[Pattern, ...]]:
    """Reads the patterns of a `templates.py` by key. The file is parsed as data; nothing in it is run.

    Raises:
      DataError: the file is not Python, or PATTERNS is not a dictionary of lists of pairs of texts.
    """
    status = path.stat()
    if status.st_size > MAX_FILE:
        raise DataError(f"{path}: {status.st_size:,} bytes; the official file has 61,533")
    return _load(path, (status.st_mtime_ns, status.st_size))


def reviewed(
    patterns: Sequence[Pattern], decisions: Mapping[str, tuple[str, str]], everything: bool = False
) -> tuple[list[Pattern], list[tuple[Pattern, str]]]:
    """Returns the pairs to use, and the others with the reason."""
    usual = collections.Counter(pattern.target for pattern in patterns).most_common(1)[0][0]
    selected, dropped = [], []
    for pattern in patterns:
        decision, reason = decisions.get(pattern.id, ("drop", "another target than the task's, and not reviewed"))
        if everything or pattern.target == usual or decision == "keep":
            selected.append(pattern)
        else:
            dropped.append((pattern, reason))
    return selected, dropped


class Stretch(NamedTuple):
    """A range of rows: `count` from `start`, without the last `without`, or only the last `last`.

    If the held-out end would be half of the rows or more, it is a tenth.
    """

    files: tuple[Path, ...]
    start: int = 0
    count: int | None = None
    without: int = 0
    last: int = 0


def _splits(task: str, available: Mapping[str, tuple[Path, ...]]) -> dict[str, Stretch]:
    """Maps the splits of a data set to FLAN's."""
    stretches = {}
    train = next((available[name] for name in ("train", "train_xl", "train_r" + task[-1]) if name in available), ())
    matched = "validation_mismatched" if task == "mnli_mismatched" else "validation_matched"
    names = (matched, "validation", "dev", "dev_r" + task[-1])
    validation = next((available[name] for name in names if name in available), ())
    test = available.get("test", available.get("test_r" + task[-1], ()))
    carved = 0 if task in OWN_VALIDATION or not train else CARVED.get(task, 200)
    if train:
        stretches["train"] = Stretch(train, STARTS.get(task, 0), MAX_EXAMPLES, carved)
    if carved:
        stretches["validation"] = Stretch(train, last=carved)
        test = test if task in TEST_LABELS else validation
    elif validation:
        stretches["validation"] = Stretch(validation)
    if test:
        stretches["test"] = Stretch(test)
    return stretches


def released(task: str) -> tuple[str, ...]:
    """The splits of a task with rows of the release's validation or test sets, the one to validate on first.

    FLAN takes the "validation" split of most tasks from the end of their train split, on which others train; the
    release's validation set is then the split "test".
    """
    return ("validation", "test") if task in OWN_VALIDATION else ("test",)


def _task(
    row: CatalogRow,
    stem: str,
    path: Path,
    splits: Mapping[str, Stretch],
    patterns: Sequence[Pattern],
    options: CacheOptions,
) -> Task:
    files = dict.fromkeys(file for stretch in splits.values() for file in stretch.files)
    return Task(
        name=row.name,
        benchmark=NAME,
        category=row.category,
        source=row.source,
        files=(path, *files),
        splits=tuple(splits),
        templates=tuple(Template(pattern.id, Metric(row.metric), output_type=row.output_type) for pattern in patterns),
        read=functools.partial(_read, splits),
        render=functools.partial(render, row.name, stem, {pattern.id: pattern for pattern in patterns}),
        options=options,
        options_used=("all_templates",),
        demonstrations="train" if "train" in splits else next(iter(splits)),
        max_examples=MAX_EXAMPLES,
    )


def _read(splits: Mapping[str, Stretch], split: str) -> Iterator[Record | Skipped]:
    """Yields the rows of a split; a record's fields are `where` and `row`."""
    stretch = splits.get(split, Stretch(()))
    rows = records.read(stretch.files)
    if end := stretch.last or stretch.without:
        head = list(itertools.islice(rows, 2 * end + 1))
        end = end if len(head) > 2 * end else len(head) // FEW
        rows = itertools.chain(head, rows)
        rows = collections.deque(rows, maxlen=end) if stretch.last else _all_but(rows, end)
    stop = None if stretch.count is None else stretch.start + stretch.count
    for row in itertools.islice(rows, stretch.start, stop):
        yield row if isinstance(row, Skipped) else Record(str(row.number), {"where": row.where, "row": row.values})


def _all_but(stream: Iterator, last: int) -> Iterator:
    """Yields a stream without its last items."""
    pending = collections.deque(itertools.islice(stream, last))
    for item in stream:
        pending.append(item)
        yield pending.popleft()


def render(
    task: str,
    stem: str,
    patterns: Mapping[str, Pattern],
    record: Record,
    template: Template,
    worded_as: str | None = None,
) -> Example | Skipped:
    """Renders a row with a pair of patterns."""
    pattern, where = patterns[template.id], record.fields["where"]
    try:
        fields = fields_of(stem, record.fields["row"])
    except UnusableError as error:
        return Skipped(where, str(error))
    missing = {name for text in pattern[1:] for name in FIELD.findall(text)} - fields.keys()
    if missing:
        return Skipped(f"{where} by template {pattern.id}", f"the row has no field {min(missing)}")
    source, target = (FIELD.sub(lambda match: str(fields[match[1]]), text).strip() for text in pattern[1:])
    if not source or not target:
        return Skipped(f"{where} by template {pattern.id}", "no target" if source else "no source")
    options = tuple(option.strip() for option in fields.get("options", ()))
    ranked = template.output_type == RANK and target in options and len(set(options)) > 1
    answers = fields.get("answers", ()) if target == fields.get("answer", fields.get("target")) else ()
    references = tuple(dict.fromkeys((target, *(answer for answer in answers if answer.strip()))))
    source = prompts.with_delimiter(task, worded_as or record.id, source)
    return Example(record.id, source, target, references, tuple(dict.fromkeys(options)) if ranked else None)
