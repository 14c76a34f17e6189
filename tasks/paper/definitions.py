"""What the columns of the paper's tables average: sets of evaluated tasks, from the suites and the catalog."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from optiml_jax.common.errors import UserError
from optiml_jax.evaluation.prompts.ledger import LEVELS
from tasks.catalog import registry
from tasks.suites import super_natural_instructions_held_out, validation

GROUPS = dict(zip(LEVELS, ("Fully Held Out", "Partially Supervised", "Fully Supervised")))
FULLY, PARTIALLY, SUPERVISED = GROUPS.values()


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      key: its name in the table's file.
      group: the heading above it.
      tasks: returns the names of the tasks whose scores it averages.
      evaluated_at: number of shots in the paper's cell -> in an evaluation here, where they differ ("" for a cell
        without a number of shots).
    """

    key: str
    heading: str
    group: str
    tasks: Callable[[], frozenset[str]]
    evaluated_at: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """A table of scores.

    Attributes:
      rows: what a row is, the heading of its labels.
      averaged: whether it has an average over its columns.
      suite: the suite (or suites) whose results fill it.
      baseline: the row with which the paper compares the others, if it does.
    """

    number: int
    title: str
    rows: str
    columns: tuple[Column, ...]
    suite: str
    averaged: bool = True
    baseline: str | None = None


def _names(*names: str) -> Callable[[], frozenset[str]]:
    return lambda: frozenset(names)


def _of_catalog(benchmark: str, asks: Callable[[registry.CatalogRow], bool] = lambda row: True) -> Callable:
    return functools.cache(lambda: frozenset(row.name for row in registry.catalog(benchmark).values() if asks(row)))


_MMLU = _of_catalog("mmlu")


def _of_table_15(selects: Callable[[validation.Table15Row], bool]) -> Callable[[], frozenset[str]]:
    rows = (*validation.TABLE_15, *validation.BESIDE)
    names = frozenset(f"{row.benchmark}.{task}" for row in rows if selects(row) for task in row.tasks)
    return lambda: names


def _category(key: str, heading: str, level: str, category: str) -> Column:
    tasks = _of_table_15(lambda row: (row.level, row.category) == (level, category))
    return Column(key, heading, GROUPS[level], tasks)


def _benchmark(level: str, benchmark: str, key: str, heading: str) -> Column:
    tasks = _of_table_15(lambda row: (row.level, row.benchmark) == (level, benchmark))
    prefix = GROUPS[level].lower().replace(" ", "_")
    return Column(f"{prefix}_{key}", heading, GROUPS[level], tasks)


_HELD_OUT, _TASKS, _INSTANCES = LEVELS
CATEGORIES = (  # of Tables 4, 7, 8 and 16 to 20
    _category("cause_effect", "Cause Effect", _HELD_OUT, "cause_effect_classification"),
    _category("gram_corr", "Gram. Corr.", _HELD_OUT, "grammar_error_correction"),
    _category("stereo_det", "Stereo. Det.", _HELD_OUT, "stereotype_detection"),
    _category("word_ana", "Word Ana.", _HELD_OUT, "word_analogy"),
    _category("reas", "Reas.", _TASKS, "reasoning"),
    Column("mmlu", "MMLU", PARTIALLY, _MMLU),
    _category("qa", "QA", _TASKS, "question_answering"),
    _category("summ", "Summ.", _TASKS, "summarization"),
    _category("toxic_det", "Toxic Det.", _TASKS, "toxic_language_detection"),
    _category("dialogue", "Dialogue", _INSTANCES, "dialogue_generation"),
    _category("qa_fully_supervised", "QA", _INSTANCES, "question_answering"),
    _category("summ_fully_supervised", "Summ.", _INSTANCES, "summarization"),
)
BENCHMARKS = (  # of Table 5
    _benchmark(_HELD_OUT, "flan", "flan", "FLAN"),
    _benchmark(_HELD_OUT, "super_natural_instructions", "niv2", "NIV2"),
    _benchmark(_HELD_OUT, "promptsource", "promptsource", "PromptS."),
    _benchmark(_TASKS, "reasoning", "reas", "Reas."),
    _benchmark(_TASKS, "flan", "flan", "FLAN"),
    Column("partially_supervised_mmlu", "MMLU", PARTIALLY, _MMLU),
    _benchmark(_TASKS, "super_natural_instructions", "niv2", "NIV2"),
    _benchmark(_TASKS, "promptsource", "promptsource", "PromptS."),
    _benchmark(_INSTANCES, "flan", "flan", "FLAN"),
    _benchmark(_INSTANCES, "promptsource", "promptsource", "PromptS."),
)
ONCE = {"5": "0"}  # without a train split there are no demonstrations: the paper prints the 0-shot figure twice


