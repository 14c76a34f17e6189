"""UnifiedSKG (Xie et al. 2022): a question, structured knowledge written as text, and an answer.

The format is that of its authors' sequence-to-sequence files, which the paper used (Appendix A.1): rows with
`text_in`, `struct_in` and `seq_out`, in `<task>/{train,dev,test}.jsonl` or `<task>_{train,dev,test}.json`. Without
them, the raw releases of spider, sparc, cosql, wikisql, wikitq, fetaqa, dart, tab_fact and multiwoz are read
and linearised like its `seq2seq_construction` (49a2ff95), with one difference: a table that is too long loses rows
without a word of the question, from the last on; upstream drops random rows, without a seed.
"""

import functools
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optiml_jax.data.specification import CacheOptions
from tasks.catalog.registry import Benchmark, stems
from tasks.example import Skipped
from tasks.prompting import wordings
from tasks.prompting.wordings import Fields, Source, answers
from tasks.reading import records
from tasks.reading.fields import UnusableError, text, value
from tasks.reading.records import Row

NAME = "unifiedskg"
MAX_TABLE = 4_096  # maximum characters of a table, about UnifiedSKG's 1,024 tokens
WORD = re.compile(r"\w+")
UNREAD = {
    "e2e_nlg_cleaned/*": "not one of the 21 tasks that the paper took",
    "sgd/**/*": "not one of the 21 tasks that the paper took",
    "taskmaster/*": "not one of the 21 tasks that the paper took",
    "wikitq/csv/*/*.csv": "the tables of the .tsv files in another form",
    "multiwoz22/schema.json": "no dialogues beside it",
    "tab_fact/*blind*.json": "its labels are hidden",
    "spider/*.sql": "the queries of dev.json again, for its evaluation",
    "spider/eval_*.txt": "an example of its evaluation",
    "spider/examples_dev_original.json": "dev.json as it was first released",
}


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks that have data.

    Raises:
      MissingError: there are none.
    """
    return wordings.discover(NAME, directory, options, {task: _source(task) for task in stems(NAME)}, UNREAD)


def _source(task: str) -> Source:
    """Returns the authors' file of a task, or else the raw release."""
    dumps = (f"{task}/{{split}}.seq2seq.jsonl", f"{task}_{{split}}.jsonl", f"{task}_{{split}}.json")
    raw = RAW.get(task, Source((f"{task}/{{split}}.jsonl", f"{task}/{{split}}.json"), _dumped))

    def recipe(row: Mapping[str, Any]) -> Iterator[Fields]:
        return _dumped(row) if "seq_out" in row else raw.recipe(row)

    return Source((*dumps, *raw.patterns), recipe, raw.read, raw.beside, raw.named)


def _dumped(row: Mapping[str, Any]) -> Iterator[Fields]:
    if "seq_out" not in row:
        raise UnusableError("the row has no field seq_out; it is read from UnifiedSKG's own files alone")
    yield _grounded(text(row, "struct_in"), text(row, "text_in"), text(row, "seq_out"), *row.get("references", ()))


def _grounded(struct: str, question: str, *outputs: str) -> Fields:
    return {"struct_in": struct.strip(), "text_in": question.strip()} | answers(*outputs)


# --- tables


def linear_table(header: Sequence[Any], cells: Sequence[Sequence[Any]], question: str) -> str:
    """Linearises a table: `col : a | b row 1 : x | y row 2 : ...`, with as many rows as fit."""
    head = "col : " + " | ".join(map(str, header))
    row_texts = [" | ".join(" ".join(str(cell).split()) for cell in row) for row in cells]
    over = len(head) + sum(len(f" row {i} : {row}") for i, row in enumerate(row_texts, start=1)) - MAX_TABLE
    if over > 0:
        question_words = {word for word in WORD.findall(question.lower()) if len(word) > 2}
        relevant = [bool(question_words & set(WORD.findall(row.lower()))) for row in row_texts]
        order = sorted(range(len(row_texts)), key=lambda index: (relevant[index], -index))
        for index in order[:-1]:
            over -= len(row_texts[index]) + len(" row 10 : ")
            row_texts[index] = ""
            if over <= 0:
                break
    remaining = (row for row in row_texts if row)
    return " ".join((head, *(f"row {number} : {row}" for number, row in enumerate(remaining, start=1))))


