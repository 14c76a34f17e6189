"""The 14 tasks that OPT was evaluated on (paper 5.1, Table 9), with the prompts of GPT-3, which OPT used.

The prompts follow Brown et al. 2020, Appendix G, Figures G.4 to G.33, exactly; the task functions note what the figures
leave open. Each data set is read from its authors' release, SuperGLUE's from `superglue/<task>/{train,val}.jsonl`. None
is used for training. The denominators of Table 9 imply two more facts. WSC has 37 questions (75.7% is 28 of them): the
passages of SuperGLUE's validation split that have a correct noun, each evaluated once among the nouns in the file; one
passage has no wrong noun, so there are 36 here. MultiRC counts a question as correct if all its answers are.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import DataError
from optiml_jax.data.specification import CacheOptions
from tasks.catalog.registry import Benchmark
from tasks.example import Skipped
from tasks.prompting import wordings
from tasks.prompting.wordings import Fields, Source, UnfitError, Wording, answers
from tasks.reading import records
from tasks.reading.fields import UnusableError, choice, text, value
from tasks.reading.records import Row
from tasks.task import SHOWN_SPLIT

NAME = "opt_eval"
LABEL = {True: 0, False: 1, "true": 0, "false": 1, "True": 0, "False": 1}
LOWER = {"a", "an", "the", "she", "he", "it", "they", "my", "his", "her", "their"}  # words that do not begin a sentence
OPTION = re.compile(r"\s*\(([A-Z])\)\s")
UNREAD = {
    "superglue/AX-*/*": "no task of the 14; the suite of WinoGender reads AX-g",
    "fewglue/ReCoRD/*": "not one of the 14 tasks",
    "piqa/tests.jsonl": "its labels are hidden",
    "winograd/PDP.txt": "not one of the 14 tasks",
    "winograd/WinoGender.txt": "not one of the 14 tasks",
    "winograd/dpr_dev_small.txt": "not one of the 14 tasks",
    "winograd/wnli-test.tsv": "not one of the 14 tasks",
    "winograd/gap-development.tsv": "not one of the 14 tasks",
    "winograd/wsc273.txt": "wsc273.jsonl in another form",
}


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks that have data.

    Raises:
      MissingError: there are none.
    """
    return wordings.discover(NAME, directory, options, SOURCES, UNREAD)


def ranked(candidates: list[str], right: int, **fields: Any) -> Fields:
    """Returns a record that ranks its own candidates."""
    texts = tuple(candidate.strip() for candidate in candidates)
    if not 0 <= right < len(texts):
        raise UnusableError(f"no candidate is number {right + 1} of {len(texts)}")
    if not all(texts) or len(set(texts)) < len(texts):
        raise UnusableError("a candidate is empty or a duplicate")
    return {"candidates": texts, **fields} | answers(texts[right])


def _label(row: Mapping[str, Any]) -> int:
    """Returns 0 for true, 1 for false, which SuperGLUE's files also write as text."""
    label = value(row, "label")
    if label not in LABEL:
        raise UnusableError(f"the label is {label!r}, neither true nor false")
    return LABEL[label]


def _capitalised(choice: str, first: bool) -> str:
    """Capitalises a choice if it begins a sentence, not if it continues one."""
    change = str.upper if first else str.lower
    return change(choice[:1]) + choice[1:]


def _storycloze(row: Mapping[str, Any]) -> Iterator[Fields]:
    story = " ".join(text(row, f"InputSentence{number}").strip() for number in range(1, 5))
    endings = [text(row, f"RandomFifthSentenceQuiz{number}") for number in (1, 2)]
    yield ranked(endings, int(text(row, "AnswerRightEnding")) - 1, story=story)


