"""A report says what was asked: caps, tasks without prompts at these shots, missing demonstrations."""

from optiml_jax.evaluation.prompts.scope import notes
from optiml_jax.evaluation.prompts.selection import select
from tests.evaluation.example_prompts import prompt

LEDGER = [
    *(prompt(n, suite="bbh", task=f"bbh.task{n % 7}", shots=3) for n in range(14)),
    *(prompt(n, suite="mmlu", task=f"mmlu.subject{n % 3}", shots=shots) for n in range(9) for shots in (0, 5)),
]


def lines(shots, about=({"suite": "bbh"}, {"suite": "mmlu"}), prompts=LEDGER):
    return notes(about, prompts, select(prompts, shots, 0), shots)


def test_a_limit_draws_from_the_whole_task_and_subsets_are_nested():
    """Not its first questions, which often are of one source."""
    prompts = [prompt(f"{n:03}") for n in range(300)]
    small, large = ({made.example_id for made in select(prompts, None, limit)} for limit in (30, 60))
    assert len(small) == 30 and len(large) == 60 and small < large
    assert 0.3 < sum(int(name) < 150 for name in large) / 60 < 0.7


def test_what_shots_leave_without_prompts_is_named():
    (overlap, line) = lines([0, 5])
    assert line == "Not asked, no prompts with [0, 5] demonstrations (SHOTS): suite bbh, all 7 tasks"
    assert overlap.startswith("Overlap with training: not looked for")
    some = [*LEDGER, prompt(99, suite="mmlu", task="mmlu.bare", shots=0)]
    assert "mmlu: 1 task (mmlu.bare)" in lines(5, prompts=some)[-1]
    assert lines(None)[1:] == []


def test_caps_and_missing_demonstrations_of_ledgers_are_named():
    about = [
        {"suite": "bbh", "prompts_per_task": 250},
        {"suite": "mmlu", "prompts_per_task": None, "without_demonstrations": [f"mmlu.s{n}" for n in range(56)]},
    ]
    cap, bare = lines(None, about)[1:]
    assert cap == "bbh: at most 250 prompts per task and number of shots, drawn when its ledger was written"
    assert bare.startswith(
        "mmlu: no records for demonstrations, so asked with 0 shots only: 56 tasks (mmlu.s0, mmlu.s1,"
    )


def test_known_overlap_needs_no_line():
    assert lines(None, prompts=[prompt(0, contaminated=False)]) == []
