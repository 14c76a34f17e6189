"""Measures sides in turn, so that other load on the machine affects all of them equally."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm


class Side:
    """Something to time. `run` does all its work before it returns.

    Attributes:
      first: result of the first run, the warm-up.
      first_seconds: duration of the warm-up.
      seconds: duration of each measured run.
      beside: duration of this project's run just before each measured run of a peer.
    """

    def __init__(self, name: str, run: Callable[[], Any]) -> None:
        self.name, self._run = name, run
        self.first: Any = None
        self.first_seconds = 0.0
        self.seconds: list[float] = []
        self.beside: list[float] = []

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def warm_up(self) -> None:
        start = time.perf_counter()
        self.first = self._run()
        self.first_seconds = time.perf_counter() - start

    def measure(self) -> None:
        start = time.perf_counter()
        self._run()
        self.seconds.append(time.perf_counter() - start)


def interleave(ours: Side, peers: Sequence[Side], rounds: int) -> None:
    """Warms up all sides, then in each round measures this project and a peer, this project and the next peer, ..."""
    with tqdm(total=1 + len(peers) + rounds * max(1, 2 * len(peers)), unit="run") as progress:

        def act(action: str, side: Side) -> None:
            progress.set_description(f"{action} {side.name}")
            side.warm_up() if action == "warming up" else side.measure()
            progress.update()

        for side in (ours, *peers):
            act("warming up", side)
        for _ in range(rounds):
            for peer in peers:
                act("measuring", ours)
                act("measuring", peer)
                peer.beside.append(ours.seconds[-1])
            if not peers:
                act("measuring", ours)


def row(name: str, unit: str, work: float, ours: Side, peer: Side | None) -> dict:
    """Returns a row of a benchmark: `work` per median time, and the range of the ratio over the rounds."""
    result = {"name": name, "ours": work / ours.median, "peer": None, "ratio": None, "unit": unit}
    if peer:
        ratios = [theirs / mine for mine, theirs in zip(peer.beside, peer.seconds)]
        result |= {"peer": work / peer.median, "ratio": peer.median / ours.median}
        result |= {"lowest_ratio": min(ratios), "highest_ratio": max(ratios), "peer_seconds": peer.seconds}
    return result | {"ours_seconds": ours.seconds}


def measure(
    what: tuple[str, str, int], run: Callable[[], Any], theirs: Callable[[], Any] | None, rounds: int
) -> tuple[dict, Any, Any]:
    """Measures (name, unit, work); returns the row and the outputs of each side."""
    name, unit, work = what
    ours, side = Side("ours", run), Side("peer", theirs) if theirs else None
    interleave(ours, [side] if side else [], rounds)
    return row(name, unit, work, ours, side), ours.first, side and side.first
