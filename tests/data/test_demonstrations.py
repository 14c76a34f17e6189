"""Demonstrations of a run: how many, which, in which order, and what they take of a row."""

import collections

import numpy as np
import pytest
from scipy.special import zeta

from optiml_jax.common.errors import UserError
from optiml_jax.data import demonstrations
from optiml_jax.data.batches import assemble_rows
from optiml_jax.data.block_plan import Document, mean_positions
from optiml_jax.data.demonstrations import NONE, Demonstrator, distribution
from optiml_jax.data.manifest import Manifest, TaskSize
from optiml_jax.data.positions import positions
from optiml_jax.data.settings import Data
from tests.data.memory_store import EOS, PAD, SEP, MemoryStore, make_loader, make_tasks, take


def make_demonstrator(store, names, separator_lengths=(2,), **fields):
    defaults = {"row_length": 10_000, "demonstrations": 2.0, "seed": 3}
    return Demonstrator(store, Data("m", "", **defaults | fields), sorted(names), separator_lengths)


def drawn_for(demonstrator, task, examples, pass_=0, room=10_000):
    n = len(examples)
    tasks = np.full(n, demonstrator.names.index(task))
    return demonstrator.draw(tasks, np.asarray(examples), np.full(n, pass_), np.full(n, room))


# how many


@pytest.mark.parametrize(
    ("a", "cap", "zero"),
    [(4, "renormalised", 0.925), (2, "renormalised", 0.671), (4, "clipped", 0.924), (2, "clipped", 0.608)],
)
def test_shares_of_k_are_those_of_the_paper(a, cap, zero):
    """4.8 states 92.5% and 67.1% of zero-shot examples, which renormalising gives; footnote 9's clipping gives
    others."""
    probabilities = distribution(a, 5, cap)
    assert abs(probabilities[0] - zero) < 6e-4 and abs(probabilities.sum() - 1) < 1e-12 and len(probabilities) == 6
    ranks = [1 / rank**a for rank in range(1, 7)]
    if cap == "renormalised":
        exact = [weight / sum(ranks) for weight in ranks]
    else:
        exact = [weight / zeta(a) for weight in ranks[:5]]
        exact.append(1 - sum(exact))
    assert np.allclose(probabilities, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("a", "cap"), [(4, "renormalised"), (2, "renormalised"), (4, "clipped"), (2, "clipped")])
def test_a_million_draws_have_the_shares_of_the_distribution(a, cap):
    store = MemoryStore({"t": [([1], [2])] * 1000})
    demonstrator = make_demonstrator(store, ["t"], demonstrations=a, demonstration_cap=cap)
    counts = np.zeros(6)
    for pass_ in range(1000):
        counts += np.bincount(drawn_for(demonstrator, "t", range(1000), pass_).counts_n, minlength=6)
    assert np.abs(counts / 1e6 - distribution(a, 5, cap)).max() < 1e-3


# which


def test_they_are_other_examples_of_the_task_each_as_likely_as_the_next():
    """Counted over 30,000 draws for each of seven examples: never the example, never one twice, all orders alike."""
    store = MemoryStore({"t": [([1], [2])] * 7})
    demonstrator = make_demonstrator(store, ["t"], demonstrations=0.01, max_demonstrations=3)
    seen = collections.Counter()
    for pass_ in range(30_000):
        drawn = drawn_for(demonstrator, "t", range(7), pass_)
        for example, count, chosen in zip(range(7), drawn.counts_n.tolist(), drawn.examples_nK.tolist()):
            assert chosen[count:] == [NONE] * (3 - count)
            assert len({example, *chosen[:count]}) == count + 1
            if count == 3:
                seen[example, *chosen] += 1
    assert len(seen) == 7 * 6 * 5 * 4
    counts = np.array(list(seen.values()))
    expected = counts.sum() / len(counts)
    statistic = ((counts - expected) ** 2 / expected).sum() / len(counts)
    assert 0.8 < statistic < 1.2  # chi-square over its degrees of freedom: 839, standard deviation 0.05


