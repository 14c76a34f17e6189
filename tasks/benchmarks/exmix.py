"""ExMix (Aribandi et al. 2022), whose data were never released: read from the sources that the paper names (Appendix
A.1).

Each is read in the layout of its own repository, in a folder with the task's name or, where it is shorter:

    cogs/{train,dev,test}.tsv                         sentence, logical form, distribution
    shakespearizing/{train,valid,test}.{modern,original}.nltktok
    styleptb/<code>/{train,valid,test}.tsv            output of its checkout script, and its "Compositional Datasets"
    gpt2_output_dataset/{webtext,xl-1542M,...}.{train,valid,test}.jsonl
    unimer_funql/{atis,geo,job}/*_funql_{train,dev,test}.tsv
    ukp/*.tsv                                         with columns topic, sentence, annotation, set
    news_quiz_qa/*{train,dev,test}.csv                url, question, answer
    wned/{split}.jsonl, aidayago2/{split}.jsonl       KILT's records, or rows of `datasets`
    wikipedia_toxicity_subtypes/{split}.jsonl         or a folder prepared by TensorFlow Datasets
    dialoglue/{clinc,banking,hwu}/{train,val,test}.csv, dialoglue/{restaurant8k,dstc8_sgd}/{train,val,test}.json,
    dialoglue/top/{train,eval,test}.tsv
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import DataError
from optiml_jax.data.specification import CacheOptions
from tasks.catalog.registry import Benchmark
from tasks.example import Skipped
from tasks.prompting import wordings
from tasks.prompting.wordings import Fields, Source, answers
from tasks.reading import records
from tasks.reading.fields import UnusableError, text, value
from tasks.reading.records import Row

NAME = "exmix"
# StylePTB's codes (its README) as instructions; that of VSR is the paper's Figure 52.
STYLES = {
    "TFU": "Rewrite this sentence in the future tense.",
    "TPA": "Rewrite this sentence in the past tense.",
    "TPR": "Rewrite this sentence in the present tense.",
    "ATP": "Change this sentence from the active to the passive voice.",
    "PTA": "Change this sentence from the passive to the active voice.",
    "PFB": "Move the prepositional phrase of this sentence from the front to the back.",
    "PBF": "Move the prepositional phrase of this sentence from the back to the front.",
    "IAD": "Add the given information to this sentence.",
    "ARR": "Remove the adjectives and adverbs from this sentence.",
    "SBR": "Remove the substatement from this sentence.",
    "PPR": "Remove the prepositional phrases from this sentence.",
    "AEM": "In this sentence, emphasize the given adjective.",
    "VEM": "In this sentence, emphasize the given verb.",
    "NSR": "In this sentence, replace nouns with their synonyms.",
    "ASR": "In this sentence, replace adjectives with their synonyms.",
    "VSR": "In this sentence, replace verbs with their synonyms.",
    "NAR": "In this sentence, replace nouns with their antonyms.",
    "AAR": "In this sentence, replace adjectives with their antonyms.",
    "VAR": "In this sentence, replace verbs with their antonyms.",
    "LFS": "In this sentence, replace words with their least frequent synonyms.",
    "MFS": "In this sentence, replace words with their most frequent synonyms.",
}
# Its compositional sets put a number a change before the sentence; 0 (and 4 of PP removal) is none.
TENSE = {"1": "TFU", "2": "TPA", "3": "TPR"}
VOICE, ORDER, NO_PHRASES, NO_MODIFIERS = {"1": "ATP", "2": "PTA"}, {"1": "PFB", "2": "PBF"}, {"1": "PPR"}, {"1": "ARR"}
COMPOSED = {
    "Tense + Voice": (TENSE, VOICE),
    "Tense + Voice + PP Removal": (TENSE, VOICE, NO_PHRASES),
    "Tense + ADJADV Removal": (TENSE, NO_MODIFIERS),
    "Tense + PP Front Back": (TENSE, ORDER),
    "Tense + PP Removal": (TENSE, {"5": "PPR"}),
    "Voice + PP Removal": (NO_PHRASES, VOICE),
    "PP Front Back + ADJADV Removal": (NO_MODIFIERS, ORDER),
}
STANCES = {
    "Argument_for": "argument for",
    "Argument_against": "argument against",
    "NoArgument": "no argument",
}


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks that have data.

    Raises:
      MissingError: there are none.
    """
    return wordings.discover(NAME, directory, options, SOURCES)


def _pair(row: Mapping[str, Any]) -> Iterator[Fields]:
    yield {"input": text(row, "input")} | answers(text(row, "output"))


