"""Six data sets of dialogues (paper 4.7, Appendix A.2): turns joined by newlines, all of them predicted.

The paper measured their effect and excluded them from its models, so `opt_iml` has none of them. Each data set has a
folder of its name, here or in `parlai/`, in one of the formats that ParlAI stores or writes:

    <name>_{train,valid,test}.yml     acts: lists of {text, labels, episode_done}
    *train*.txt                       text:...<tab>labels:...<tab>episode_done:True, or numbered tab-separated lines,
                                      or objects as below
    *train*.json, *train*.jsonl       one object per dialogue, whose `dialog` has its turns

Personas and LIGHT's scenes precede the dialogue and are not turns. Dialogues in several files are read once.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from optiml_jax.common import typed_json
from optiml_jax.common.errors import DataError
from optiml_jax.data.specification import CacheOptions
from tasks.catalog.registry import Benchmark
from tasks.example import Skipped
from tasks.prompting import wordings
from tasks.prompting.wordings import Fields, Source, answers
from tasks.reading import records
from tasks.reading.fields import UnusableError, value
from tasks.reading.records import Row

NAME = "dialogue"
# task -> the folders, and of ParlAI's snapshots the one that has both speakers' turns
DATA_SETS = {
    "wizard_of_internet": ("wizard_of_internet", "wizard_of_internet_ApprenticeDialogTeacher"),
    "wizard_of_wikipedia": ("wizard_of_wikipedia", "wizard_of_wikipedia_basicdialog"),
    "blended_skill_talk": ("blended_skill_talk", "blended_skill_talk"),
    "convai2": ("convai2", "convai2"),
    "msc": ("msc", "msc"),
    "light_plus_wild": ("light_dialog*", "light_dialog*"),
}
UNREAD = {f"**/{folder}/**/*": "another form of dialogues that are read" for folder, _ in DATA_SETS.values()}
UNREAD["**/*"] = "not one of the six data sets that the paper took"
CONTEXT = re.compile(r"your persona:|partner's persona:|__SILENCE__|_(?!self_say|partner_say)\w+")
SPEAKER = re.compile(r"_(self|partner)_say ")
NUMBERED = re.compile(r"(\d+) (.*)")


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks that have data.

    Raises:
      MissingError: there are none.
    """
    sources = {}
    for task, (folder, snapshot) in DATA_SETS.items():
        names = (f"{snapshot}_{{split}}.yml", "**/*{split}*.txt", "**/*{split}*.json", "**/*{split}*.jsonl")
        patterns = tuple(f"{parent}{folder}/{name}" for parent in ("", "parlai/") for name in names)
        sources[task] = Source(patterns, _dialogue, _read, once=True)
    return wordings.discover(NAME, directory, options, sources, UNREAD, longer="chunk")


def _dialogue(row: Mapping[str, Any]) -> Iterator[Fields]:
    turns = [" ".join(turn.split()) for turn in row["turns"] if turn.strip()]
    if len(turns) < 2:
        raise UnusableError("a dialogue without turns")
    yield answers("\n".join(turns))


def _read(path: Path, split: str) -> Iterator[Row | Skipped]:
    """Yields the dialogues of a file, each as a row with its turns."""
    acts: list[Mapping[str, Any]] = []
    start = ""
    for row in _acts(path):
        if isinstance(row, Skipped):
            yield row
        elif "dialog" in row.values:
            yield row._replace(values={"turns": list(_spoken(value(row.values, "dialog")))})
        else:
            if row.values.get("starts") and acts:
                yield Row(row.number, start, {"turns": _said(acts)})
                acts = []
            start = start if acts else row.where
            acts.append(row.values)
            if row.values.get("episode_done") in (True, "True"):
                yield Row(row.number, start, {"turns": _said(acts)})
                acts = []
    if acts:
        yield Row(0, start, {"turns": _said(acts)})


def _spoken(turns: Any) -> Iterator[str]:
    """Returns the texts of `[{text}, ...]`, `[[speaker, text], ...]` or `[[{text}, {text}], ...]`."""
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, Mapping):
            yield str(turn.get("text") or "")
        elif isinstance(turn, list) and turn and isinstance(turn[-1], str):
            yield turn[-1]
        else:
            yield from _spoken(turn)


def _said(acts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Yields the turns of acts: the lines of a text, then the answer."""
    turns: list[str] = []
    for act in acts:
        for line in str(act.get("text") or "").split("\n"):
            spoken = SPEAKER.sub("", line, count=1)
            repeats = line.startswith("_self_say") and turns and spoken.strip() == turns[-1].strip()
            if not CONTEXT.match(line) and not repeats:
                turns.append(spoken)
        labels = act.get("labels") or act.get("eval_labels") or ()
        turns += [str(label) for label in labels[:1]]
    return turns


def _acts(path: Path) -> Iterator[Row | Skipped]:
    """Yields the acts of a file, or its whole dialogues."""
    if path.suffix == ".yml":
        try:
            document = yaml.load(path.read_text("utf-8"), yaml.CSafeLoader)["acts"]
            acts = [act for acts in document for act in acts]
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
            raise DataError(f"{path}: not ParlAI's YAML ({str(error).splitlines()[0]}); fetch the file again") from None
        for number, act in enumerate(acts, start=1):
            where = f"{path}#{number}"
            yield Row(number, where, act) if isinstance(act, dict) else Skipped(where, "not an act")
        return
    if path.suffix != ".txt":
        yield from records.read([path])
        return
    for number, line in records.lines(path):
        where = f"{path}:{number}"
        if isinstance(line, Skipped):
            yield line
        elif line.startswith("text:"):
            fields = dict(cell.partition(":")[::2] for cell in line.split("\t"))
            unescaped = {name: cell.replace("\\n", "\n") for name, cell in fields.items()}
            yield Row(number, where, unescaped | {"labels": unescaped.get("labels", "").split("|")})
        elif line.startswith("{"):  # Multi-Session Chat
            try:
                yield Row(number, where, typed_json.loads(line))
            except ValueError as error:
                yield Skipped(where, f"not JSON ({error})")
        elif match := NUMBERED.fullmatch(line):
            utterance, *answer = match[2].split("\t")
            yield Row(number, where, {"text": utterance, "labels": answer, "starts": match[1] == "1"})
        elif line.strip():
            yield Skipped(where, 'neither "text:...", nor a numbered line')