def _lower(struct: str, question: str, output: str) -> Fields:
    return _grounded(struct.lower(), question.lower(), output.lower())


def _fetaqa(row: Mapping[str, Any]) -> Iterator[Fields]:
    header, *cells = value(row, "table_array")
    question = text(row, "question")
    meta = f"{text(row, 'table_page_title')} | {text(row, 'table_section_title')}"
    yield _lower(f"{meta} {linear_table(header, cells, question)}", question, text(row, "answer"))


def _read_wikitq(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads WikiTableQuestions: a table of questions, each with the name of a table file,
    `csv/<folder>/<number>.csv`."""
    root = path.parent.parent
    for row in records.tabs("id", "utterance", "context", "targetValue")(path, split):
        if isinstance(row, Skipped):
            yield row
        elif row.values["id"] != "id":
            file = root / row.values["context"].replace(".csv", ".tsv")
            yield row._replace(values=row.values | {"file": file})


def _wikitq(row: Mapping[str, Any]) -> Iterator[Fields]:
    header, *cells = _tsv_table(row["file"])
    question = row["utterance"]
    target = ", ".join(_unescaped(text_) for text_ in row["targetValue"].split("|"))
    yield _lower(linear_table(header, cells, question), question, target)


@functools.lru_cache(maxsize=64)
def _tsv_table(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise UnusableError(f"its table {path} is not there")
    table = [
        [_unescaped(cell) for cell in line.split("\t")] for _, line in records.lines(path) if isinstance(line, str)
    ]
    if len(table) < 2:
        raise UnusableError(f"its table {path} has no rows")
    return table


def _unescaped(cell: str) -> str:
    """Unescapes line breaks, bars and backslashes of WikiTableQuestions."""
    return cell.replace("\\n", " ").replace("\\p", "|").replace("\\\\", "\\")


def _read_tab_fact(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads TabFact: statements by table; the tables are `#`-separated files."""
    root = next((folder for folder in path.parents[:2] if (folder / "data").is_dir()), path.parent)
    for number, (name, content) in enumerate(records.document(path).items(), start=1):
        table = root / "data" / "all_csv" / name
        yield Row(number, f"{path}#{name}", {"table": table, "statements": content})


def _tab_fact(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Converts `[[statements], [labels], caption]`, or bootstrapped `[statement, ..., program]` entries."""
    header, *cells = _hash_table(row["table"])
    content = row["statements"]
    if isinstance(content[-1], str):
        pairs = list(zip(content[0], content[1], strict=True))
    else:
        pairs = [(entry[0], int(entry[-1].endswith("=True"))) for entry in content]
    for statement, label in pairs:
        yield _lower(linear_table(header, cells, statement), statement, ("refuted", "entailed")[label])


@functools.lru_cache(maxsize=64)
def _hash_table(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise UnusableError(f"its table {path} is not there")
    return [line.split("#") for _, line in records.lines(path) if isinstance(line, str)]


def _read_wikisql(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads WikiSQL: questions, with their tables in `<split>.tables.jsonl`."""
    file = path.with_name(path.name.replace(".jsonl", ".tables.jsonl"))
    rows = records.read([file]) if file.is_file() else ()
    tables = {row.values.get("id"): row.values for row in rows if isinstance(row, Row)}
    for row in records.read([path]):
        if isinstance(row, Row):
            table = tables.get(row.values.get("table_id"))
            row = row._replace(values=row.values | {"table": table, "tables": file})
        yield row


def _wikisql(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Yields a question whose answer is the result of the query on the table, as in UnifiedSKG (Figure 40)."""
    if row["table"] is None:
        raise UnusableError(f"its table {row.get('table_id')} is not in {row['tables']}")
    header, cells, question = row["table"]["header"], row["table"]["rows"], text(row, "question")
    target = ", ".join(answer_of(row["sql"], cells))
    yield _lower(linear_table(header, cells, question), question, target)


def answer_of(query: Mapping[str, Any], cells: Sequence[Sequence[Any]]) -> list[str]:
    """Returns the result of a WikiSQL query: `sel` a column, `agg` an aggregation, `conds` column, operator, value."""
    chosen = [row[query["sel"]] for row in cells if all(_holds(row[c], op, want) for c, op, want in query["conds"])]
    name = ("", "max", "min", "count", "sum", "avg")[query["agg"]]
    if not name:
        return [str(cell) for cell in chosen]
    if name == "count":
        return [str(len(chosen))]
    numbers = [number for number in map(_number, chosen) if number is not None]
    if not numbers:
        raise UnusableError(f"no numbers to take the {name} of")
    return [_written({"max": max, "min": min, "sum": math.fsum, "avg": statistics.fmean}[name](numbers))]


def _written(number: float) -> str:
    """A number as a person writes it: up to six decimals, without exponent and trailing zeros."""
    return np.format_float_positional(round(number, 6) + 0.0, trim="-")  # -0.0 + 0.0 is 0.0


def _holds(cell: Any, operator: int, operand: Any) -> bool:
    left, right = _number(cell), _number(operand)
    if operator == 0:
        return left == right if left is not None and right is not None else str(cell).lower() == str(operand).lower()
    return left is not None and right is not None and (left > right if operator == 1 else left < right)


def _number(cell: Any) -> float | None:
    try:
        return float(str(cell).replace(",", ""))
    except ValueError:
        return None


# --- triples


def _read_dart(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads DART. In train every text is an example; in other splits the texts of a set of triples are its
    references."""
    for row in records.read([path]):
        yield row._replace(values=row.values | {"apart": split == "train"}) if isinstance(row, Row) else row


def _dart(row: Mapping[str, Any]) -> Iterator[Fields]:
    struct = " | ".join(f"{s} : {p.lower()} : {o}" for s, p, o in value(row, "tripleset"))
    texts_ = [text(target, "text") for target in value(row, "annotations")]
    for outputs in [[target] for target in texts_] if row["apart"] else [texts_]:
        yield _grounded(struct, "", *outputs)


# --- databases


def linear_schema(schema: Mapping[str, Any]) -> str:
    """Linearises an entry of Spider's tables.json: `| database | table : column , column | ...`."""
    tables = []
    for number, name in enumerate(schema["table_names_original"]):
        columns = [column.lower() for table, column in schema["column_names_original"] if table == number]
        tables.append(f" | {name.lower()} : {' , '.join(columns)}")
    return f"| {schema['db_id']}{''.join(tables)}"


def normalized(query: str) -> str:
    """Returns a query in lower case except for quoted text, with single spaces, as UnifiedSKG writes targets."""
    lower = re.sub(r"\b(?<!['\"])(\w+)(?!['\"])\b", lambda word: word[1].lower(), query)
    return " ".join(lower.split()).replace(" , ", ", ")


def _read_database(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads questions to databases, with the schema of `tables.json` beside them, or of Spider's."""
    paths = (path.with_name("tables.json"), path.parent.parent / "spider" / "tables.json")
    schemas: dict[str, Any] = {}
    for file in paths:
        if file.is_file():
            schemas = {schema["db_id"]: schema for schema in records.document(file)} | schemas
    for row in records.read([path]):
        if isinstance(row, Row):
            name = row.values.get("db_id") or row.values.get("database_id")
            row = row._replace(values=row.values | {"name": name, "schema": schemas.get(name), "tables": paths[0]})
        yield row


def _database(row: Mapping[str, Any]) -> str:
    if row["schema"] is None:
        raise UnusableError(f"its database {row['name']} is not in {row['tables']}")
    return linear_schema(row["schema"])


def _spider(row: Mapping[str, Any]) -> Iterator[Fields]:
    yield _grounded(_database(row), text(row, "question"), normalized(text(row, "query")))


def _sql2text(row: Mapping[str, Any]) -> Iterator[Fields]:
    yield _grounded("", text(row, "query"), text(row, "question"))


def _interaction(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Converts SParC and CoSQL: every turn, with the latest question first, then the earlier ones in reverse order."""
    utterances: list[str] = []
    for turn in value(row, "interaction"):
        utterances.append(text(turn, "utterance").strip())
        yield _grounded(_database(row), _latest_first(utterances), normalized(text(turn, "query")))


def _latest_first(utterances: Sequence[str]) -> str:
    *before, last = utterances
    return last + (" || " + " | ".join(reversed(before)) if before else "")


# --- dialogue states


def _read_dialogues(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads MultiWOZ 2.2: dialogues, with `schema.json` beside the folders of the splits."""
    candidates = (path.with_name("schema.json"), path.parents[1] / "schema.json")
    schema = next((records.document(candidate) for candidate in candidates if candidate.is_file()), None)
    for row in records.read([path]):
        yield row._replace(values=row.values | {"schema": schema}) if isinstance(row, Row) else row


def _dialogue(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Yields the belief state after each turn of the user, out of all slots."""
    if row["schema"] is None:
        raise UnusableError("no schema.json beside the dialogues")
    turns = row.get("turns")
    if not turns:
        raise UnusableError("a dialogue without turns")
    slots = [slot for service in row["schema"] for slot in service["slots"]]
    struct = "".join(f"{slot['name']}: {', '.join(slot['possible_values']) or 'none'}; " for slot in slots)
    utterances: list[str] = []
    for turn in turns:
        utterances.append(text(turn, "utterance").strip())
        if turn["speaker"] != "USER":
            continue
        state: dict[str, Any] = {}
        for frame in turn["frames"]:
            state |= frame.get("state", {}).get("slot_values", {})
        belief = ", ".join(f"{slot} {values[0]}".replace("-", " ") for slot, values in sorted(state.items()) if values)
        yield _lower(struct, _latest_first(utterances), belief or "none")


SPIDER, SCHEMAS = ("spider/{split}.json", "spider/{split}_*.json"), ("spider/tables.json",)
RAW = {
    "spider": Source(SPIDER, _spider, _read_database, SCHEMAS),
    "sql2text": Source(SPIDER, _sql2text),
    "sparc": Source(("sparc/{split}.json",), _interaction, _read_database, ("sparc/tables.json", *SCHEMAS)),
    "cosql": Source(("cosql/{split}.json",), _interaction, _read_database, ("cosql/tables.json", *SCHEMAS)),
    "fetaqa": Source(("fetaqa/*_{split}.jsonl",), _fetaqa),
    "dart": Source(("dart/*-{split}.json",), _dart, _read_dart),
    "wikitq": Source(
        ("wikitq/data/random-split-1-{split}.tsv",),
        _wikitq,
        _read_wikitq,
        ("wikitq/csv/*/*.tsv",),
        {"test": ("wikitq/data/pristine-unseen-tables.tsv",)},
    ),
    "wikisql": Source(("wikisql/{split}.jsonl",), _wikisql, _read_wikisql, ("wikisql/*.tables.jsonl",)),
    "tab_fact": Source(
        ("tab_fact/tokenized_data/{split}_examples.json",),
        _tab_fact,
        _read_tab_fact,
        ("tab_fact/data/all_csv/*.csv",),
        {"train": ("tab_fact/bootstrap.json", "tab_fact/bootstrap/bootstrap.json")},
    ),
    "multiwoz": Source(
        ("multiwoz22/{split}/dialogues_*.json",), _dialogue, _read_dialogues, ("multiwoz22/schema.json",)
    ),
}