def _aligned(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads two files line by line: modern English and Shakespeare's."""
    other = path.with_name(path.name.replace(".modern.", ".original."))
    if not other.is_file():
        raise DataError(f"{other}: is not there; its lines are the answers to those of {path.name}")
    for (number, modern), (_, original) in itertools.zip_longest(
        records.lines(path), records.lines(other), fillvalue=(0, None)
    ):
        if modern is None or original is None:
            short = path if modern is None else other
            raise DataError(f"{short}: fewer lines than the file beside it, whose lines belong to its own; fetch both")
        if wrong := next((line for line in (modern, original) if isinstance(line, Skipped)), None):
            yield wrong
        else:
            yield Row(number, f"{path}:{number}", {"input": modern, "output": original})


def _styles(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads a file of StylePTB: its folder names the changes of its lines, or of the numbers before them."""
    changes = COMPOSED.get(name := path.parent.name, ())
    if not changes and name not in STYLES:
        raise DataError(f"{path}: {name} is none of StylePTB's sets: {', '.join((*STYLES, *COMPOSED))}")
    for row in records.tabs("input", "output")(path, split):
        if isinstance(row, Row):
            *numbers, sentence = row.values["input"].split(" ", len(changes))
            codes = [code[number] for code, number in zip(changes, numbers) if number in code]
            row = row._replace(values=row.values | {"codes": codes if changes else [name], "input": sentence})
        yield row


def _style(row: Mapping[str, Any]) -> Iterator[Fields]:
    instruction = " ".join(STYLES[code] for code in row["codes"]) or "Leave this sentence as it is."
    yield {"instruction": instruction} | next(_pair(row))


def _machine_written(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads web texts and texts by GPT-2; the file name tells which."""
    answer = "No" if path.name.startswith("webtext") else "Yes"
    for row in records.read([path]):
        yield row._replace(values={"input": row.values.get("text"), "output": answer}) if isinstance(row, Row) else row


def _arguments(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Reads UKP's sentences of one split, which is a column. Unusable rows are counted with "train"."""
    for row in records.table(path, delimiter="\t"):
        in_split = split == "train" if isinstance(row, Skipped) else row.values.get("set") in wordings.NAMES[split]
        if in_split:
            yield row


def _argument(row: Mapping[str, Any]) -> Iterator[Fields]:
    annotation = text(row, "annotation")
    if annotation not in STANCES:
        raise UnusableError(f"the annotation {annotation!r} is none of {', '.join(STANCES)}")
    yield {"topic": text(row, "topic"), "input": text(row, "sentence")} | answers(STANCES[annotation])


def _entity(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Converts a KILT record: a passage with a marked mention, and the titles to which it may refer."""
    titles = [output["answer"] for output in value(row, "output") if output.get("answer")]
    yield {"input": text(row, "input")} | answers(*titles)


def _toxic(row: Mapping[str, Any]) -> Iterator[Fields]:
    yield {"input": text(row, "text")} | answers("Yes" if float(value(row, "toxicity")) >= 0.5 else "No")


def _intent(row: Mapping[str, Any]) -> Iterator[Fields]:
    yield {"input": text(row, "text")} | answers(text(row, "category").replace("_", " "))


def _slots(row: Mapping[str, Any]) -> Iterator[Fields]:
    """Reads DialoGLUE's slots: spans of a user's utterance."""
    utterance = text(row, "userInput.text")
    slots = []
    for label in row.get("labels", []):
        span = label["valueSpan"]
        slots.append(f"{label['slot']}: {utterance[span.get('startIndex', 0) : span.get('endIndex')]}")
    yield {"input": utterance} | answers("; ".join(slots) or "none")


def _news(row: Mapping[str, Any]) -> Iterator[Fields]:
    yield {"input": text(row, "question")} | answers(text(row, "answer"))


def _tree(row: Mapping[str, Any]) -> Iterator[Fields]:
    yield {"input": text(row, "utterance")} | answers(text(row, "tree"))


def _prepared(name: str) -> tuple[str, ...]:
    """Reads a folder of rows, or files with the split in their name, such as KILT's `wned-dev-kilt.jsonl`."""
    return f"{name}/", f"{name}/*{{split}}*.jsonl"


SOURCES = {
    "cogs": Source(("cogs/{split}.tsv",), _pair, records.tabs("input", "output", "distribution")),
    "shakespearizingmodernenglish": Source(
        ("shakespearizing/{split}.modern.nltktok",), _pair, _aligned, ("shakespearizing/*.original.nltktok",)
    ),
    "styleptb": Source(("styleptb/**/{split}.tsv",), _style, _styles),
    "gpt2_output_dataset": Source(("gpt2_output_dataset/*.{split}.jsonl",), _pair, _machine_written),
    "unimer": Source(("unimer_funql/*/*_funql_{split}.tsv",), _pair, records.tabs("input", "output")),
    "ukp": Source(("ukp/*.tsv",), _argument, _arguments),
    "newsquizqa": Source(("news_quiz_qa/*{split}.csv",), _news, records.table),
    "wned": Source(_prepared("wned"), _entity),
    "aidayago2": Source(_prepared("aidayago2"), _entity),
    "wikipedia_toxicity_subtypes": Source(_prepared("wikipedia_toxicity_subtypes"), _toxic),
    "dialoglue_top": Source(("dialoglue/top/{split}.tsv",), _tree, records.tabs("utterance", "tokens", "tree")),
}
SOURCES |= {
    f"dialoglue_{task}": Source((f"dialoglue/{folder}/{{split}}.csv",), _intent, records.table)
    for task, folder in (("banking77", "banking"), ("clinc150", "clinc"), ("hwu64", "hwu"))
}
SOURCES |= {
    f"dialoglue_{task}": Source((f"dialoglue/{task}/{{split}}.json",), _slots) for task in ("restaurant8k", "dstc8_sgd")
}
