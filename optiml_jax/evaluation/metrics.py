"""Metrics of one prediction against its references: floats in [0, 1], the maximum over the references.

Accuracy belongs to rank classification, exact match and ROUGE-L to generated text (paper section 4.1). Nothing here is
multiplied by 100: tables that print per cent do so when they print.
"""

import re
import string
from collections.abc import Callable, Iterable, Sequence

from optiml_jax.errors import UserError, nearest
from optiml_jax.evaluation import rouge

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
    if normalization not in _NORMALIZATIONS:
        close = nearest(normalization, _NORMALIZATIONS)
        raise UserError(f"unknown normalization {normalization!r}{close}; known: {', '.join(_NORMALIZATIONS)}")
    of_prediction, of_reference = _NORMALIZATIONS[normalization]
    return float(of_prediction(prediction) in map(of_reference, _all(references)))


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


METRICS: dict[str, Callable[[str, References], float]] = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    "rouge_l": rouge_l,
}


def metric(name: str) -> Callable[[str, References], float]:
    """The metric of that name.

    Raises:
      UserError: an unknown name, with the nearest known ones.
    """
    if name not in METRICS:
        raise UserError(f"unknown metric {name!r}{nearest(name, METRICS)}; known: {', '.join(METRICS)}")
    return METRICS[name]
