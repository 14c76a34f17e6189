"""Answers the prompts of a ledger: ranks candidates or generates text."""

import bisect
import collections
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from optiml_jax.data.prefetch import Prefetcher
from optiml_jax.evaluation.answers.cache import Answer
from optiml_jax.evaluation.answers.normalization import normalize
from optiml_jax.evaluation.prompts.ledger import Prompt
from optiml_jax.inference.decoding import Window, decode_windows
from optiml_jax.inference.model import Model, PreparedRanking
from optiml_jax.tokenizer import join

Item, Prepared = TypeVar("Item"), TypeVar("Prepared")

# Batches of rows per group: prompts are grouped so that similar lengths and shared prefixes can be batched; a group is
# saved atomically. A generated group starts while the last answers of the one before it are still written.
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
    """Yields groups of prompts with their answers. The next group is prepared while one is computed.

    Args:
      batch_rows: rows computed at once, None: as many as memory allows; changes no score.
      max_new_tokens: limit of generated answers.
      ranked_by: score that candidates are ranked by, a name in `normalization.RANKED_BY`.
      batches: of rows per group; None: `BATCHES_PER_GROUP`.
    """
    capacity = model.capacity  # read here because processes agree on it, which a thread must not
    size = (batches or BATCHES_PER_GROUP) * (batch_rows or capacity.rows)

    def groups(selected: list[Prompt]) -> list[list[Prompt]]:
        return [selected[first : first + size] for first in range(0, len(selected), size)]

    yield from _rank(
        model, groups([prompt for prompt in prompts if prompt.candidates is not None]), batch_rows, ranked_by
    )
    generated = groups([prompt for prompt in prompts if prompt.candidates is None])
    yield from _generate(model, generated, batch_rows, max_new_tokens)


def _prepared_ahead(prepare: Callable[[Item], Prepared], groups: Sequence[Item]) -> Iterator[Prepared]:
    """Prepares every group, one ahead, in a thread of its own."""
    prefetcher = Prefetcher(lambda: map(prepare, groups), depth=1)
    with contextlib.closing(prefetcher):
        for _ in groups:
            yield prefetcher.get()[0]


def fit(model: Model, prompt: Prompt, answers: Sequence[str], tokens: int = 0) -> tuple[list[tuple[str, str]], int]:
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


class _Rankable(NamedTuple):
    """A group of prompts, made ready.

    Attributes:
      dropped: demonstrations of each prompt.
      reasons: why the candidates of a prompt cannot be scored; None if they can.
      rankable: indices of the prompts whose candidates can be scored.
      rankings: of these, and of their candidates alone, if answers are ranked by "unconditional".
    """

    prompts: list[Prompt]
    dropped: list[int]
    reasons: list[str | None]
    rankable: list[int]
    rankings: list[PreparedRanking]


def _rank(
    model: Model, groups: Sequence[list[Prompt]], batch_rows: int | None, ranked_by: str
) -> Iterator[tuple[list[Prompt], list[Answer]]]:
    def prepare(prompts: list[Prompt]) -> _Rankable:
        pairs, dropped = zip(*(fit(model, prompt, prompt.candidates) for prompt in prompts))
        given = list(map(_given_with_separator, prompts, pairs))
        reasons = [_unrankable(model, *arguments) for arguments in zip(prompts, pairs, given)]
        rankable = [i for i, reason in enumerate(reasons) if reason is None]

        def prepare_after(sources: list[str]) -> PreparedRanking:
            candidates = [[answer for _, answer in pairs[i]] for i in rankable]
            names = [prompts[i].id for i in rankable]
            return model.prepare_ranking(sources, candidates, batch_rows, names, [given[i] for i in rankable])

        rankings = [prepare_after([pairs[i][0][0] for i in rankable])]
        if ranked_by == "unconditional":
            rankings.append(prepare_after([""] * len(rankable)))
        return _Rankable(prompts, list(dropped), reasons, rankable, rankings)

    ready = _prepared_ahead(prepare, groups)
    with contextlib.closing(ready):
        for group in ready:
            yield group.prompts, _rank_group(model, group, ranked_by)


def _rank_group(model: Model, group: _Rankable, ranked_by: str) -> list[Answer]:
    prompts, rankable = group.prompts, group.rankable
    ranked, *rest = map(model.rank_prepared, group.rankings)
    unconditional = rest[0] if rest else []
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
            "dropped": group.dropped[i],
            "remark": _duplicate(prompts[i].candidates),
        }
    return [answers.get(i, {"prediction": None, "remark": reason}) for i, reason in enumerate(group.reasons)]


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


def _generate(
    model: Model, groups: Sequence[list[Prompt]], batch_rows: int | None, max_new_tokens: int
) -> Iterator[tuple[list[Prompt], list[Answer]]]:
    dropped: dict[int, int] = {}  # demonstrations, by the number of the prompt
    starts = [0, *itertools.accumulate(map(len, groups))]

    def prepare(index: int) -> Window:
        prompts = groups[index]
        limits = [min(prompt.max_new_tokens or max_new_tokens, max_new_tokens) for prompt in prompts]
        fitted, counts = zip(*(fit(model, prompt, ("",), limit + 1) for prompt, limit in zip(prompts, limits)))
        dropped.update(enumerate(counts, starts[index]))
        ids = [model.prompt_ids(pairs[0][0]) for pairs in fitted]
        return Window(ids, limits, [prompt.id for prompt in prompts], [prompt.stop for prompt in prompts])

    answers: list[dict[int, Answer]] = [{} for _ in groups]
    windows = _prepared_ahead(prepare, range(len(groups)))
    with contextlib.closing(windows):
        for number, answer in decode_windows(model, windows, batch_rows):
            index = bisect.bisect_right(starts, number) - 1
            position = number - starts[index]
            generated = model.generated(answer, groups[index][position].stop)
            answers[index][position] = {
                "prediction": generated.text.strip(),
                "truncated": generated.truncated,
                "prompt_cut": generated.prompt_cut,
                "dropped": dropped[number],
            }
            if len(answers[index]) == len(groups[index]):
                yield groups[index], [answers[index][position] for position in range(len(groups[index]))]
                answers[index] = {}