def test_another_example_of_the_same_record_is_not_shown():
    """A record with several templates would show its own answer. Records are drawn alike, whatever their templates."""
    starts = np.array([0, 3, 4, 8, 10, 11])
    store = MemoryStore({"t": [([1], [2])] * 11}, records={"t": starts})
    demonstrator = make_demonstrator(store, ["t"], demonstrations=0.01, max_demonstrations=4)
    record_of = np.searchsorted(starts, np.arange(11), side="right") - 1
    seen = np.zeros((11, 11))
    for pass_ in range(3000):
        drawn = drawn_for(demonstrator, "t", range(11), pass_)
        for example, count, chosen in zip(range(11), drawn.counts_n.tolist(), drawn.examples_nK):
            records = record_of[[example, *chosen[:count]]]
            assert len(set(records.tolist())) == count + 1
            seen[example, chosen[:count]] += 1
    for example in range(11):
        by_record = np.array(
            [seen[example, record_of == record].sum() for record in range(5) if record != record_of[example]]
        )
        assert np.abs(by_record / by_record.mean() - 1).max() < 0.06
    assert (seen[:, 0:3].sum(axis=0)[None] > 0).all() and seen[:3, :3].sum() == 0


def test_every_example_of_a_record_is_shown_equally_often():
    """Which one does not follow from which record it is of: with four other records and two examples of each, both
    numbers are remainders of powers of two."""
    starts = np.arange(0, 11, 2)
    store = MemoryStore({"t": [([1], [2])] * 10}, records={"t": starts})
    demonstrator = make_demonstrator(store, ["t"], demonstrations=0.01, max_demonstrations=4)
    seen = np.zeros(10)
    for pass_ in range(4000):
        chosen = drawn_for(demonstrator, "t", [0], pass_).examples_nK
        seen += np.bincount(chosen[chosen != NONE], minlength=10)
    assert seen[:2].sum() == 0 and np.abs(seen[2:] / seen[2:].mean() - 1).max() < 0.1


def test_they_depend_on_seed_pass_and_example_alone():
    """Not on the other tasks of the mixture, nor on which examples are drawn together."""
    tasks = make_tasks()
    alone = make_demonstrator(MemoryStore(tasks), ["task1"])
    together = make_demonstrator(MemoryStore(tasks), tasks)
    examples = np.arange(len(tasks["task1"]))
    first, second = drawn_for(alone, "task1", examples), drawn_for(together, "task1", examples)
    assert all((a == b).all() for a, b in zip(first, second)) and first.counts_n.any()
    some = drawn_for(alone, "task1", examples[5:9])
    assert (some.examples_nK == first.examples_nK[5:9]).all()
    for other in (
        drawn_for(alone, "task1", examples, pass_=1),
        drawn_for(make_demonstrator(MemoryStore(tasks), tasks, seed=4), "task1", examples),
    ):
        assert (other.examples_nK != first.examples_nK).any()


def test_tasks_with_few_others_show_fewer_and_documents_none():
    tasks = {"few": [([1], [2])] * 3, "one": [([1], [2])], "text": [([], [2, 3])] * 9, "many": [([1], [2])] * 9}
    demonstrator = make_demonstrator(MemoryStore(tasks), tasks, demonstrations=0.01)
    assert (demonstrator.few, demonstrator.without) == (["few", "one"], ["text"])
    for name, most in {"few": 2, "one": 0, "text": 0, "many": 5}.items():
        counts = [drawn_for(demonstrator, name, [0], pass_).counts_n[0] for pass_ in range(300)]
        assert max(counts) == most
    many = make_demonstrator(MemoryStore(tasks), tasks, demonstrations=2, max_demonstrations=9)
    assert "none for 64.5% of the examples, 1 for 16.1%" in str(many) and "5 for 1.8%, 6 to 9 for 3.8%; " in str(many)
    text = str(demonstrator)
    assert "2 of 4 tasks have fewer than 5 others" in text and "few, one" in text and "(text)" in text


def test_what_does_not_fit_is_dropped_from_the_left():
    """Demonstrations of 1 to 40 tokens before an example of 20, in rows of 60: the longest end that fits is kept."""
    rng = np.random.default_rng(0)
    tasks = {"t": [([7] * int(n), [8]) for n in rng.integers(1, 40, 200)]}
    whole = make_demonstrator(MemoryStore(tasks), ["t"], demonstrations=0.5)
    room = rng.integers(0, 90, 200)
    demonstrator = make_demonstrator(MemoryStore(tasks), ["t"], demonstrations=0.5, row_length=100)
    dropped = 0
    everything = drawn_for(whole, "t", range(200))
    fitting = demonstrator.draw(np.zeros(200, np.int64), np.arange(200), np.zeros(200, np.int64), room)
    for chosen, left, space, taken in zip(everything.examples_nK, fitting.examples_nK, room, fitting.positions_n):
        want, used = [], 0
        for example in reversed([i for i in chosen.tolist() if i != NONE]):
            length = sum(map(len, tasks["t"][example])) + 2
            if used + length > space:
                break
            want, used = [example, *want], used + length
        assert [i for i in left.tolist() if i != NONE] == want and taken == used
        dropped += (chosen != NONE).sum() - len(want)
    assert dropped > 50


