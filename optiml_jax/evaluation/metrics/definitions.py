"""Metrics of a prediction against its references: floats in [0, 1], the maximum over the references.

Accuracy belongs to rank classification, exact match and ROUGE-L to generated text (paper section 4.1). The score of a
task is the mean over its predictions, except for macro-F1, which is computed from all of them. Scores are fractions;
tables convert them to per cent.
"""

import collections
import dataclasses
import functools
import inspect
import math
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optiml_jax.common.errors import UserError, nearest
from optiml_jax.evaluation.metrics import rouge

References = str | Iterable[str]  # a string is one reference

WORDS = ("ascii", "unicode")  # of ROUGE-L
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ENDS = (
    ".,;:!?\u2026\u3002\uff0c\u3001\uff1b\uff1a\uff01\uff1f\u060c\u061b\u061f\u0964"  # also of Chinese, Arabic, Hindi
)
_PAIRS = dict(zip("\"'`([{\u201c\u2018\u00ab\u300c\u300e\uff08", "\"'`)]}\u201d\u2019\u00bb\u300d\u300f\uff09"))
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _all(references: References) -> Sequence[str]:
    references = (references,) if isinstance(references, str) else tuple(references)
    if not references:
        raise ValueError("a prediction cannot be scored against no references")
    return references


def accuracy(prediction: str, references: References) -> float:
    """1.0 if the prediction is one of the references, ignoring surrounding white space; case and punctuation count."""
    return float(prediction.strip() in {reference.strip() for reference in _all(references)})


def _super_ni(text: str) -> str:
    """Super-NaturalInstructions' normalization: lower case, no ASCII punctuation, single spaces; articles remain."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def _squad(text: str) -> str:
    """SQuAD's normalization: as `_super_ni`, without the articles a, an and the."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _plain(text: str) -> str:
    """For answers in any language and notation: composed (NFC), lower case, single spaces, without quotes and brackets
    around the whole and marks of punctuation at its end. Signs, operators and inner punctuation remain."""
    text = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    while True:
        shorter = text.rstrip(_ENDS).rstrip()
        if len(shorter) > 1 and _PAIRS.get(shorter[0]) == shorter[-1]:
            shorter = shorter[1:-1].strip()
        if not shorter or shorter == text:
            return text
        text = shorter


def _bbh(text: str) -> str:
    """BIG-Bench Hard's answer: the text after the last "answer is", stripped, without one final full stop.

    Without "answer is" (direct prompting), the whole text, stripped.
    """
    _, marker, answer = text.rpartition("answer is")
    return answer.strip().removesuffix(".") if marker else text.strip()


# name -> (normalization of predictions, of references)
_NORMALIZATIONS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "none": (str, str),
    "super_ni": (_super_ni, _super_ni),
    "squad": (_squad, _squad),
    "plain": (_plain, _plain),
    "bbh": (_bbh, str.strip),  # the official targets are bare answers
}


def exact_match(prediction: str, references: References, *, normalization: str = "super_ni") -> float:
    """1.0 if the normalized prediction equals a normalized reference, else 0.0.

    Args:
      normalization: "none" (verbatim), "plain", "super_ni", "squad" or "bbh". Those of Super-NI and SQuAD remove all
        ASCII punctuation: -5 equals 5, and 1.5 equals 15.

    Raises:
      UserError: the normalization is unknown.
    """
    normalize_prediction, normalize_reference = _normalization(normalization)
    return float(normalize_prediction(prediction) in map(normalize_reference, _all(references)))


def _normalization(name: str) -> tuple[Callable[[str], str], Callable[[str], str]]:
    if name not in _NORMALIZATIONS:
        close = nearest(name, _NORMALIZATIONS)
        raise UserError(f"unknown normalization {name!r}{close}; known: {', '.join(_NORMALIZATIONS)}")
    return _NORMALIZATIONS[name]


