"""Kernels and bytes of a loop of a compiled program, read from its text (XLA's HLO)."""

import re
from typing import NamedTuple

from optiml_jax.planning.collectives import FREE, INSTRUCTION, array_bytes, computations

_OPERAND = re.compile(r"%([\w.\-]+)")
_BODY = re.compile(r" while\(.*\bbody=%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%([\w.\-]+)")
_ALIASED = re.compile(r"\{\d*\}: \((\d+), ")
_PART = re.compile(r" (?:gather|dynamic-slice)\(%([\w.\-]+)")
_WORKSPACE = re.compile(r"s8\[\d+\]\S*")  # of cuBLAS, which rarely uses it
_PARAMETER = re.compile(r"%([\w.\-]+) = \S+ parameter\((\d+)\)")


class Kernels(NamedTuple):
    """One pass of a loop: the number of kernels, and the bytes that they read and write, without those of arrays that a
    kernel updates in place."""

    count: int
    bytes: int


def loop_kernels(text: str) -> Kernels:
    """The kernels of the body of the first loop in a program (`compiled.as_text()`).

    Raises:
      ValueError: the program has no loop.
    """
    lines, _ = computations(text)
    body = _BODY.search(text)
    if body is None:
        raise ValueError("the program has no loop")
    return _kernels(body[1], lines)


def _kernels(name: str, lines: dict[str, list[str]]) -> Kernels:
    types, count, total = {}, 0, 0
    for line in lines[name]:
        match = INSTRUCTION.match(line)
        if match is None:
            continue
        result, type_, operation, rest = match.groups()
        types[result] = type_ = _WORKSPACE.sub("", type_) if operation == "custom-call" else type_
        if operation in FREE:
            continue
        called = _CALLED.search(rest)
        if operation == "call":  # a group of kernels, such as a CUDA graph
            inner = _kernels(called[1], lines)
            count, total = count + inner.count, total + inner.bytes
            continue
        operands = [types[operand] for operand in _OPERAND.findall(rest.partition(")")[0])]
        parts = _parts(lines[called[1]]) if operation == "fusion" else {}
        aliased = {int(index) for index in _ALIASED.findall(rest.partition("output_to_operand_aliasing=")[2])}
        count += 1
        total += array_bytes(type_) - sum(array_bytes(operands[index]) for index in aliased)
        total += sum(
            parts.get(index, array_bytes(operand)) for index, operand in enumerate(operands) if index not in aliased
        )
    return Kernels(count, total)


def _parts(lines: list[str]) -> dict[int, int]:
    """Bytes of what a fusion reads of parameters of which it takes rows or a slice, by their numbers."""
    numbers = {name: int(number) for line in lines for name, number in _PARAMETER.findall(line)}
    read: dict[int, int] = {}
    for line in lines:
        match, instruction = _PART.search(line), INSTRUCTION.match(line)
        if match and instruction and match[1] in numbers:
            read[numbers[match[1]]] = array_bytes(instruction[2])
    return read
