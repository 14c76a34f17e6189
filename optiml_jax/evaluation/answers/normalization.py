"""What candidates are ranked by: the sum of their log-probabilities (paper 4.1), or that put right for their length.

Longer candidates have smaller sums, and frequent ones larger. What others do about it, by name: `per_token`;
`per_byte`, of the candidate without what joins it to the prompt (`acc_bytes` of lm-evaluation-harness);
`unconditional`, the sum less that of the candidate after nothing but `</s>` (Brown et al. 2020, section 2.4, in
logarithms; `acc_mutual_info`).
"""

from collections.abc import Sequence

from optiml_jax.inference.model import Ranked

RANKED_BY = ("sum", "per_token", "per_byte", "unconditional")


def put_right(name: str, ranked: Sequence[Ranked], scored: Sequence[Sequence[str]], alone: Sequence[Ranked]) -> list:
    """The scores of each prompt's candidates.

    Args:
      scored: of each candidate, the text that has a score, without what joins it to the prompt.
      alone: for `unconditional`, the same candidates after nothing.
    """
    sums = [of.scores for of in ranked]
    if name == "sum":
        return sums
    if name == "unconditional":
        return [[a - b for a, b in zip(one, other.scores, strict=True)] for one, other in zip(sums, alone, strict=True)]
    if name == "per_token":
        lengths = [list(map(len, of.tokens)) for of in ranked]
    else:
        lengths = [[len(text.encode()) for text in texts] for texts in scored]
    return [[a / n for a, n in zip(one, counts, strict=True)] for one, counts in zip(sums, lengths, strict=True)]