def _each(benchmark: str, headings: Mapping[str, str], names: Mapping[str, str] = {}, **kwargs) -> tuple[Column, ...]:
    """Makes columns of one task each.

    Args:
      headings: key of a column -> its heading.
      names: key -> name of the task, where it is not the key.
    """
    return tuple(
        Column(key, heading, "", _names(f"{benchmark}.{names.get(key, key)}"), **kwargs)
        for key, heading in headings.items()
    )


_TABLE_9 = {
    "storycloze": "StoryCloze",
    "piqa": "PIQA",
    "arc_easy": "ARC (e)",
    "arc_challenge": "ARC (c)",
    "openbookqa": "OpenBookQA",
    "winograd": "Winograd",
    "winogrande": "Winogrande",
    "boolq": "BoolQ",
    "cb": "CB",
    "copa": "COPA",
    "rte": "RTE",
    "wic": "WiC",
    "wsc": "WSC",
    "multirc": "MultiRC",
}
_ANLI = {"anli_r1": "ANLI R1", "anli_r2": "ANLI R2", "anli_r3": "ANLI R3"}
_TABLE_10 = _ANLI | {
    "cb": "CB",
    "rte": "RTE",
    "storycloze": "StoryCloze",
    "wsc": "WSC",
    "wic": "WiC",
    "winogrande": "Winogrande",
    "blended_skill_talk": "Blended Skill Talk",
}
_PROMPTSOURCE = {
    "cb": "super_glue__cb",
    "rte": "super_glue__rte",
    "storycloze": "story_cloze__2016",
    "wsc": "super_glue__wsc.fixed",
    "wic": "super_glue__wic",
    "winogrande": "winogrande__winogrande_xl",
    "winogender": "super_glue__axg",
}
_TABLE_11 = _ANLI | {
    "cb": "CB",
    "mnli_m": "MNLI-m",
    "mnli_mm": "MNLI-mm",
    "rte": "RTE",
    "snli": "SNLI",
    "wnli": "WNLI",
    "boolq": "BoolQ",
    "openbookqa": "OpenBookQA",
    "arc_easy": "ARC (e)",
    "arc_challenge": "ARC (c)",
    "winogrande": "Winogrande",
    "wsc": "WSC",
}
_FLAN = {"mnli_m": "mnli_matched", "mnli_mm": "mnli_mismatched", "boolq": "bool_q"}
_TABLE_12 = {
    "textual_entailment": "Textual Entailment",
    "coreference_resolution": "Coreference Resolution",
    "dialogue_act_recognition": "Dialogue Act Recognition",
}


def _held_out(category: str) -> Callable[[], frozenset[str]]:
    asks = super_natural_instructions_held_out.asks
    return _of_catalog("super_natural_instructions", lambda row: asks(row) and row.category == category)


def _section_4(number: int, title: str, rows: str, suite: str = "validation", baseline: str | None = None):
    return Definition(number, title, rows, CATEGORIES, suite, baseline=baseline)


