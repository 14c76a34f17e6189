"""Sampling: rates against hand arithmetic, counts against the rates, order against what "once a pass" means."""

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chi2

from optiml_jax.common.errors import DataError, UserError
from optiml_jax.data.manifest import Manifest, TaskSize
from optiml_jax.data.permutation import hashed, key, permuted, shuffled
from optiml_jax.data.sampling import Sampler, probabilities


def manifest(sizes, benchmarks=None):
    """`sizes`: {benchmark: {task: examples}}."""
    tasks = [
        TaskSize(task, name, "c", examples)
        for name, tasks_of_benchmark in sizes.items()
        for task, examples in tasks_of_benchmark.items()
    ]
    return Manifest("m", tuple(tasks), 4096, benchmarks)


TWO = {"x": {"a": 100, "b": 10_000}, "y": {"c": 50, "d": 150}}


# rates


def test_rates_are_proportional_to_capped_sizes():
    assert probabilities(manifest(TWO), 200) == {"a": 100 / 500, "b": 200 / 500, "c": 50 / 500, "d": 150 / 500}


def test_proportions_hold_across_benchmarks_and_caps_within():
    rates = probabilities(manifest(TWO), 300, {"x": 3, "y": 1})
    assert rates == pytest.approx({"a": 3 / 16, "b": 9 / 16, "c": 1 / 16, "d": 3 / 16}, abs=1e-15)
    assert probabilities(manifest(TWO, {"x": 0.75, "y": 0.25}), 300) == pytest.approx(rates, abs=1e-15)


def test_stated_proportions_replace_those_of_the_manifest():
    rates = probabilities(manifest(TWO, {"x": 1, "y": 1}), 4096, {"x": 0, "y": 2})
    assert rates == {"a": 0, "b": 0, "c": 0.25, "d": 0.75}


@pytest.mark.parametrize(
    ("proportions", "message"),
    [
        ({"x": 1}, "y is missing"),
        ({"x": 1, "y": 1, "yy": 1}, "is in yy; did you mean y"),
        ({"x": -1, "y": 2}, "negative"),
        ({"x": 0, "y": 0}, "positive sum"),
        ({"x": float("nan"), "y": 1}, "positive sum"),
    ],
)
def test_proportions_that_cannot_be_are_refused(proportions, message):
    with pytest.raises(UserError, match=message):
        probabilities(manifest(TWO), 4096, proportions)


def test_empty_tasks_mixtures_and_caps_are_refused():
    with pytest.raises(UserError, match="b has no examples"):
        probabilities(manifest({"x": {"a": 5, "b": 0}}), 4096)
    with pytest.raises(UserError, match="no tasks"):
        probabilities(manifest({}), 4096)
    with pytest.raises(UserError, match="eps is 0"):
        probabilities(manifest(TWO), 0)


def test_a_manifest_is_read_and_its_faults_named(tmp_path):
    path = tmp_path / "samples.json"
    manifest(TWO).write(path)
    assert Manifest.read(path) == manifest(TWO)
    whole = json.loads(path.read_text())
    by_hand = {name: value for name, value in whole.items() if name != "checksum"}
    path.write_text(json.dumps(by_hand))
    assert Manifest.read(path) == manifest(TWO)
    with pytest.raises(UserError, match=r"sample\.json: .*did you mean samples\?"):
        Manifest.read(tmp_path / "sample.json")
    path.write_text(json.dumps(by_hand | {"format": 1}))
    with pytest.raises(UserError, match="not of format 2"):
        Manifest.read(path)
    twice = json.dumps(by_hand | {"tasks": 2 * by_hand["tasks"]})
    for text in ["{", "[]", '{"format": 2}', json.dumps(by_hand | {"epsilon": 3}), twice]:
        path.write_text(text)
        with pytest.raises(DataError, match=r"samples\.json"):
            Manifest.read(path)
    path.write_text(json.dumps(whole | {"eps": 4097}))
    with pytest.raises(DataError, match=r"samples.json: damaged"):
        Manifest.read(path)


# counts


def sampler_of(sizes, eps=4096, seed=0, block_draws=16_384):
    rates = probabilities(manifest({"x": sizes}), eps)
    return Sampler(sizes, rates, seed, block_draws), rates


def test_a_million_draws_follow_the_rates_within_one_example():
    """One-sided: stratified counts are far more even than independent draws, so only a large chi-square is wrong."""
    rng = np.random.default_rng(0)
    sizes = {f"task{i}": int(n) for i, n in enumerate(rng.integers(26, 6500, 1545))}
    sampler, rates = sampler_of(sizes)
    expected_per_draw = np.array([rates[name] for name in sampler.names])
    counts = np.zeros(len(sizes), np.int64)
    for block in range(62):
        tasks, *_ = sampler.draw(block)
        counts += np.bincount(tasks, minlength=len(sizes))
        expected = expected_per_draw * 16_384 * (block + 1)
        assert np.abs(counts - expected).max() <= 1
        assert (counts == sampler.drawn_before(block + 1)).all()
    assert counts.sum() > 1e6
    assert chi2.sf(((counts - expected) ** 2 / expected).sum(), len(sizes) - 1) > 0.01
    assert abs(len(tasks) - 16_384) < 200  # each task is rounded by itself