# order, rates, refusals


def test_the_order_of_a_run_is_a_function_of_the_position(tmp_path):
    """Restored in the middle of a block and of a later one, and read by two hosts, rows are the same to the bit."""
    tasks = make_tasks()
    fields = {"demonstrations": 1.0, "objective": "suffix", "separators": SEP[:1], "row_length": 400}
    fields |= {"max_demonstrations": 2, "block_draws": 50}
    whole = take(make_loader(tasks, **fields), 12)
    for number in (0, 3, 7):
        loader = make_loader(tasks, **fields)
        loader.restore(whole[number].state)
        for batch, expected in zip(take(loader, 4), whole[number + 1 :]):
            assert all((batch.arrays[name] == expected.arrays[name]).all() for name in batch.arrays)
            assert batch.state == expected.state
    halves = [take(make_loader(tasks, rows=rows, **fields), 12) for rows in (range(0, 8, 2), range(1, 8, 2))]
    for expected, even, odd in zip(whole, *halves):
        for name, array in expected.arrays.items():
            assert (array[::2] == even.arrays[name]).all() and (array[1::2] == odd.arrays[name]).all()
    assert len({batch.state["block"] for batch in whole}) > 2


def test_which_examples_are_drawn_and_how_often_does_not_change():
    """Demonstrations add to an example; they do not replace a draw."""
    tasks = make_tasks()
    fields = {"separators": SEP[:1], "row_length": 400, "max_demonstrations": 2}
    plain, shown = (make_loader(tasks, demonstrations=a, **fields) for a in (None, 1.0))
    for block in (0, 5):
        first, second = plain.plan(block), shown.plan(block)
        for name in ("tasks_n", "examples_n"):
            assert (getattr(first, name) == getattr(second, name)).all()
        assert second.lengths_n.sum() > first.lengths_n.sum()
    plain.close(), shown.close()


def test_mean_positions_count_demonstrations():
    """Against the mean over a hundred passes: what a share of the tokens is computed from."""
    tasks = make_tasks(3, 3)
    store = MemoryStore(tasks)
    demonstrator = make_demonstrator(store, tasks, row_length=300)
    means = mean_positions(store, demonstrator.data, sorted(tasks), demonstrator)
    for name, examples in tasks.items():
        alone = np.minimum([len(source) + len(target) + 1 for source, target in examples], 300)
        drawn = [drawn_for(demonstrator, name, range(len(examples)), p, 300 - alone).positions_n for p in range(100)]
        exact = alone.mean() + np.mean(drawn)
        assert abs(means[name] / exact - 1) < 0.25  # one pass over few examples
        assert means[name] > alone.mean()


def test_a_share_of_the_tokens_is_met_with_demonstrations():
    """The instructions get longer by their demonstrations; the text keeps its half of the positions."""
    tasks = {"instruct.a": make_tasks(1, 1, 40, 9)["task0"] * 20, "text.c": [([], [9] * n) for n in range(50, 99)]}
    sizes = tuple(TaskSize(name, name.split(".")[0], "c", len(examples)) for name, examples in tasks.items())
    mixture = Manifest("m", sizes, benchmarks={"instruct": 1.0, "text": 1.0})
    loader = make_loader(
        tasks,
        manifest=mixture,
        separators=SEP[:1],
        demonstrations=1.0,
        token_shares={"text": 0.5},
        row_length=256,
        block_draws=4000,
    )
    totals = collections.Counter()
    for block in range(3):
        plan = loader.plan(block)
        for index, name in enumerate(plan.names):
            totals[name] += int(plan.lengths_n[plan.tasks_n == index].sum())
    loader.close()
    assert abs(totals["text.c"] / totals.total() - 0.5) < 0.01


