"""Subsampling of record-template pairs and the choice of demonstrations are pure functions of names."""

import collections
import dataclasses
import itertools
from pathlib import Path

import pytest

from optiml_jax.evaluation.metrics import Metric
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import demonstrations, subsampling
from tasks.prompting.subsampling import Pool, RecordTemplate, examples
from tasks.reading import fingerprints
from tasks.task import Task

TEMPLATES = tuple(Template(name, Metric("accuracy"), text=f"{name}:") for name in ("plain", "long", "odd"))


def task_of(count: int, templates=TEMPLATES, order: int = 1, bad: int = 0, file: Path | None = None, **more) -> Task:
    """`count` records i0, i1, ... (from the end for order -1), after `bad` ones that cannot be used."""

    def read(split):
        yield from (Skipped(f"file#{i}", "empty") for i in range(bad))
        yield from (Record(f"i{i}", {}) for i in range(count)[::order])

    def render(record, template, shown=()):
        return Example(record.id, template.text + record.id, "x", ("x",))

    files = () if file is None else (file,)
    return Task("toy.t", "toy", "c", "s", files, ("train", "test"), templates, read, render, **more)


def names(result) -> list[str]:
    return [f"{pair.record.id}/{pair.template.id}" for pair in result if isinstance(pair, RecordTemplate)]


def test_of_n_records_and_three_templates_n_pairs_are_taken_at_random():
    taken = names(Pool(task_of(3000), "train"))
    assert len(taken) == len(set(taken)) == 3000
    by_template = collections.Counter(name.split("/")[1] for name in taken)
    assert all(900 < count < 1100 for count in by_template.values())  # 1,000 expected, sd 26
    times = collections.Counter(collections.Counter(name.split("/")[0] for name in taken).values())
    assert 1233 < times[1] < 1433 and 570 < times[2] < 765 and times[3] > 60  # of 3 at 1/3: 4/9, 2/9, 1/27


