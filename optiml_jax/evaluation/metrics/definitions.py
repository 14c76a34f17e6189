"""Metrics of one prediction against its references: floats in [0, 1], the maximum over the references.

Accuracy belongs to rank classification, exact match and ROUGE-L to generated text (paper section 4.1). A task's score
is the mean over its predictions, but for macro-F1, which needs them together. Nothing here is multiplied by 100: tables
that print per cent do so when they print.
"""

import collections
import dataclasses
import functools
import inspect
import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optiml_jax.common.errors import UserError, nearest
from optiml_jax.evaluation.metrics import rouge

References = str | Iterable[str]  # a string is one reference

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _all(references: References) -> Sequence[str]:
    references = (references,) if isinstance(references, str) else tuple(references)
    if not references:
        raise ValueError("a prediction cannot be scored against no references")
    return references


def accuracy(prediction: str, references: References) -> float:
    """1.0 if the prediction is one of the references, surrounding white space aside; case and punctuation count."""
    return float(prediction.strip() in {reference.strip() for reference in _all(references)})


def _super_ni(text: str) -> str:
    """Super-NaturalInstructions' evaluation: lower case, no ASCII punctuation, single spaces. Articles stay."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def _squad(text: str) -> str:
    """SQuAD's evaluation: as `_super_ni`, and a, an and the go."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _bbh(text: str) -> str:
    """BIG-Bench Hard's answer: what follows the last "answer is", without white space around and one final full stop.

    Without "answer is" (direct prompting) the whole text, stripped.
    """
    _, found, answer = text.rpartition("answer is")
    return answer.strip().removesuffix(".") if found else text.strip()


# name -> (normalization of predictions, of references)
_NORMALIZATIONS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "none": (str, str),
    "super_ni": (_super_ni, _super_ni),
    "squad": (_squad, _squad),
    "bbh": (_bbh, str.strip),  # the official targets are answers already
}


def exact_match(prediction: str, references: References, *, normalization: str = "super_ni") -> float:
    """1.0 if the normalized prediction equals a normalized reference, else 0.0.

    Args:
      normalization: "none" (verbatim), "super_ni", "squad" or "bbh".

    Raises:
      UserError: an unknown normalization.
    """
    of_prediction, of_reference = _normalization(normalization)
    return float(of_prediction(prediction) in map(of_reference, _all(references)))


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
    tokenize: rouge.Tokenize | None = None,
) -> float:
    """ROUGE-L F1, the value of `rouge-score` 0.1.2 to the last bit.

    Args:
      stem: Porter's stemmer over words of more than three letters, as Super-NaturalInstructions reports.
      unscorable_exact: rouge-score knows only ASCII letters and digits and gives 0 even to equal texts without any
        ("+", most non-Latin scripts). True scores a pair of such texts by exact match (surrounding white space aside).
        False, the default, keeps rouge-score's 0.
      tokenize: another tokenizer (Super-NI's cross-lingual track uses GPT-2's pieces); `stem` then does nothing.
    """
    tokenize = tokenize or rouge.tokenizer(stem)
    predicted = tokenize(prediction)
    best = 0.0
    for reference in _all(references):
        wanted = tokenize(reference)
        if unscorable_exact and not predicted and not wanted:
            score = float(prediction.strip() == reference.strip())
        else:
            score = rouge.lcs_f1(predicted, wanted)
        best = max(best, score)
    return best


def token_f1(prediction: str, references: References, *, normalization: str = "squad") -> float:
    """F1 of the words that prediction and reference share, as often as both have them (SQuAD's `f1_score`).

    Two texts without words are equal (SQuAD 2.0's rule for questions without an answer), one without is wrong.

    Args:
      normalization: as `exact_match`.
    """
    of_prediction, of_reference = _normalization(normalization)
    predicted = of_prediction(prediction).split()
    return max(_bag_f1(predicted, of_reference(reference).split()) for reference in _all(references))


def _bag_f1(predicted: Sequence[str], wanted: Sequence[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    shared = sum((collections.Counter(predicted) & collections.Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def macro_f1(predictions: Sequence[str], references: Sequence[References]) -> float:
    """Mean of the F1 of every label that is predicted or wanted (RAFT; scikit-learn's `f1_score(average="macro")`).

    Where several references are right, the prediction if it is one of them, else the first, is the wanted label.
    """
    wanted = []
    for prediction, right in zip(predictions, references, strict=True):
        labels = [label.strip() for label in _all(right)]
        wanted.append(prediction.strip() if prediction.strip() in labels else labels[0])
    pairs = collections.Counter(zip((prediction.strip() for prediction in predictions), wanted))
    of_prediction, of_wanted = collections.Counter(), collections.Counter()
    for (prediction, label), count in pairs.items():
        of_prediction[prediction] += count
        of_wanted[label] += count
    labels = of_prediction.keys() | of_wanted.keys()
    found = [2 * pairs[label, label] / (of_prediction[label] + of_wanted[label]) for label in labels]
    return math.fsum(found) / len(found)


# Of one prediction. A name in `TOGETHER` has its score from all predictions of a task, and here what one of them is.
METRICS: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    "rouge_l": rouge_l,
    "token_f1": token_f1,
    "macro_f1": accuracy,
}
TOGETHER: dict[str, Callable[[Sequence[str], Sequence[References]], float]] = {"macro_f1": macro_f1}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric with its parameters, as a ledger names it: `{"name": "exact_match", "normalization": "bbh"}`.

    Called with a prediction and its references it gives a score in [0, 1].
    """

    name: str
    parameters: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, value: Any) -> "Metric":
        """From a name, or a JSON object of a name and parameters.

        Raises:
          UserError: an unknown name or parameter (names the nearest), or a parameter's value that cannot be.
        """
        fields = {"name": value} if isinstance(value, str) else value
        if not isinstance(fields, Mapping) or not isinstance(fields.get("name"), str):
            raise UserError(f'a metric is a name or an object with "name", not {value!r}')
        name = fields["name"]
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}{nearest(name, METRICS)}; known: {', '.join(METRICS)}")
        parameters = {key: given for key, given in fields.items() if key != "name"}
        metric = cls(name, tuple(sorted(parameters.items())))
        try:
            _check_parameters(metric)
        except (TypeError, AttributeError) as error:
            raise UserError(f"metric {value!r}: {error}") from None
        return metric

    def __call__(self, prediction: str, references: References) -> float:
        return METRICS[self.name](prediction, references, **dict(self.parameters))

    def over(self, predictions: Sequence[str], references: Sequence[References]) -> float:
        """The score of several predictions: the mean of theirs, or what the metric makes of them together."""
        if self.name in TOGETHER:
            return TOGETHER[self.name](predictions, references)
        scores = [self(prediction, right) for prediction, right in zip(predictions, references, strict=True)]
        return math.fsum(scores) / len(scores)

    def to_json(self) -> dict[str, Any]:
        """What `parse` takes."""
        return {"name": self.name, **dict(self.parameters)}

    def __str__(self) -> str:
        values = ", ".join(str(value) for _, value in self.parameters)
        return f"{self.name} ({values})" if values else self.name


@functools.cache  # a ledger names its few metrics in every line
def _check_parameters(metric: Metric) -> None:
    """Whether the metric has these parameters, by its signature and by a trial."""
    known = list(inspect.signature(METRICS[metric.name]).parameters)[2:]
    for key, _ in metric.parameters:
        if key not in known:
            raise UserError(f"metric {metric.name} has no parameter {key!r}{nearest(key, known)}")
    metric("a", ("a",))