TABLES = {
    definition.number: definition
    for definition in (
        _section_4(4, "Maximum mixing rate (EPS)", "EPS", baseline="2^12"),
        Definition(
            5, "Proportions of the benchmarks", "CrossFit/ExMix/FLAN/NIV2/PS/T5/U-SKG", BENCHMARKS, "validation"
        ),
        _section_4(7, "0.5% dialogue data", "setting", baseline="Baseline"),
        _section_4(8, "Training with demonstrations (MetaICL)", "setting", baseline="Baseline"),
        Definition(9, "OPT's 14 tasks", "model", _each("opt_eval", _TABLE_9), "opt_eval"),
        Definition(
            10,
            "PromptSource",
            "model",
            _each("promptsource", _TABLE_10, _PROMPTSOURCE)
            + _each(
                "promptsource",
                {"winogender": "WinoGender", "crows_pairs": "CrowS-Pairs"},
                _PROMPTSOURCE,
                evaluated_at=ONCE,
            ),
            "promptsource",
        ),
        Definition(11, "FLAN", "model", _each("flan", _TABLE_11, _FLAN, evaluated_at={"k": "5"}), "flan"),
        Definition(
            12,
            "Super-NaturalInstructions, three held-out categories",
            "model",
            tuple(Column(key, heading, "", _held_out(key)) for key, heading in _TABLE_12.items()),
            "super_natural_instructions_held_out",
        ),
        Definition(
            13,
            "UnifiedSKG",
            "model",
            _each("unifiedskg", {"dart": "DART", "spider": "Spider", "multiwoz": "MultiWOZ"}),
            "unifiedskg",
            averaged=False,
        ),
        Definition(
            14,
            "BIG-Bench Hard, MMLU and RAFT",
            "model",
            (
                Column("bbh", "BBH", "", _of_catalog("bbh", lambda row: not row.name.endswith("_cot")), {"": "3"}),
                Column("mmlu", "MMLU", "", _MMLU),
                Column("raft", "RAFT", "", _of_catalog("raft"), {"": "5"}),  # HELM's number of shots
            ),
            "bbh,mmlu,raft",
            averaged=False,
        ),
        _section_4(16, "Number of training tasks", "# Tasks", baseline="1531"),
        _section_4(17, "Number of training categories", "# Categories", baseline="93"),
        _section_4(18, "Pre-training text", "% Pre-train", baseline="0 (Baseline)"),
        _section_4(19, "Reasoning data", "setting", baseline="Baseline"),
        _section_4(20, "Two line breaks between demonstrations", "setting", "validation_table_20", baseline="Baseline"),
    )
}


@dataclass(frozen=True)
class Figure:
    """A figure: the cells of a table as curves, in one panel per level and number of shots.

    Attributes:
      positions: row of the table -> its place on the x-axis.
      logarithmic: whether the x-axis is.
    """

    number: int
    table: int
    axis: str
    positions: Mapping[str, float]
    shots: tuple[str, ...]
    logarithmic: bool = False


FIGURES = {
    figure.number: figure
    for figure in (
        Figure(
            2,
            16,
            "training tasks",
            {"16": 16, "64": 64, "256": 256, "1024": 1024, "1531": 1531},
            ("0", "5"),
            logarithmic=True,
        ),
        Figure(3, 17, "training categories", {"4": 4, "16": 16, "64": 64, "93": 93}, ("0", "5"), logarithmic=True),
        Figure(4, 18, "% pre-training updates", {"0 (Baseline)": 0, "1": 1, "5": 5, "10": 10, "50": 50}, ("5",)),
        Figure(5, 19, "% reasoning data", {"Baseline": 0, "1% Reas.": 1, "2% Reas.": 2, "4% Reas.": 4}, ("5",)),
    )
}
ELSEWHERE = {
    1: "counts data sets: python -m tools.dataset_statistics --data_dir=data prints yours beside the paper's",
    2: "shows prompts: python -m tools.inspect_mixture shows those of a mixture",
    6: "shows prompts: python -m tools.inspect_mixture shows those of a mixture",
    15: "lists tasks: python -m tools.list_tasks --suite=validation --data_dir=data",
}
STATISTICS = (1, 3)  # tables of the paper that hold no scores


def definition(number: int) -> Definition:
    """The definition of a table of scores.

    Raises:
      UserError: the table does not exist, or shows something else.
    """
    if number in TABLES:
        return TABLES[number]
    if number in ELSEWHERE:
        raise UserError(f"--table={number}: {ELSEWHERE[number]}")
    raise UserError(f"--table={number}: there are {_listed([*STATISTICS, *TABLES])}")


def figure(number: int) -> Figure:
    """The definition of a figure.

    Raises:
      UserError: there is no such figure, or it is not a plot.
    """
    if number not in FIGURES:
        raise UserError(f"--figure={number}: figures with curves are {_listed(FIGURES)}")
    return FIGURES[number]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
