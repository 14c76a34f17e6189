"""Which solved examples stand before a question: a pure function of (pool, example, number, seed)."""

from collections.abc import Sequence

from tasks import prompts
from tasks.example import Record


def choose(pool: Sequence[Record], task: str, record_id: str, count: int, seed: int) -> tuple[Record, ...]:
    """`count` different records of the pool, uniformly, in the order drawn; never that of the example itself.

    The first of five are those of two. Order of evaluation, limits, batches and processes change nothing.

    Args:
      pool: the records that may be shown.
      record_id: of the example that is asked.

    Returns:
      As many as asked for, or as there are.
    """
    chosen: dict[int, Record] = {}
    left = sum(record.id != record_id for record in pool)
    draws = 0
    while len(chosen) < min(count, left):
        place = prompts.draw(f"demonstration {seed} {draws}", task, record_id) % len(pool)
        if pool[place].id != record_id:
            chosen.setdefault(place, pool[place])
        draws += 1
    return tuple(chosen.values())
