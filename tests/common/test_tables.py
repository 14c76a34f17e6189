"""Tables as people read them."""

from optiml_jax.common.tables import counted, table


def test_numbers_stand_to_the_right_and_words_for_what_is_none():
    text = table(("name", "tasks", "share", "exact"), [("a", 12_345, 0.5, True), ("longer", None, 12.25, None)])
    assert text.splitlines() == [
        "name     tasks   share  exact",
        "a       12,345  0.5000  yes",
        "longer       -    12.2  -",
    ]


def test_one_is_singular():
    assert [counted(n, "task") for n in (0, 1, 2, 1234)] == ["0 tasks", "1 task", "2 tasks", "1,234 tasks"]