@pytest.mark.parametrize("count", [1, 7, 400])
def test_n_examples_are_taken_where_templates_do_not_fit_every_record(count):
    """The odd template fits one record in eight; of N records N examples still come, or as many as there are."""

    def fit(task, rare):
        def render(record, template, worded_as=None):
            fits = template.id not in rare or int(record.id[1:]) % 8 == 0
            return Example(record.id, template.text, "x", ("x",)) if fits else Skipped(record.id, "does not fit")

        return dataclasses.replace(task, render=render)

    def fitting(task):
        return [item for item in examples(task, "train") if isinstance(item, Example)]

    assert len(fitting(fit(task_of(count), ["odd"]))) == count
    assert len(fitting(fit(task_of(count), ["odd", "long"]))) == count
    most = 3 * -(-count // 8)
    assert len(fitting(fit(task_of(count), ["odd", "long", "plain"]))) == min(count, most)


def test_one_template_takes_every_record_and_a_cap_takes_so_many():
    assert names(Pool(task_of(50, TEMPLATES[:1]), "train")) == [f"i{i}/plain" for i in range(50)]
    assert len(names(Pool(task_of(50, max_examples=20), "train"))) == 20
    capped = task_of(50, TEMPLATES[:1], max_examples=20)
    assert len(names(Pool(capped, "train"))) == 20 == Pool(capped, "train").choice.pairs


@pytest.mark.parametrize("most", [None, 0, 40, 10_000])
def test_the_choice_depends_on_names_alone(most, tmp_path, monkeypatch):
    """Order of the file, shards, and whether it is read once or as a stream change nothing."""
    taken = set(names(Pool(task_of(100), "train", most=most)))
    assert len(taken) == {None: 100, 0: 300, 40: 40, 10_000: 300}[most]
    assert set(names(Pool(task_of(100, order=-1), "train", most=most))) == taken
    (tmp_path / "raw").write_text("raw")
    monkeypatch.setattr(subsampling, "IN_MEMORY_BYTES", 1)
    streamed = Pool(task_of(100, file=tmp_path / "raw"), "train", most=most)
    shards = [names(Pool(task_of(100), "train", most=most, choice=streamed.choice).shard(i, 7)) for i in range(7)]
    assert set(itertools.chain(*shards)) == taken and sum(map(len, shards)) == len(taken)
    assert max(map(len, shards)) < len(taken) and streamed._in_memory is None


def test_what_choosing_rendered_is_not_rendered_again(tmp_path, monkeypatch):
    """A small split is read once and a streamed one again, with the same examples."""
    (tmp_path / "raw").write_text("raw")
    task, rendered = task_of(100, file=tmp_path / "raw"), collections.Counter()

    def render(record, template, worded_as=None):
        rendered[record.id, template.id] += 1
        return task.render(record, template)

    counted = dataclasses.replace(task, render=render)
    small = list(examples(counted, "train"))
    assert len(small) == 100 == len(rendered) and set(rendered.values()) == {1}
    monkeypatch.setattr(subsampling, "IN_MEMORY_BYTES", 1)
    assert list(examples(counted, "train")) == small and set(rendered.values()) == {3}


def test_a_suite_may_ask_in_some_templates_only():
    assert names(Pool(task_of(2), "test", ["odd", "plain"], 0)) == ["i0/plain", "i0/odd", "i1/plain", "i1/odd"]
    whole, part = Pool(task_of(400), "test", most=600), Pool(task_of(400), "test", ["plain"], 200)
    plain = {name for name in names(whole) if name.endswith("plain")}
    assert plain <= set(names(part)) or set(names(part)) <= plain  # the same draws, another bound


def test_what_cannot_be_used_comes_in_its_place():
    result = list(Pool(task_of(300, TEMPLATES[:1], bad=2), "train"))
    assert [isinstance(item, Skipped) for item in result[:3]] == [True, True, False]
    assert Pool(task_of(300, bad=2), "train").choice[:2] == (300, 302)
    assert [example.source for example in examples(task_of(2, TEMPLATES[:1]), "train")] == ["plain:i0", "plain:i1"]


# demonstrations

SHOWN = [Record(f"i{i}", {}) for i in range(40)]


def test_demonstrations_are_never_the_example_itself_and_are_all_different():
    for record in SHOWN:
        chosen = demonstrations.choose(SHOWN, "t", record.id, 5, 0)
        assert len({item.id for item in chosen} - {record.id}) == 5


def test_more_shots_begin_with_the_fewer_and_seeds_differ():
    five = demonstrations.choose(SHOWN, "t", "i3", 5, 7)
    assert demonstrations.choose(SHOWN, "t", "i3", 2, 7) == five[:2]
    assert demonstrations.choose(SHOWN, "t", "i3", 5, 8) != five != demonstrations.choose(SHOWN, "t", "i4", 5, 7)


def test_every_record_is_shown_equally_often():
    counts = collections.Counter(
        record.id for i in range(4000) for record in demonstrations.choose(SHOWN, "t", f"question {i}", 2, 0)
    )
    assert len(counts) == 40 and min(counts.values()) > 130 and max(counts.values()) < 270  # 200 expected, sd 14


def test_a_small_pool_gives_what_it_has():
    assert {record.id for record in demonstrations.choose(SHOWN[:3], "t", "i1", 5, 0)} == {"i0", "i2"}
    assert demonstrations.choose([], "t", "i1", 5, 0) == () == demonstrations.choose(SHOWN, "t", "i1", 0, 0)


# what a cached task follows from


def test_a_change_in_one_benchmark_changes_no_others_version(tmp_path, monkeypatch):
    """A benchmark's version is that of its module and of all that it imports, in `tasks` and no further."""
    reached = fingerprints._reached(["tasks.benchmarks.super_natural_instructions", "tasks.caching.shard"])
    assert {
        "tasks.prompting.prompts",
        "tasks.prompting.subsampling",
        "tasks.catalog.registry",
        "optiml_jax.tokenizer",
    } <= reached
    assert "tasks.benchmarks.samples" not in reached and "tasks.suites.ledger_job" not in reached
    assert "tasks.benchmarks.super_natural_instructions" in fingerprints._reached(["tasks.benchmarks.samples"])
    (tmp_path / "a.py").write_text("import tasks.prompting.prompts\n")
    (tmp_path / "b.py").write_text("import tasks.prompting.prompts\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = [fingerprints.code_version(name) for name in "ab"]
    assert before[0] != before[1]  # by name
    (tmp_path / "a.py").write_text("import tasks.prompting.prompts  # another comment\n")
    fingerprints.code_version.cache_clear()
    after = [fingerprints.code_version(name) for name in "ab"]
    assert after[0] != before[0] and after[1] == before[1]