def rouge_l(
    prediction: str,
    references: References,
    *,
    stem: bool = True,
    unscorable_exact: bool = False,
    words: str = "ascii",
    tokenize: rouge.Tokenize | None = None,
) -> float:
    """ROUGE-L F1; by default equal to `rouge-score` 0.1.2 to the last bit.

    Args:
      stem: applies Porter's stemmer to words of more than three letters, as Super-NaturalInstructions does.
      unscorable_exact: rouge-score only sees ASCII letters and digits and gives 0 even to equal texts without any
        ("+", most non-Latin scripts). True scores a pair of such texts by exact match, ignoring surrounding white
        space; False, the default, keeps rouge-score's 0.
      words: "ascii" for rouge-score's; "unicode" for those of every script (`rouge.unicode_words`), without stemming,
        and texts without any are scored by exact match.
      tokenize: another tokenizer (Super-NI's cross-lingual track uses GPT-2's tokens); `stem` is then ignored.
    """
    if words not in WORDS:
        raise UserError(f"unknown words {words!r} of rouge_l{nearest(words, WORDS)}; known: {', '.join(WORDS)}")
    tokenize = tokenize or rouge.tokenizer(stem, words)
    unscorable_exact = unscorable_exact or words == "unicode"
    predicted = tokenize(prediction)
    best = 0.0
    for reference in _all(references):
        reference_words = tokenize(reference)
        if unscorable_exact and not predicted and not reference_words:
            score = float(prediction.strip() == reference.strip())
        else:
            score = rouge.lcs_f1(predicted, reference_words)
        best = max(best, score)
    return best


def token_f1(prediction: str, references: References, *, normalization: str = "squad") -> float:
    """F1 of the words that prediction and reference share, counted with multiplicity (SQuAD's `f1_score`).

    Two texts without words are equal (SQuAD 2.0's rule for questions without an answer); if only one has none, F1 is 0.

    Args:
      normalization: as `exact_match`.
    """
    normalize_prediction, normalize_reference = _normalization(normalization)
    predicted = normalize_prediction(prediction).split()
    return max(_bag_f1(predicted, normalize_reference(reference).split()) for reference in _all(references))


