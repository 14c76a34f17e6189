"""Communication of a compiled program between devices, read from its text (XLA's HLO)."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}  # default 4

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}  # launch nothing
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective instruction.

    Attributes:
      kind: a name in `KINDS`.
      types: HLO type of its result, such as "bf16[8,128]{1,0}".
      sent_bytes: bytes that a device sends per execution, with ring algorithms.
      group: devices (by their number in the mesh) that take part together; the first such group.
      count: executions per step; loops of data-dependent length count once.
      in_open_loop: whether it lies in such a loop.
      overlapped: whether the schedule has kernels between its start and its end, which run while data is sent.
    """

    kind: str
    types: str
    sent_bytes: int
    group: tuple[int, ...]
    count: int
    in_open_loop: bool
    overlapped: bool


def collectives(text: str, devices: int) -> list[Collective]:
    """Lists the collectives of a compiled program (`compiled.as_text()`) over `devices` devices."""
    lines, entry = computations(text)
    instructions: list[Collective] = []

    def visit(name: str, times: int, in_open_loop: bool) -> None:
        for number, line in enumerate(lines[name]):
            match = _COLLECTIVE.search(line)
            if match:
                types, kind, started = match.groups()
                group = _group(line, devices)
                if len(group) > 1:
                    sent = _sent_bytes(kind, types, bool(started), len(group))
                    overlapped = bool(started) and _has_kernels_before_done(lines[name][number:])
                    instructions.append(Collective(kind, types, sent, group, times, in_open_loop, overlapped))
                continue
            trips = _TRIPS.search(line) if " while(" in line else None
            inner_times = times * int(trips[1]) if trips else times
            inner_open = in_open_loop or (" while(" in line and trips is None)
            for called in _called(line):
                if called in lines:
                    visit(called, inner_times, inner_open)

    visit(entry, 1, False)
    return instructions


def _has_kernels_before_done(lines: list[str]) -> bool:
    """Whether the schedule has kernels between an asynchronous collective, the first of `lines`, and its end."""
    started = INSTRUCTION.match(lines[0])[1]
    for line in lines[1:]:
        match = INSTRUCTION.match(line)
        operation, operands = match.groups()[2:] if match else ("tuple", "")
        if operation.endswith("-done") and operands.startswith(f"%{started})"):
            return False
        if operation not in FREE and not operation.startswith(KINDS):
            return True
    return False


def totals(instructions: list[Collective]) -> dict[str, dict[str, int]]:
    """Count and bytes sent per device and step, by kind."""
    sums = collections.defaultdict(lambda: {"count": 0, "bytes": 0})
    for instruction in instructions:
        sums[instruction.kind]["count"] += instruction.count
        sums[instruction.kind]["bytes"] += instruction.count * instruction.sent_bytes
    return {kind: sums[kind] for kind in KINDS if kind in sums}


def overlapped_share(instructions: list[Collective], kind: str) -> float:
    """The share of the bytes sent by collectives of this kind that are sent while kernels run."""
    sent = {
        overlapped: sum(x.count * x.sent_bytes for x in instructions if x.kind == kind and x.overlapped is overlapped)
        for overlapped in (False, True)
    }
    return sent[True] / sum(sent.values())


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the name of the entry computation."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            name = match[2]
            lines[name] = []
            entry = name if match[1] else entry
        elif name:
            lines[name].append(line)
    return lines, entry


def _called(line: str) -> Iterator[str]:
    yield from _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        yield from (branch.strip().lstrip("%") for branch in branches.split(","))


def array_bytes(types: str) -> int:
    """Total bytes of the arrays of an HLO type."""
    return sum(
        BYTES.get(dtype, 4) * math.prod(int(size) for size in shape.split(",") if size)
        for dtype, shape in _ARRAY.findall(types)
    )


def _sent_bytes(kind: str, types: str, started: bool, group: int) -> int:
    """Bytes sent with ring algorithms. The type of a `-start` lists operands and results, except for all-reduce."""
    size = array_bytes(types)
    if kind == "all-reduce":
        return 2 * size * (group - 1) // group
    if kind in ("all-to-all", "collective-permute"):
        size = size // 2 if started else size
        return size if kind == "collective-permute" else size * (group - 1) // group
    if started:
        whole = size * group // (group + 1)
    else:
        whole = size * group if kind == "reduce-scatter" else size
    return whole * (group - 1) // group


def _group(line: str, devices: int) -> tuple[int, ...]:
    """The first group of devices, from any of XLA's notations."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", line):
        moved = [pair for pair in re.findall(r"(\d+),(\d+)", pairs[1]) if pair[0] != pair[1]]
        return tuple(int(device) for device in moved[0]) if moved else ()
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return tuple(int(device) for device in listed[1].split(","))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return tuple(_iota(iota[2], iota[3]).reshape(_integers(iota[1]))[0].tolist())
    if named := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", line):
        return _mesh_group(*named.groups())
    return tuple(range(devices))


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _iota(shape: str, order: str | None) -> np.ndarray:
    numbers = np.arange(math.prod(_integers(shape))).reshape(_integers(shape))
    return numbers.transpose(_integers(order)) if order else numbers


def _mesh_group(axes: str, device_ids: str | None, used: str) -> tuple[int, ...]:
    """Parses `mesh['a'=8,'b'=8], device_ids=([8,8]T(1,0)) {'a'}`; a partly used axis is `'a':(before)size`."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    if device_ids and (iota := re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", device_ids)):
        ids = _iota(*iota.groups())
    ids = ids.reshape(list(sizes.values()))
    pick: list = [[0]] * len(sizes)
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", used):
        step = sizes[name] // (int(before) * int(size)) if size else 1
        count = int(size) if size else sizes[name]
        pick[list(sizes).index(name)] = [i * step for i in range(count)]
    return tuple(ids[np.ix_(*pick)].ravel().tolist())