@pytest.mark.parametrize("block", [0, 1, 108_936, 10**9, 10**12])
def test_counts_are_exact_however_far_the_run_is(block):
    """Against rational arithmetic, which has no precision to run out of."""
    sampler, rates = sampler_of({f"task{i}": 7 * i + 1 for i in range(50)}, eps=100)
    for name, before in zip(sampler.names, sampler.drawn_before(block).tolist()):
        exact = Fraction(rates[name]) * 16_384 * block + Fraction(int(key(0, "offset", name)), 2**64)
        assert before == exact.numerator // exact.denominator
    counts = np.bincount(sampler.draw(block)[0], minlength=50)
    assert (counts == sampler.drawn_before(block + 1) - sampler.drawn_before(block)).all()


def test_draws_depend_on_the_seed_and_not_on_the_order_of_tasks():
    sizes = {"a": 10, "b": 300, "c": 77}
    sampler, rates = sampler_of(sizes)
    reversed_sampler = Sampler(dict(reversed(sizes.items())), dict(reversed(rates.items())), 0, 16_384)
    other_seed, _ = sampler_of(sizes, seed=1)
    draws = sampler.draw(3)
    assert all((a == b).all() for a, b in zip(draws, reversed_sampler.draw(3)))
    assert not (draws[1][:100] == other_seed.draw(3)[1][:100]).all()


def test_a_task_keeps_its_order_when_others_join_the_mixture():
    """Another task changes how often a task is drawn, not in which order its examples come."""
    alone, _ = sampler_of({"a": 100}, block_draws=100)
    joined, _ = sampler_of({"a": 100, "b": 100}, block_draws=200)
    tasks, examples, _ = joined.draw(0)
    order = examples[tasks == 0]
    assert len(order) >= 99 and (alone.draw(0)[1][: len(order)] == order[:100]).all()


def test_a_task_without_probability_is_never_drawn():
    sampler = Sampler({"a": 5, "b": 5}, {"a": 1.0, "b": 0.0}, 0, 100)
    assert sampler.names == ["a"] and len(sampler.draw(0)[0]) == 100


# order


@pytest.mark.parametrize(("sizes", "block_draws"), [({"a": 1, "b": 7, "c": 64}, 50), ({"a": 997, "b": 4000}, 1024)])
def test_every_example_comes_exactly_once_a_pass(sizes, block_draws):
    sampler, _ = sampler_of(sizes, block_draws=block_draws)
    drawn = {name: [] for name in sizes}
    for block in range(40):
        for task, example in zip(*(part.tolist() for part in sampler.draw(block)[:2])):
            drawn[sampler.names[task]].append(example)
    for name, size in sizes.items():
        passes = [drawn[name][i : i + size] for i in range(0, len(drawn[name]) - size + 1, size)]
        assert passes and all(sorted(examples) == list(range(size)) for examples in passes)
        assert len(passes) < 5 or size < 3 or len({tuple(examples) for examples in passes}) > 1  # reshuffled


@pytest.mark.parametrize("n", [*range(1, 140), 1000, 4096, 6500, 99_991])
def test_a_permutation_hits_every_place_once(n):
    keys = np.full(n, key("test", n))
    assert (np.sort(permuted(np.arange(n), np.full(n, n), keys)) == np.arange(n)).all()
    assert (np.sort(shuffled(n, key("test", n))) == np.arange(n)).all()


def test_permutations_of_different_sizes_and_keys_may_be_asked_for_at_once():
    sizes = np.repeat([5, 63, 64, 1000, 2], [5, 63, 64, 1000, 2])
    places = np.concatenate([np.arange(n) for n in (5, 63, 64, 1000, 2)])
    keys = np.array([key("mixed", int(n)) for n in sizes], np.uint64)
    together = permuted(places, sizes, keys)
    apart = [permuted(places[i : i + 1], sizes[i : i + 1], keys[i : i + 1])[0] for i in range(len(sizes))]
    assert together.tolist() == apart


def p_value(counts):
    expected = counts.sum() / counts.size
    return chi2.sf(((counts - expected) ** 2 / expected).sum(), counts.size - 1)


def random_permutations(n, count):
    """[count, n]: the permutations of the first passes of a task, as the sampler asks for them."""
    keys = hashed(key(0, "pass", f"task of {n}"), np.arange(count))
    return permuted(np.tile(np.arange(n), count), np.full(n * count, n), np.repeat(keys, n)).reshape(count, n)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_every_permutation_of_a_tiny_task_is_equally_likely(n):
    numbers = {permutation: i for i, permutation in enumerate(itertools.permutations(range(n)))}
    drawn = [numbers[tuple(p)] for p in random_permutations(n, 20_000).tolist()]
    assert p_value(np.bincount(drawn, minlength=len(numbers))) > 1e-4


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 63, 64, 65, 81, 100])
def test_every_example_is_equally_likely_at_every_place(n):
    """Also pairs: where the second example goes, seen from the first."""
    permutations = random_permutations(n, 10_000)
    p_values = [p_value(np.bincount(column, minlength=n)) for column in permutations.T]
    assert min(p_values) > 1e-3 / n  # the smallest of n
    steps = (permutations[:, 1] - permutations[:, 0]) % n
    assert n == 2 or p_value(np.bincount(steps, minlength=n)[1:]) > 1e-4