def _bag_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((collections.Counter(predicted) & collections.Counter(expected)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def macro_f1(predictions: Sequence[str], references: Sequence[References]) -> float:
    """Mean F1 over all labels that are predicted or expected (RAFT; scikit-learn's `f1_score(average="macro")`).

    With several references, the expected label is the prediction if it is one of them, else the first reference.
    """
    expected = []
    for prediction, accepted in zip(predictions, references, strict=True):
        labels = [label.strip() for label in _all(accepted)]
        expected.append(prediction.strip() if prediction.strip() in labels else labels[0])
    pairs = collections.Counter(zip((prediction.strip() for prediction in predictions), expected))
    predicted_counts, expected_counts = collections.Counter(), collections.Counter()
    for (prediction, label), count in pairs.items():
        predicted_counts[prediction] += count
        expected_counts[label] += count
    labels = predicted_counts.keys() | expected_counts.keys()
    scores = [2 * pairs[label, label] / (predicted_counts[label] + expected_counts[label]) for label in labels]
    return math.fsum(scores) / len(scores)


@dataclasses.dataclass(frozen=True)
class Definition:
    """The facts about a metric that aggregation, tests and tables depend on.

    Attributes:
      score: the score of one prediction, (prediction, references, **parameters); of a metric over the task, the score
        that is shown beside a single answer.
      over_task: for a metric over the task, the score of all predictions, (predictions, references, **parameters);
        None: the score of a task is the mean over its predictions.
      binary: whether a prediction is right or wrong, with scores 1 and 0.
      bounds: of every score.
      higher_is_better: False for a perplexity or an error rate.
    """

    score: Callable[..., float]
    over_task: Callable[..., float] | None = None
    binary: bool = False
    bounds: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool = True


METRICS: dict[str, Definition] = {
    "accuracy": Definition(accuracy, binary=True),
    "exact_match": Definition(exact_match, binary=True),
    "rouge_l": Definition(rouge_l),
    "token_f1": Definition(token_f1),
    "macro_f1": Definition(accuracy, over_task=macro_f1),
}
REPORTED = "reported_by"  # the parameter that names the program that computed a metric which is not in `METRICS`


def _reported(_prediction: str, _references: References, **_: Any) -> float:
    raise UserError("the scores of a metric of another program cannot be computed here")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric with its parameters, as a ledger names it: `{"name": "exact_match", "normalization": "bbh"}`.

    Called with a prediction and its references it gives a score within its bounds. The scores of another program have a
    metric too, `{"name": "word_perplexity", "reported_by": "lm-evaluation-harness", "higher_is_better": false}`; they
    can be averaged and compared, but not computed.
    """

    name: str
    parameters: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, value: Any) -> "Metric":
        """Parses a name, or a JSON object with a name and parameters.

        Raises:
          UserError: the name or a parameter is unknown (the message suggests the nearest), or a value is invalid.
        """
        fields = {"name": value} if isinstance(value, str) else value
        if not isinstance(fields, Mapping) or not isinstance(fields.get("name"), str):
            raise UserError(f'a metric is a name or an object with "name", not {value!r}')
        name = fields["name"]
        if name not in METRICS and REPORTED not in fields:
            raise UserError(f"unknown metric {name!r}{nearest(name, METRICS)}; known: {', '.join(METRICS)}")
        parameters = {key: given for key, given in fields.items() if key != "name"}
        metric = cls(name, tuple(sorted(parameters.items())))
        try:
            _check_parameters(metric)
        except (TypeError, AttributeError) as error:
            raise UserError(f"metric {value!r}: {error}") from None
        return metric

    @property
    def definition(self) -> Definition:
        """The metric's functions, bounds and direction."""
        parameters = dict(self.parameters)
        if REPORTED not in parameters:
            return METRICS[self.name]
        return Definition(
            _reported,
            binary=bool(parameters.get("binary", False)),
            bounds=(0.0, 1.0) if parameters.get("binary") else (-math.inf, math.inf),
            higher_is_better=bool(parameters.get("higher_is_better", True)),
        )

    @property
    def over_task(self) -> bool:
        """Whether the score of a task is computed from all its predictions, rather than the mean of their scores."""
        return self.definition.over_task is not None

    def __call__(self, prediction: str, references: References) -> float:
        return self.definition.score(prediction, references, **dict(self.parameters))

    def sees(self, references: References) -> bool:
        """Whether the metric can score these references: rouge-score gives 0 even to equal texts without ASCII
        words."""
        return self.name != "rouge_l" or any(self(reference, reference) > 0 for reference in _all(references))

    def over(self, predictions: Sequence[str], references: Sequence[References]) -> float:
        """The score of several predictions: the mean of their scores, or the metric computed from all of them."""
        if (over_task := self.definition.over_task) is not None:
            return over_task(predictions, references, **dict(self.parameters))
        scores = [self(prediction, accepted) for prediction, accepted in zip(predictions, references, strict=True)]
        return math.fsum(scores) / len(scores)

    def to_json(self) -> dict[str, Any]:
        """Returns the value that `parse` accepts."""
        return {"name": self.name, **dict(self.parameters)}

    def __str__(self) -> str:
        values = "" if REPORTED in dict(self.parameters) else ", ".join(str(value) for _, value in self.parameters)
        return f"{self.name} ({values})" if values else self.name


@functools.cache  # a ledger repeats its few metrics on every line
def _check_parameters(metric: Metric) -> None:
    """Checks the metric's parameters against its signature, and by a trial call."""
    if REPORTED in dict(metric.parameters):
        return
    names = list(inspect.signature(METRICS[metric.name].score).parameters)[2:]
    for key, _ in metric.parameters:
        if key not in names:
            raise UserError(f"metric {metric.name} has no parameter {key!r}{nearest(key, names)}")
    metric("a", ("a",))
