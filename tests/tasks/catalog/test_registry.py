"""Finding tasks, and how samples are measured."""

import re

import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.prompts.ledger import RANK
from tasks import suites
from tasks.benchmarks.samples import answer_format
from tasks.catalog import mixtures, registry
from tasks.catalog.mixtures import Mixture
from tasks.prompting.subsampling import Pool, examples
from tests.tasks.conftest import NAME


def test_the_samples_need_no_data_and_hold_out_32_instances_of_each_train_task():
    benchmark = registry.discover("samples")
    trained = mixtures.mixture("samples").tasks(benchmark)
    assert len(benchmark.tasks) == 16 and len(trained) == 12
    for task in trained:
        assert [sum(1 for _ in examples(task, split)) for split in ("train", "validation")] == [368, 32]
    parts = list(suites.suite("samples").parts(benchmark))
    assert {part.level for part in parts} == {"held_out_instances", "held_out_task", "fully_held_out"}
    excluded = [task.name for task in benchmark.listed("excluded")]
    assert not set(excluded) & {part.task.name for part in parts} and len(excluded) == 1


def test_where_a_task_counts_is_said_by_who_uses_it():
    """The evaluation's tasks are trained on in one mixture and held out in another; the task does not know."""
    benchmark = registry.discover("samples")
    largest = Mixture("max", ("samples",), splits=("train", "test"))
    held_out = {
        part.task.name for part in suites.suite("samples").parts(benchmark) if part.level != "held_out_instances"
    }
    assert {task.name for task in largest.tasks(benchmark)} - {
        task.name for task in mixtures.mixture("samples").tasks(benchmark)
    } == held_out
    assert len(held_out) == 3 and not {"role", "level", "split"} & vars(benchmark.listed("test")[0]).keys()


def test_ranked_examples_hold_their_reference_among_the_candidates():
    for task in registry.discover("samples").tasks.values():
        for split in task.splits:
            for example in examples(task, split):
                assert (example.candidates is not None) == (task.templates[0].output_type == RANK)
                assert example.candidates is None or example.target in example.candidates


@pytest.mark.parametrize(
    "outputs, expected",
    [
        ([("b",), ("a",)] * 3, ("accuracy", ("a", "b"))),
        ([("b",), ("a",)] * 2 + [("a",)], ("exact_match", None)),  # not three times as many instances
        ([(str(i % 15),) for i in range(45)], ("accuracy", tuple(sorted(map(str, range(15)))))),
        ([(str(i % 16),) for i in range(48)], ("exact_match", None)),  # more than 15 values
        ([("yes", "Yes")] * 9, ("rouge_l", None)),  # several references
        ([(f"a b {i}",) for i in range(9)] + [("a b c d",)], ("exact_match", None)),
        ([(f"a b {i}",) for i in range(8)] + [("a b c d",)] * 2, ("rouge_l", None)),
        ([], ("rouge_l", None)),
    ],
)
def test_the_answer_format_follows_from_the_outputs(outputs, expected):
    assert answer_format(outputs) == expected


def test_every_name_is_one_that_seqio_admits():
    """seqio's own rule (`MixtureOrTask` names): letters, digits, `_ . : #`."""
    names = [*registry.catalog(NAME), registry.task_name(NAME, "task139_detoxifying-lms (2)")]
    assert all(re.fullmatch(r"[\w\d.:#]+", name, re.ASCII) for name in names)


@pytest.mark.parametrize(
    "data_dir, message",
    [
        (None, "DATA_DIR: super_natural_instructions needs a folder"),
        ("nowhere", "nowhere is not a folder"),
        (".", "has no folder super_natural_instructions; did you mean super_natural_instruction?"),
        ("data/super_natural_instructions", "has no folder super_natural_instructions; did you mean its parent?"),
    ],
)
def test_a_missing_data_directory_is_one_line_with_the_way_out(tmp_path, data_dir, message):
    (tmp_path / "super_natural_instruction").mkdir()
    (tmp_path / "data" / "super_natural_instructions").mkdir(parents=True)
    with pytest.raises(UserError, match=re.escape(message)):
        registry.discover(NAME, None if data_dir is None else tmp_path / data_dir)


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(UserError, match=r"sample; did you mean samples"):
        registry.discover("sample")
    with pytest.raises(UserError, match="super_natural_instruction; did you mean super_natural_instructions"):
        mixtures.mixture("super_natural_instruction")
    with pytest.raises(UserError, match=r"zzz; .*samples, small_study, super_natural_instructions"):
        mixtures.mixture("zzz")


def test_shards_split_the_records_between_them(data_dir):
    task = registry.discover(NAME, data_dir, CacheOptions()).tasks[f"{NAME}.task2_two_too"]
    whole = [example.id for example in examples(task, "train")]
    parts = [[pair.record.id for pair in Pool(task, "train").shard(shard, 4)] for shard in range(4)]
    assert sorted(name for part in parts for name in part) == sorted(whole) and parts[1] == whole[1::4]


def test_coverage_counts_the_tasks_whose_files_are_there_against_the_official_lists(shared):
    """The real samples: 188 train and 25 test tasks of the benchmark's 757 and 119."""
    benchmark = registry.discover("super_natural_instructions", shared / "data")
    assert benchmark.coverage == {"super_natural_instructions": {"train": [188, 757], "test": [25, 119]}}
