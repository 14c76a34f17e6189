"""Candidate scores: summed log-probability (paper 4.1), optionally normalized by length or by unconditional likelihood.

Sums favour short and frequent candidates. Normalizations, by name: `per_token`; `per_byte`, of the candidate without
the separator that joins it to the prompt (`acc_bytes` of lm-evaluation-harness); `unconditional`, the sum minus that of
the candidate after nothing but `</s>` (Brown et al. 2020, section 2.4, in logarithms; `acc_mutual_info`).
"""

from collections.abc import Sequence

from optiml_jax.common.errors import UserError, check_known
from optiml_jax.evaluation.prompts.ledger import RANK, Prompt
from optiml_jax.inference.model import Ranked

RANKED_BY = ("sum", "per_token", "per_byte", "unconditional")


def check(name: str, prompts: Sequence[Prompt]) -> None:
    """Checks that the candidates of the prompts can be ranked by this score.

    Raises:
      UserError: the name is unknown; or `unconditional` for an empty prompt, whose candidates would all score zero.
    """
    check_known("RANKED_BY", name, RANKED_BY)
    empty = [prompt for prompt in prompts if prompt.output_type == RANK and not prompt.prompt.strip()]
    if name == "unconditional" and empty:
        raise UserError(
            f"RANKED_BY={name}: prompt {empty[0].id} is empty (one of {len(empty):,}), so each of its candidates would "
            "score zero; use another RANKED_BY, or leave its task out"
        )


def normalize(
    name: str, ranked: Sequence[Ranked], scored_texts: Sequence[Sequence[str]], unconditional: Sequence[Ranked]
) -> list[list[float]]:
    """Returns the normalized scores of each prompt's candidates.

    Args:
      name: of the normalization, in `RANKED_BY`.
      scored_texts: the scored text of each candidate, without the separator that joins it to the prompt.
      unconditional: for `unconditional`, the same candidates after an empty prompt.
    """
    sums = [prompt.scores for prompt in ranked]
    if name == "sum":
        return sums
    if name == "unconditional":
        baselines = [prompt.scores for prompt in unconditional]
        return [
            [a - b for a, b in zip(scores, base, strict=True)] for scores, base in zip(sums, baselines, strict=True)
        ]
    if name == "per_token":
        lengths = [list(map(len, prompt.tokens)) for prompt in ranked]
    else:
        lengths = [[len(text.encode()) for text in texts] for texts in scored_texts]
    return [[a / n for a, n in zip(scores, counts, strict=True)] for scores, counts in zip(sums, lengths, strict=True)]
