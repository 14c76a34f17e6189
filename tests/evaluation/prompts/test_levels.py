"""Levels follow what a run was trained on, not what its suite supposes."""

import json

from optiml_jax.data.manifest import Manifest, TaskSize
from optiml_jax.evaluation.prompts.levels import Training, apply, recorded_training, training_of
from tests.evaluation.example_prompts import prompt
from tests.training.test_hooks import cache, run  # noqa: F401

SUITE = [
    prompt(0, task="a.seen", category="qa", level="held_out_instances"),
    prompt(1, task="a.new", category="qa", level="held_out_task"),
    prompt(2, task="a.far", category="nli", level="fully_held_out"),
    prompt(3, task="mmlu.law", category="mmlu", level="held_out_task"),
    prompt(4, task="bbh.sort", category="bbh", level=None),
]
ABOUT = [{"trained_as": {"mmlu.law": ["ni.task_law"]}, "related": {"mmlu": ["qa"]}}]


def mixture(*tasks: tuple[str, str]) -> Manifest:
    return Manifest("mine", tuple(TaskSize(name, "a", category, 10) for name, category in tasks))


def levels(*tasks: tuple[str, str]) -> tuple[list, list[str]]:
    prompts, lines = apply(SUITE, Training((mixture(*tasks),), True), ABOUT)
    assert [made.id for made in prompts] == [made.id for made in SUITE]
    return [made.level for made in prompts], lines


def test_the_mixture_of_the_suite_has_its_levels():
    made, lines = levels(("a.seen", "qa"), ("a.other", "qa"))
    assert made == [item.level for item in SUITE]
    assert lines == ["Levels: for a model trained on mine (2 tasks)"]


def test_a_run_on_other_tasks_has_others():
    """A run on one task of another category has seen no task of the suite; a task without a level still has none."""
    made, lines = levels(("a.else", "nli"))
    assert made == ["fully_held_out", "fully_held_out", "held_out_task", "fully_held_out", None]
    assert "at another level than in their suite: 4 tasks" in lines[0]


def test_a_task_whose_data_were_trained_on_was_seen():
    made, lines = levels(("ni.task_law", "question_answering"))
    assert made[3] == "held_out_instances" and made[0] == "fully_held_out"
    assert "Trained on the data of evaluated tasks: 1 task (ni.task_law)" in lines


def test_what_weights_from_elsewhere_were_trained_on_is_unknown(tmp_path):
    training = recorded_training(str(tmp_path))
    prompts, lines = apply(SUITE, training, ABOUT)
    assert prompts == SUITE and "as under opt_iml" in lines[0] and "unknown" in lines[0]
    later = training_of(mixture(("a.seen", "qa")), str(tmp_path))
    assert not later.complete and "after weights whose training is unknown" in apply(SUITE, later, ABOUT)[1][0]


def test_a_run_records_its_own_tasks_and_those_of_the_run_it_started_from(cache, tmp_path):  # noqa: F811
    """A run on two tasks, then another on one, from its weights: three tasks were trained on."""
    first, second = ["samples.sample001*", "samples.sample002*"], ["samples.sample004*"]
    run(cache, tmp_path / "one", steps=2, tasks=first)
    run(cache, tmp_path / "two", steps=2, tasks=second, init_weights=str(tmp_path / "one"))
    record = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert [task["name"][:17] for task in record["tasks"]] == ["samples.sample001", "samples.sample002"]
    training = recorded_training(str(tmp_path / "two"))
    assert [len(made.tasks) for made in training.mixtures] == [1, 2] and training.complete
    seen = {task.name for made in training.mixtures for task in made.tasks}
    assert len(seen) == 3