def _read_piqa(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads PIQA, whose labels are in `<split>-labels.lst` beside `<split>.jsonl`."""
    beside = path.with_name(f"{path.stem}-labels.lst")
    if not beside.is_file():
        raise DataError(f"{path}: its labels, {beside.name}, are not beside it")
    labels = [line for _, line in records.lines(beside)]
    rows = list(records.read([path]))
    if len(rows) != len(labels):
        raise DataError(f"{beside}: {len(labels)} labels for the {len(rows)} records of {path.name}; fetch both again")
    for row, label in zip(rows, labels):
        yield row if isinstance(row, Skipped) else row._replace(values=row.values | {"label": label})


def _piqa(row: Mapping[str, Any]) -> Iterator[Fields]:
    if row["label"] not in ("0", "1"):
        raise UnusableError(f"the label is {row['label']!r}, neither 0 nor 1")
    yield ranked([text(row, "sol1"), text(row, "sol2")], int(row["label"]), goal=text(row, "goal").strip())


def _arc(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Reads ARC and OpenBookQA in AI2's JSON: three to five choices by letter or number."""
    choices = {choice["label"]: choice["text"] for choice in value(row, "question.choices")}
    if (key := text(row, "answerKey")) not in choices:
        raise UnusableError(f"the answer {key!r} is none of the choices {', '.join(choices)}")
    yield ranked(list(choices.values()), list(choices).index(key), question=text(row, "question.stem").strip())


def _read_openbookqa(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads OpenBookQA, which was released as JSON lines and as a table."""
    return records.table(path, delimiter="\t", quotes=False) if path.suffix == ".tsv" else records.read([path])


def _openbookqa(row: Mapping[str, Any]) -> Iterator[Fields]:
    if "Choices" not in row:
        yield from _arc(row)
        return
    _, *parts = OPTION.split(text(row, "Choices"))
    labels, choices = parts[::2], parts[1::2]
    if (key := text(row, "Answer Key").strip()) not in labels:
        raise UnusableError(f"the answer {key!r} is none of the choices {', '.join(labels)}")
    yield ranked(choices, labels.index(key), question=text(row, "Question Stem").strip())


def _schema(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Converts a Winograd schema in WinoGrande's format: ranks two nouns by the likelihood of the rest of the
    sentence."""
    before, gap, after = text(row, "sentence").partition("_")
    if not gap or not after.strip():
        raise UnusableError("no gap _ with something after it")
    right = choice(row, "answer", ("1", "2"))
    first = not before.strip() or before.rstrip()[-1] in ".!?"
    nouns = []
    for noun in (text(row, "option1").strip(), text(row, "option2").strip()):
        nouns.append(_capitalised(noun, first) if first or noun.split()[0].lower() in LOWER else noun)
    sentences = [f"{noun}{after.rstrip()}" for noun in nouns]
    joined = {"separator": ""} if not before or before.endswith(("(", '"')) else {}
    yield ranked(sentences, int(right) - 1, before=before.rstrip(" "), given=tuple(map(len, nouns)), **joined)


def _boolq(row: Mapping[str, Any]) -> Iterator[Fields]:
    question = text(row, "question").strip().rstrip("?")
    yield ranked(["yes", "no"], _label(row), passage=text(row, "passage").strip(), question=question)


def _cb(row: Mapping[str, Any]) -> Iterator[Fields]:
    options = {"entailment": "true", "contradiction": "false", "neutral": "neither"}
    hypothesis = text(row, "hypothesis").strip().rstrip(".")
    right = list(options).index(choice(row, "label", options))
    yield ranked(list(options.values()), right, premise=text(row, "premise").strip(), hypothesis=hypothesis)


def _copa(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Figure G.5 shows a cause ("because"); for effects "therefore" follows lm-evaluation-harness."""
    words = {"cause": "because", "effect": "therefore"}
    word = words[choice(row, "question", words)]
    premise = text(row, "premise").strip().rstrip(".")
    choices = [_capitalised(text(row, name).strip(), False) for name in ("choice1", "choice2")]
    yield ranked(choices, int(value(row, "label")), premise=premise, word=word)


def _rte(row: Mapping[str, Any]) -> Iterator[Fields]:
    options = ("entailment", "not_entailment")
    texts = {name: text(row, name).strip() for name in ("premise", "hypothesis")}
    yield ranked(["True", "False"], options.index(choice(row, "label", options)), **texts)


def _wic(row: Mapping[str, Any]) -> Iterator[Fields]:
    texts = {name: text(row, name).strip() for name in ("sentence1", "sentence2", "word")}
    yield ranked(["yes", "no"], _label(row), **texts)


def _read_wsc(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads SuperGLUE's WSC, one row per passage and pronoun, with the correct and the wrong nouns."""
    by_pronoun: dict[tuple, Row] = {}
    for row in records.read([path]):
        if isinstance(row, Skipped):
            yield row
            continue
        try:
            key = text(row.values, "text"), value(row.values, "target.span2_index")
            noun, right = text(row.values, "target.span1_text"), not _label(row.values)
        except UnusableError as error:
            yield Skipped(row.where, str(error))
            continue
        row = by_pronoun.setdefault(key, row._replace(values=row.values | {"nouns": {}}))
        row.values["nouns"][noun] = right or row.values["nouns"].get(noun, False)
    yield from by_pronoun.values()


def _wsc(row: Mapping[str, Any]) -> Iterator[Fields]:
    nouns: dict[str, bool] = row["nouns"]
    if sum(nouns.values()) != 1 or len(nouns) < 2:
        raise UnfitError("no right and no wrong noun in the file: not one of the questions that are asked")
    passage, pronoun = text(row, "text").split(), text(row, "target.span2_text")
    index = value(row, "target.span2_index")
    if not passage[index].startswith(pronoun):  # one row of the release has a wrong count
        matches = [number for number, word in enumerate(passage) if word == pronoun]
        if not matches:
            raise UnusableError(f"the pronoun {pronoun!r} is not in the passage")
        index = min(matches, key=lambda number: abs(number - index))
    passage[index] = f"*{pronoun}*{passage[index][len(pronoun) :]}"
    marked = re.sub(r" (?=['’]s\b|n't\b|[.,;:!?])", "", " ".join(passage))
    yield ranked(
        [noun.lower() for noun in nouns], list(nouns.values()).index(True), passage=marked, pronoun=f"*{pronoun}*"
    )


def _read_multirc(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads MultiRC's questions; demonstrations have all their answers."""
    for row in records.read([path]):
        if isinstance(row, Skipped):
            yield row
        else:
            yield row._replace(values=row.values | {"shown": split == SHOWN_SPLIT})


def _multirc(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Yields one record per answer of a question, to be classified as true or false."""
    passage = text(row, "passage.text").strip()
    for number, question in enumerate(value(row, "passage.questions"), start=1):
        fields = {"passage": passage, "question_text": text(question, "question").strip()}
        judged = [(text(answer, "text").strip(), _judged(answer)) for answer in value(question, "answers")]
        if row["shown"]:
            solved = "\n".join(f"- [{right}] {answer}" for answer, right in judged)
            yield fields | answers(solved)
            continue
        for answer, right in judged:
            candidates = [f"- [True] {answer}", f"- [False] {answer}"]
            name = f"{value(row, 'idx')}.{number}"
            yield ranked(candidates, 0 if right else 1, part_of=name, **fields)


def _judged(answer: Mapping[str, Any]) -> bool:
    if (label := value(answer, "label")) not in (0, 1):
        raise UnusableError(f"the label of an answer is {label!r}, neither 0 nor 1")
    return bool(label)


def _superglue(task: str, recipe, wording: str, read=None, **more) -> Source:
    """Reads a SuperGLUE task from its official files; without a train split, FewGLUE's 32 examples."""
    reader = {"read": read} if read else {}
    patterns = (f"superglue/{task}/{{split}}.jsonl", f"fewglue/{task}/{{split}}.jsonl", f"{task}/{{split}}.jsonl")
    return Source(patterns, recipe, wording=Wording(wording, exact=True), **reader, **more)


def _arc_source(name: str) -> Source:
    named = {
        split: tuple(f"{folder}ARC-{name}-{word}.jsonl" for folder in ("arc/", f"arc/ARC-{name}/", f"ARC-{name}/"))
        for split, word in (("train", "Train"), ("validation", "Dev"), ("test", "Test"))
    }
    return Source((), _arc, named=named, wording=Wording("Question: {question}\nAnswer:", exact=True))


SCHEMA = Wording("{before}", exact=True)
SOURCES = {
    "storycloze": Source(
        ("storycloze/{split}.csv",),
        _storycloze,
        records.table,
        named={
            "validation": ("storycloze/cloze_test_val__*.csv",),  # 2016 and 2018, as it is sent on request
            "test": ("storycloze/cloze_test_test__*.csv",),
        },
        wording=Wording("{story}", exact=True),
    ),
    "piqa": Source(
        ("piqa/{split}.jsonl",),
        _piqa,
        _read_piqa,
        beside=("piqa/*-labels.lst",),
        wording=Wording("{goal}", exact=True),
    ),
    "arc_easy": _arc_source("Easy"),
    "arc_challenge": _arc_source("Challenge"),
    "openbookqa": Source(
        ("openbookqa/Main/{split}.jsonl", "openbookqa/Main/{split}.tsv"),
        _openbookqa,
        _read_openbookqa,
        wording=Wording("{question}", exact=True),
    ),
    "winograd": Source((), _schema, named={"test": ("winograd/wsc273.jsonl",)}, wording=SCHEMA),
    "winogrande": Source(
        (),
        _schema,
        named={"train": ("winogrande/train_xl.jsonl",), "validation": ("winogrande/dev.jsonl",)},
        wording=SCHEMA,
    ),
    "boolq": _superglue("BoolQ", _boolq, "{passage}\nquestion: {question}?\nanswer:"),
    "cb": _superglue("CB", _cb, "{premise}\nquestion: {hypothesis}. true, false, or neither?\nanswer:"),
    "copa": _superglue("COPA", _copa, "{premise} {word}"),
    "rte": _superglue("RTE", _rte, "{premise}\nquestion: {hypothesis} True or False?\nanswer:"),
    "wic": _superglue(
        "WiC",
        _wic,
        "{sentence1}\n{sentence2}\nquestion: Is the word '{word}' used in the same way in the two sentences above?\n"
        "answer:",
    ),
    "wsc": _superglue(
        "WSC",
        _wsc,
        "Final Exam with Answer Key\nInstructions: Please carefully read the following passages. For each passage, you "
        "must identify which noun the pronoun marked in *bold* refers to.\n=====\nPassage: {passage}\nQuestion: In the "
        'passage above, what does the pronoun "{pronoun}" refer to?\nAnswer:',
        _read_wsc,
    ),
    "multirc": _superglue(
        "MultiRC",
        _multirc,
        "READING COMPREHENSION ANSWER KEY\n\n{passage}\n\n{question_text}\n\n",
        _read_multirc,
        named={SHOWN_SPLIT: ("superglue/MultiRC/train.jsonl", "fewglue/MultiRC/train.jsonl", "MultiRC/train.jsonl")},
    ),
}
