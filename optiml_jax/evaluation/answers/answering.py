"""Answers the prompts of a ledger: ranks candidates or generates text."""

import collections
import functools
from collections.abc import Iterator, Sequence

from optiml_jax.evaluation.answers.cache import Answer
from optiml_jax.evaluation.answers.normalization import normalize
from optiml_jax.evaluation.prompts.ledger import Prompt
from optiml_jax.inference.model import Model, Ranked
from optiml_jax.tokenizer import join

# Batches of rows answered together: prompts are grouped so that similar lengths and shared prefixes can be batched; a
# group is saved atomically.
BATCHES_PER_GROUP = 16


def answer_all(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    batch_rows: int | None,
    max_new_tokens: int,
    ranked_by: str = "sum",
    batches: int | None = None,
) -> Iterator[tuple[list[Prompt], list[Answer]]]:
    """Yields groups of prompts with their answers.

    Args:
      batch_rows: rows computed at once, None: as many as memory allows; changes no score.
      max_new_tokens: limit of generated answers.
      ranked_by: score that candidates are ranked by, a name in `normalization.RANKED_BY`.
      batches: of rows per group; None: `BATCHES_PER_GROUP`.
    """
    rank = functools.partial(_rank, batch_rows=batch_rows, ranked_by=ranked_by)
    generate = functools.partial(_generate, batch_rows=batch_rows, max_new_tokens=max_new_tokens)
    for answer, selected in (
        (rank, [prompt for prompt in prompts if prompt.candidates is not None]),
        (generate, [prompt for prompt in prompts if prompt.candidates is None]),
    ):
        size = (batches or BATCHES_PER_GROUP) * (batch_rows or model.capacity.rows)
        for first in range(0, len(selected), size):
            group = selected[first : first + size]
            yield group, answer(model, group)


def _fit(model: Model, prompt: Prompt, answers: Sequence[str], tokens: int = 0) -> tuple[list[tuple[str, str]], int]:
    """Drops demonstrations that do not fit the model.

    Args:
      tokens: room to reserve in addition to the longest answer.

    Returns:
      (prompt, answer) as they meet, for each answer; and the number of dropped demonstrations.
    """
    for dropped in range(len(prompt.demonstration_spans) + 1):
        text = prompt.without(dropped)
        pairs = [join(text, answer, prompt.separator) for answer in answers]
        if dropped == len(prompt.demonstration_spans):  # nothing left to drop: a prompt still too long will be cut
            break
        longest = max(len(model.tokenizer.encode(answer)) for _, answer in pairs)
        if not model.is_cut(model.prompt_ids(pairs[0][0]), longest + tokens):
            break
    return pairs, dropped


def _rank(model: Model, prompts: list[Prompt], batch_rows: int | None, ranked_by: str = "sum") -> list[Answer]:
    fitted = [_fit(model, prompt, prompt.candidates) for prompt in prompts]
    given = [_given_with_separator(prompt, pairs) for prompt, (pairs, _) in zip(prompts, fitted)]
    reasons = [_unrankable(model, prompt, pairs, counts) for prompt, (pairs, _), counts in zip(prompts, fitted, given)]
    rankable = [i for i, reason in enumerate(reasons) if reason is None]

    def rank(sources: list[str]) -> list[Ranked]:
        return model.rank_prompts(
            sources,
            [[answer for _, answer in fitted[i][0]] for i in rankable],
            batch_rows,
            [prompts[i].id for i in rankable],
            [given[i] for i in rankable],
        )

    ranked = rank([fitted[i][0][0][0] for i in rankable])
    unconditional = rank([""] * len(rankable)) if ranked_by == "unconditional" else []
    texts = [[text[count:] for text, count in zip(prompts[i].candidates, _given(prompts[i]))] for i in rankable]
    scores = normalize(ranked_by, ranked, texts, unconditional)
    answers = {}
    for i, candidate_scores, (_, tokens, cut) in zip(rankable, scores, ranked):
        best = max(range(len(candidate_scores)), key=candidate_scores.__getitem__)  # the first among equals
        answers[i] = {
            "prediction": prompts[i].candidates[best],
            "scores": candidate_scores,
            "token_scores": [[[text, round(score, 4)] for text, score in candidate] for candidate in tokens],
            "prompt_cut": cut,
            "dropped": fitted[i][1],
            "remark": _duplicate(prompts[i].candidates),
        }
    return [answers.get(i, {"prediction": None, "remark": reason}) for i, reason in enumerate(reasons)]


def _given(prompt: Prompt) -> Sequence[int]:
    """Length of each candidate's given (unscored) prefix, in characters."""
    return prompt.given or (0,) * len(prompt.candidates)


def _given_with_separator(prompt: Prompt, pairs: Sequence[tuple[str, str]]) -> list[int]:
    """Length of each candidate's given prefix, in characters, with the separator that joins it to the prompt."""
    if not prompt.given:
        return [0] * len(pairs)
    return [
        len(answer) - len(candidate) + count
        for (_, answer), candidate, count in zip(pairs, prompt.candidates, prompt.given, strict=True)
    ]


def _unrankable(model: Model, prompt: Prompt, pairs: Sequence[tuple[str, str]], given: Sequence[int]) -> str | None:
    """Why the candidates of a prompt cannot be scored; None if they can."""
    for (_, answer), candidate, count in zip(pairs, prompt.candidates, given):
        if not candidate.strip():
            return "a candidate is empty"
        if (tokens := len(model.tokenizer.encode(answer[count:]))) > model.config.max_positions:
            return f"a candidate of {tokens} tokens, longer than the model's {model.config.max_positions} positions"
    return None


def _duplicate(candidates: Sequence[str]) -> str | None:
    repeated = [text for text, count in collections.Counter(candidates).items() if count > 1]
    return f"candidate {repeated[0]!r} is listed twice" if repeated else None


def _generate(model: Model, prompts: list[Prompt], batch_rows: int | None, max_new_tokens: int) -> list[Answer]:
    limits = [min(prompt.max_new_tokens or max_new_tokens, max_new_tokens) for prompt in prompts]
    fitted, dropped = zip(*(_fit(model, prompt, ("",), limit + 1) for prompt, limit in zip(prompts, limits)))
    sources, stop = [pairs[0][0] for pairs in fitted], [prompt.stop for prompt in prompts]
    generated = model.generate_prompts(sources, limits, stop, batch_rows, [prompt.id for prompt in prompts])
    return [
        {
            "prediction": answer.text.strip(),
            "truncated": answer.truncated,
            "prompt_cut": answer.prompt_cut,
            "dropped": count,
        }
        for count, answer in zip(dropped, generated)
    ]