def test_a_task_that_is_never_drawn_needs_no_demonstrations():
    """A benchmark with the proportion 0 beside a share of the tokens: rates follow from those that are drawn."""
    tasks = {
        "a.t": make_tasks(1, 1, 40, 9)["task0"],
        "b.t": [([1], [2])] * 9,
        "text.t": [([], [9] * n) for n in (50, 60)],
    }
    sizes = tuple(TaskSize(name, name.split(".")[0], "c", len(examples)) for name, examples in tasks.items())
    mixture = Manifest("m", sizes, benchmarks={"a": 1.0, "b": 0.0, "text": 1.0})
    loader = make_loader(tasks, manifest=mixture, separators=SEP[:1], demonstrations=1.0, token_shares={"text": 0.5})
    assert loader.rates["b.t"] == 0 and loader.demonstrator.names == ["a.t", "text.t"]
    loader.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"demonstrations": 0}, "demonstrations is 0"),
        ({"demonstrations": 1.0, "demonstration_cap": "clipped"}, "no sum unless it is above 1"),
        ({"demonstration_cap": "renormalized"}, "renormalised"),
        ({"objective": "sufix"}, "did you mean suffix"),
        ({"demonstration_separator": "###"}, "end in a line"),
        ({"demonstration_separator": "\n\n "}, "end in a line"),
        ({"max_demonstrations": 0}, "max_demonstrations is 0"),
        ({"proportions": "natural_"}, "natural"),
        ({"proportions": 3}, "a dictionary of numbers"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Data("m", "", **fields)


def test_more_demonstrations_than_a_row_holds_are_refused():
    tasks = {"t": [([7] * 30, [8] * 5)] * 50}
    with pytest.raises(
        UserError, match=r"MAX_DEMONSTRATIONS is 9: .* 333 tokens.*use at most 3.*ROW_LENGTH, which is 128"
    ):
        make_loader(tasks, separators=SEP[:1], demonstrations=2.0, max_demonstrations=9)
    with pytest.raises(UserError, match="no task of the mixture has other examples"):
        make_loader({"t": [([1], [2])]}, separators=SEP[:1], demonstrations=2.0)


def test_separators_are_tokenized_as_between_two_texts(shared):
    from optiml_jax.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(shared / "tokenizer")
    for text in demonstrations.RANDOM_SEPARATORS:
        data = Data("m", "", demonstrations=4, demonstration_separator=text)
        (ids,) = demonstrations.separator_ids(data, tokenizer.encode)
        pieces = [*tokenizer.encode("Is it? Yes."), *ids.tolist(), *tokenizer.encode("Input: 2")]
        assert pieces == tokenizer.encode(f"Is it? Yes.{text}Input: 2")
    random = Data("m", "", demonstrations=4, demonstration_separator="random")
    assert len(demonstrations.separator_ids(random, tokenizer.encode)) == len(demonstrations.RANDOM_SEPARATORS)
    assert demonstrations.separator_ids(Data("m", ""), tokenizer.encode) == []


def test_estimates_of_suffix_labels_are_those_of_assembled_rows():
    """Mean label positions over the pass that is estimated, with instructions, records and rows that drop some."""
    tasks = make_tasks(5, 3, 60, 12)
    inputs = {"task1": np.array([min(4, len(source)) for source, _ in tasks["task1"]], np.uint32)}
    store = MemoryStore(tasks, inputs)
    demonstrator = make_demonstrator(store, tasks, row_length=150, demonstrations=0.5, objective="suffix")
    for index, (name, examples) in enumerate(sorted(tasks.items())):
        count = len(examples)
        lengths = positions(store, demonstrator.data, name, slice(None))[0]
        drawn = demonstrator.draw(np.full(count, index), np.arange(count), np.zeros(count, np.int64), 150 - lengths)
        documents = [
            [Document(name, i, int(lengths[i] + drawn.positions_n[i]), 0, tuple(n for n in shown if n != NONE))]
            for i, shown in enumerate(drawn.examples_nK.tolist())
        ]
        arrays = assemble_rows(documents, store, demonstrator.data, PAD, EOS, [np.array(SEP[0], np.uint16)])
        estimate = demonstrator.estimate(name)
        assert estimate.suffix_labels == pytest.approx(arrays["label_mask_BT"].sum() / count)
        assert estimate.positions + lengths.mean() == pytest.approx((arrays["segment_ids_BT"] > 0).sum() / count)
        assert estimate.shown < estimate.drawn
