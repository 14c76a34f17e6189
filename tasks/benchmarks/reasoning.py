"""Fourteen data sets of reasoning (paper 4.6, Appendix A.1): a rationale, then "The answer is X".

All have one instruction (Figures 63 and 64); options follow the question on a line of their own. Each data set is read
from its authors' release, in a folder of its name; a missing train split is read from FLAN v2's chain-of-thought files
`<data set>_train.tsv` (question, answer, rationale), here or in FLAN's folder beside this one.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import DataError
from optiml_jax.data.specification import CacheOptions
from tasks.catalog.registry import Benchmark
from tasks.example import Skipped
from tasks.prompting import prompts, wordings
from tasks.prompting.wordings import Fields, Source, UnfitError, answers
from tasks.reading import records
from tasks.reading.fields import UnusableError, text, texts, value
from tasks.reading.records import Row

NAME = "reasoning"
FLAN = tuple(
    f"{folder}{{task}}_train.tsv" for folder in ("", "cot_data/", "../flan/v2/cot_data/", "../flan/flan/v2/cot_data/")
)
UNREAD = {
    "folio_processed/*": "not one of the 14 data sets that the paper took",
    "math_word_problems/*": "not one of the 14 data sets that the paper took",
    "proofwriter_processed/*": "has no proofs; take the authors' own release",
    "gsm8k/*socratic*": "the same questions, with questions in between",
    "gsm8k/example_model_solutions.jsonl": "answers of models",
    "creak/contrast_set.json": "has no explanations",
    "creak/test_without_labels.json": "its labels are hidden",
    "winowhy/dataset.csv": "winowhy.json in another form",
    "sense_making/Training_Data/*": "subtask B is not asked",
    "ecqa/author_split/*": "which questions are in which split; the data themselves are not there",
    "cos_e/*/*": "the same questions with three options",
}


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks that have data.

    Raises:
      MissingError: there are none.
    """
    return wordings.discover(NAME, directory, options, SOURCES, UNREAD)


def reasoned(question: str, rationale: str, answer: str) -> Fields:
    """Makes a record: the rationale as sentences, then the answer."""
    rationale, answer = rationale.strip(), answer.strip()
    if not answer or not rationale:
        raise UnusableError("no rationale" if answer else "no answer")
    stop = "" if rationale[-1] in ".!?" else "."
    return {"question": question.strip()} | answers(f"{rationale}{stop} The answer is {answer}")


def _flan(row: Mapping[str, Any]) -> Iterator[Fields]:
    yield reasoned(*(row[name].replace("\\n", "\n") for name in ("question", "rationale", "answer")))


def _gsm8k(row: Mapping[str, Any]) -> Iterator[Fields]:
    rationale, _, answer = text(row, "answer").rpartition("####")
    yield reasoned(text(row, "question"), re.sub(r"<<.*?>>", "", rationale), answer.replace(",", ""))


def _strategyqa(row: Mapping[str, Any]) -> Iterator[Fields]:
    yield reasoned(text(row, "question"), " ".join(texts(row, "facts")), "yes" if value(row, "answer") else "no")


def _aqua(row: Mapping[str, Any]) -> Iterator[Fields]:
    yield reasoned(
        _with_options(text(row, "question"), texts(row, "options")), text(row, "rationale"), text(row, "correct")
    )


def _with_options(question: str, options: Sequence[str]) -> str:
    return f"{question}\n{', '.join(options)}"


