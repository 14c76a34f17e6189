"""Objectives: which positions of examples and of their demonstrations are labels; rows against plain Python."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optiml_jax.data.objective import OBJECTIVES, Boundaries
from tests.data.memory_store import EOS, PAD, SEP, MemoryStore, make_loader, make_tasks, take


def plain_document(tasks, inputs, task, example, shown, separator, leading_eos, objective):
    """An example with its demonstrations, position by position (paper 2.4, Figure 6)."""
    start = lambda i: int(inputs[task][i]) if task in inputs else 0  # noqa: E731
    source, target = tasks[task][example]
    tokens, labels = list(source[: start(example)]), [False] * start(example)
    for number, other in enumerate(shown):
        other_source, other_target = tasks[task][other]
        own_part = other_source[start(other) :]
        after_first = objective == "suffix" and number > 0
        tokens += [*own_part, *other_target, *separator]
        labels += [after_first] * len(own_part) + [objective == "suffix"] * (len(other_target) + len(separator))
    own_part = source[start(example) :]
    tokens += [*own_part, *target]
    labels += [objective == "suffix" and bool(shown)] * len(own_part) + [True] * len(target)
    if objective == "document":
        labels = [True] * len(labels)
    if leading_eos:
        return [EOS, *tokens], [*tokens, EOS], [*labels, True]
    return tokens, [*tokens[1:], EOS], [*labels[1:], True]


def test_rows_hold_examples_and_demonstrations_as_plain_python_lays_them_out():
    """Tasks with instructions of their own and without, records of several examples, and some longer than a row."""
    shown: list[int] = []
    compare_rows(shown)
    assert sum(map(bool, shown)) > len(shown) / 2, "a case may have room for no demonstration, but most have"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    objective=st.sampled_from(sorted(OBJECTIVES)),
    leading_eos=st.booleans(),
    a=st.sampled_from([0.2, 1.0, 4.0]),
    row=st.sampled_from([(64, 1), (200, 4)]),
)
def compare_rows(shown, seed, objective, leading_eos, a, row):
    """Compares the rows of a random store; appends the number of demonstrations in them to `shown`."""
    rng, (row_length, max_demonstrations) = np.random.default_rng(seed), row
    tasks = make_tasks(seed, 4, 60, 12)
    inputs = {"task1": np.array([rng.integers(0, len(source) + 1) for source, _ in tasks["task1"]], np.uint32)}
    pairs = len(tasks["task2"])
    records = {"task2": np.unique([0, *rng.integers(0, pairs, pairs // 2), pairs])}
    store = MemoryStore(tasks, inputs, records)
    loader = make_loader(
        tasks,
        store,
        separators=SEP,
        row_length=row_length,
        max_demonstrations=max_demonstrations,
        leading_eos=leading_eos,
        demonstrations=a,
        demonstration_separator="random",
        objective=objective,
        seed=seed,
    )
    demonstrations = 0
    for batch in take(loader, 4):
        for b, (plan, row) in enumerate(batch.rows):
            position = 0
            for document in plan.documents(row):
                separator = SEP[document.separator]
                expected = plain_document(
                    tasks,
                    inputs,
                    document.task,
                    document.example,
                    document.demonstrations,
                    separator,
                    leading_eos,
                    objective,
                )
                cut = len(expected[0]) - document.length
                assert cut == 0 or not document.demonstrations
                place = slice(position, position + document.length)
                for name, values in zip(("tokens_BT", "targets_BT", "label_mask_BT"), expected):
                    values = values[cut:]
                    if name == "tokens_BT" and cut and leading_eos:
                        values = [EOS, *values[1:]]
                    assert batch.arrays[name][b, place].tolist() == values
                assert batch.arrays["positions_BT"][b, place].tolist() == list(range(document.length))
                position += document.length
                demonstrations += len(document.demonstrations)
            assert (batch.arrays["segment_ids_BT"][b, position:] == 0).all()
            assert (batch.arrays["tokens_BT"][b, position:] == PAD).all()
    assert demonstrations > 0 or a == 4.0 or row_length == 64, "a row of 64 may have room for none"
    shown.append(demonstrations)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=6), st.booleans())
def test_objectives_cover_what_their_names_say(turns, demonstrated):
    """`turns`: tokens before each answer, and of it."""
    answers, position = [], 0
    for context, answer in turns:
        answers.append((position + context, position + context + answer))
        position += context + answer
    first = answers[0][0] if demonstrated else None
    example = Boundaries(position, answers[-1:] if demonstrated else answers, first)
    assert list(OBJECTIVES["document"](example)) == [(0, position)]
    assert list(OBJECTIVES["label"](example)) == list(example.answers)
    want = [(first, position)] if demonstrated else answers
    assert list(OBJECTIVES["suffix"](example)) == want
    assert all(OBJECTIVES[name](example)[-1][1] == position for name in OBJECTIVES)


def test_without_demonstrations_suffix_is_label():
    tasks = make_tasks()
    label, suffix = (take(make_loader(tasks, objective=name), 5) for name in ("label", "suffix"))
    for one, other in zip(label, suffix):
        assert all((one.arrays[name] == other.arrays[name]).all() for name in one.arrays)