def _coqa(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Yields the questions of a story, each after the previous ones."""
    conversation = text(row, "story")
    for question, answer in zip(value(row, "questions"), value(row, "answers"), strict=True):
        conversation += f"\n{text(question, 'input_text')}"
        yield reasoned(conversation, text(answer, "span_text"), text(answer, "input_text"))
        conversation += f" {text(answer, 'input_text')}"


def _read_coqa(path: Path, split: str) -> Iterator[Row | Skipped]:
    stories = records.document(path)
    if not isinstance(stories, dict) or not isinstance(stories.get("data"), list):
        raise DataError(f"{path}: no list data; it is CoQA's own JSON")
    return (Row(number, f"{path}#{number}", story) for number, story in enumerate(stories["data"], start=1))


def _joined(questions: str) -> Callable[[Path, str], Iterator[Row | Skipped]]:
    """Returns a reader of explanations that joins each with the CommonsenseQA question of the same id.

    Args:
      questions: path of the questions relative to the explanations; `{split}` is train or dev.
    """

    def read(path: Path, split: str) -> Iterator[Row | Skipped]:
        file = path.parent / questions.replace("{split}", "train" if split == "train" else "dev")
        if not file.is_file():
            raise DataError(f"{file}: is not there; it has the questions of {path.name}")
        questions_by_id = {row.values.get("id"): row.values for row in records.read([file]) if isinstance(row, Row)}
        for row in records.read([path]):
            if isinstance(row, Row):
                question = questions_by_id.get(row.values.get("id"))
                row = row._replace(values=row.values | {"asked": question, "questions": file.name})
            yield row

    return read


def _explained(name: str) -> Callable[[Mapping[str, Any]], Iterator[Fields]]:
    """Returns a recipe for CommonsenseQA's questions; `name`: field of the explanation."""

    def recipe(row: Mapping[str, Any]) -> Iterator[Fields]:
        if row["asked"] is None:
            raise UnfitError(f"its question is not in {row['questions']}")
        choices = {choice["label"]: choice["text"] for choice in value(row, "asked.question.choices")}
        answer = choices[text(row, "asked.answerKey")]
        yield reasoned(_with_options(text(row, "asked.question.stem"), list(choices.values())), text(row, name), answer)

    return recipe


def _creak(row: Mapping[str, Any]) -> Iterator[Fields]:
    claim = f"Is the following claim true or false?\n{text(row, 'sentence')}"
    yield reasoned(claim, text(row, "explanation"), text(row, "label"))


def _read_esnli(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads line-aligned files, or the CSV files of the release."""
    if path.suffix == ".csv":
        for row in records.table(path):
            if isinstance(row, Row):
                columns_of_row = row.values
                names = {"s1": "Sentence1", "s2": "Sentence2", "label": "gold_label"}
                values = {name: columns_of_row.get(column) for name, column in names.items()}
                row = row._replace(
                    values=values | {"why": [columns_of_row.get(f"Explanation_{i}") or "" for i in (1, 2, 3)]}
                )
            yield row
        return
    end = path.suffix
    names = ("s1", "s2", "labels", *(f"preproc1_expl_{i}" for i in (1, 2, 3)))
    files = [path.with_name(f"{name}{end}") for name in names]
    if missing := [file for file in files[:4] if not file.is_file()]:
        raise DataError(f"{missing[0]}: is not there; its lines belong to those of {path.name}")
    columns = [records.lines(file) for file in files if file.is_file()]
    for columns_of_row in itertools.zip_longest(*columns, fillvalue=(0, None)):
        lines = [line for _, line in columns_of_row]
        where = f"{path}:{columns_of_row[0][0]}"
        if any(not isinstance(line, str) for line in lines):
            yield Skipped(where, "a line of one of the files is missing or cannot be read")
            continue
        yield Row(columns_of_row[0][0], where, dict(zip(("s1", "s2", "label"), lines)) | {"why": lines[3:]})


def _esnli(row: Mapping[str, Any]) -> Iterator[Fields]:
    options = ("entailment", "neutral", "contradiction")
    if row["label"] not in options:
        raise UnusableError(f"the label {row['label']!r} is none of {', '.join(options)}")
    question = f"Premise: {row['s1'].strip()}\nHypothesis: {row['s2'].strip()}\nDoes the premise entail the hypothesis?"
    why = next((explanation for explanation in row["why"] if explanation.strip()), "")
    yield reasoned(_with_options(question, options), why, row["label"])


def _read_math(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads one file per problem, as released, or rows of problems."""
    if records.stem(path) and path.suffix != ".json":
        yield from records.read([path])
    else:
        problem = records.document(path)
        yield Row(1, str(path), problem) if isinstance(problem, dict) else Skipped(str(path), "not one problem")


def _math(row: Mapping[str, Any]) -> Iterator[Fields]:
    solution = text(row, "solution")
    yield reasoned(text(row, "problem"), solution, boxed(solution))


def boxed(solution: str) -> str:
    r"""Returns the contents of the last \boxed{...} of a solution.

    Raises:
      UnusableError: there is none.
    """
    _, command, rest = solution.rpartition("\\boxed")
    if command and rest[:1] == " ":
        return rest.split("$")[0].strip()
    depth = 0
    for index, sign in enumerate(rest):
        depth += (sign == "{") - (sign == "}")
        if command and not depth:
            return rest[1:index]
    raise UnusableError("no answer in a box")


def _proofwriter(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Yields the questions of a theory that have a proof; the rationale is the sentences of the proof."""
    sentences = {
        name: text(sentence, "text") for kind in ("triples", "rules") for name, sentence in value(row, kind).items()
    }
    for question in value(row, "questions").values():
        proof = str(question.get("proofs") or "").split(" OR ")[0]
        used = [sentences[name] for name in dict.fromkeys(re.findall(r"triple\d+|rule\d+", proof)) if name in sentences]
        if used:
            statement = f"{text(row, 'theory')}\nIs the following statement true or false? {text(question, 'question')}"
            yield reasoned(statement, " ".join(used), str(question["answer"]).lower())


def _qasc(row: Mapping[str, Any]) -> Iterator[Fields]:
    choices = {choice["label"]: choice["text"] for choice in value(row, "question.choices")}
    facts = [text(row, name).strip() for name in ("fact1", "fact2", "combinedfact")]
    why = " ".join(fact if fact.endswith(".") else f"{fact}." for fact in facts)
    yield reasoned(
        _with_options(text(row, "question.stem"), list(choices.values())), why, choices[text(row, "answerKey")]
    )


def _qed(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Yields the sentence of the passage with the answer, and the answer (Figure 63)."""
    annotation = value(row, "annotation")
    if annotation.get("explanation_type") != "single_sentence":
        raise UnfitError(f"explained by {annotation.get('explanation_type')}, not by a single sentence")
    spans = [text(span, "paragraph_reference.string") for span in value(annotation, "answer")]
    prompt = f"{text(row, 'paragraph_text')}\n{text(row, 'question_text')}"
    yield reasoned(prompt, text(annotation, "selected_sentence.string"), ", ".join(spans))


def _read_sensemaking(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads pairs of sentences with reasons against one of them: the official files, or a table that joins them."""
    if path.name != "subtaskA_data_all.csv":
        for number, row in enumerate(records.table(path), start=1):
            if isinstance(row, Row):
                columns = row.values
                right, wrong = columns.get("Correct Statement"), columns.get("Incorrect Statement")
                first = prompts.draw("first", NAME, str(number)) % 2
                pair = (wrong, right) if first else (right, wrong)
                row = row._replace(values={"pair": pair, "wrong": 1 - first, "why": columns.get("Right Reason1")})
            yield row
        return
    others = [path.with_name(f"subtask{name}_answers_all.csv") for name in "AC"]
    if missing := [file for file in others if not file.is_file()]:
        raise DataError(f"{missing[0]}: is not there; it has the answers to {path.name}")
    labels = _by_id(records.table(others[0], columns=("id", "answer")))
    reasons = _by_id(records.table(others[1], columns=("id", "one", "answer", "three")))
    for row in records.table(path):
        if isinstance(row, Row):
            name, pair = row.values.get("id"), (row.values.get("sent0"), row.values.get("sent1"))
            if name in labels and name in reasons:
                row = row._replace(values={"pair": pair, "wrong": int(labels[name]), "why": reasons[name]})
            else:
                row = Skipped(row.where, f"no answer to {name}")
        yield row


def _by_id(rows: Iterator[Row | Skipped]) -> dict[str, str]:
    return {row.values["id"]: row.values["answer"] for row in rows if isinstance(row, Row)}


def _sensemaking(row: Mapping[str, Any]) -> Iterator[Fields]:
    first, second = row["pair"]
    question = f"Which of the following two sentences does not make sense?\nA: {first}\nB: {second}"
    yield reasoned(question, row["why"], "AB"[row["wrong"]])


def _winowhy(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Yields the referent of a pronoun, once per reason that annotators accepted."""
    before, pronoun, after = (text(row, f"text.{name}").strip() for name in ("txt1", "pron", "txt2"))
    options = texts(row, "answers")
    answer = options["AB".index(text(row, "correctAnswer").strip(". ")[0])]
    question = _with_options(f'{before} {pronoun} {after}\nWhat does "{pronoun}" refer to?', options)
    for reason, source, _, label in value(row, "reasons"):
        if label == "Valid" and source == "human":
            yield reasoned(question, reason, answer)


def _source(task: str, *patterns: str, recipe: Callable, **more: Any) -> Source:
    """Returns a data set's release, with FLAN's file as an alternative."""

    def either(row: Mapping[str, Any]) -> Iterator[Fields]:
        return _flan(row) if row.keys() == {"question", "answer", "rationale"} else recipe(row)

    def read(path: Path, split: str) -> Iterator[Row | Skipped]:
        flan = path.name == f"{task}_train.tsv"
        return (records.tabs("question", "answer", "rationale") if flan else released)(path, split)

    released = more.pop("read", Source((), recipe).read)
    named = {**more.pop("named", {})}
    named["train"] = (*named.get("train", ()), *(path.replace("{task}", task) for path in FLAN))
    return Source(patterns, either, read, named=named, **more)


SOURCES = {
    "gsm8k": _source("gsm8k", "gsm8k/{split}.jsonl", recipe=_gsm8k),
    "strategyqa": _source("strategyqa", "strategyqa/{split}.json", recipe=_strategyqa),
    "aqua": _source("aqua", "aqua/{split}.json", recipe=_aqua),
    "coqa": _source("coqa", "coqa/coqa-{split}-v1.0.json", "coqa/coqa.{split}.json", recipe=_coqa, read=_read_coqa),
    "cose": _source(
        "cose",
        "cos_e/v1.11/cose_{split}_v1.11.jsonl",
        recipe=_explained("explanation.open-ended"),
        read=_joined("../../commonsenseqa/{split}_rand_split.jsonl"),
        beside=("commonsenseqa/*.jsonl",),
    ),
    "creak": _source("creak", "creak/{split}.json", recipe=_creak),
    "ecqa": _source(
        "ecqa",
        "ecqa/ecqa_{split}.jsonl",
        recipe=_explained("explanation"),
        read=_joined("../commonsenseqa/{split}_rand_split.jsonl"),
        beside=("commonsenseqa/*.jsonl",),
    ),
    "esnli": _source(
        "esnli",
        "e_snli/esnli_{split}*.csv",
        "e_snli/s1.{split}",
        recipe=_esnli,
        read=_read_esnli,
        beside=("e_snli/*",),
    ),
    "math": _source("math", "math/{split}.jsonl", "math/{split}/*/*.json", recipe=_math, read=_read_math),
    "proofwriter": _source("proofwriter", "proofwriter/**/depth-5/meta-{split}.jsonl", recipe=_proofwriter),
    "qasc": _source("qasc", "qasc/{split}.jsonl", recipe=_qasc),
    "qed": _source("qed", "qed/qed-{split}.jsonlines", recipe=_qed),
    "sensemaking": _source(
        "sensemaking",
        "sense_making/{split}.csv",
        recipe=_sensemaking,
        read=_read_sensemaking,
        beside=("sense_making/*/*.csv",),
    ),
    "winowhy": _source("winowhy", recipe=_winowhy, named={"train": ("winowhy/winowhy.json",)}),
}
