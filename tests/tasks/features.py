"""Rows for a Jinja template whose data set is not at hand: what it does with a field says what the field is."""

import itertools
from collections.abc import Iterator
from typing import Any

from jinja2 import nodes

from tasks.prompting import jinja_sandbox

LISTS = {
    "join",
    "map",
    "select",
    "selectattr",
    "reject",
    "rejectattr",
    "unique",
    "first",
    "last",
    "list",
    "sort",
    "max",
}
LISTS |= {"min", "choice", "random", "most_frequent"}
NUMBERS = {"int", "float", "round", "abs"}


class Field:
    """Facts about a field: its kind, constants it is compared with, its elements or its own fields."""

    def __init__(self) -> None:
        self.kind: str | None = None
        self.constants: list[Any] = []
        self.fields: dict[str, Field] = {}
        self.element: Field | None = None

    def key(self, name: str) -> "Field":
        self.kind = "dict"
        return self.fields.setdefault(name, Field())

    def item(self) -> "Field":
        self.kind = "list"
        self.element = self.element or Field()
        return self.element

    def value(self, number: int) -> Any:
        """The `number`-th of its possible values."""
        if self.kind == "dict":
            return {name: field.value(number) for name, field in self.fields.items()}
        if self.kind == "list":
            return [(self.element or Field()).value(number + i) for i in range(4)]
        if self.constants:
            return self.constants[number % len(self.constants)]
        return number % 2 if self.kind == "int" else f"some text {number}"


def rows(texts: list[str], count: int) -> Iterator[dict[str, Any]]:
    """Rows that fit all the templates of a file."""
    root = Field()
    root.kind = "dict"
    for text in texts:
        _visit(jinja_sandbox._ENVIRONMENT.parse(text), root, {"loop": Field(), "answer_choices": Field()})
    return (root.value(number) for number in itertools.islice(itertools.count(), count))


def _visit(node: nodes.Node, root: Field, bindings: dict[str, Field]) -> None:
    if isinstance(node, nodes.For):
        target = _field(node.iter, root, bindings)
        element = target.item() if target and target.kind != "str" else Field()
        bindings = bindings | (
            {node.target.name: element} if isinstance(node.target, nodes.Name) else _pairs(node, root, bindings)
        )
    elif isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
        bindings[node.target.name] = _field(node.node, root, bindings) or Field()
    elif isinstance(node, nodes.Compare):
        _compare(node, root, bindings)
    elif isinstance(node, nodes.Getitem) and not isinstance(node.arg, (nodes.Const, nodes.Slice)):
        index = _field(node.arg, root, bindings)
        if index is not None and isinstance(node.node, nodes.Dict):
            index.constants += [pair.key.value for pair in node.node.items if isinstance(pair.key, nodes.Const)]
        elif index is not None and index.kind is None:
            index.kind = "int"
    elif isinstance(node, nodes.Filter) and node.node is not None:
        field = _field(node.node, root, bindings)
        if field is not None and field.kind is None:
            field.kind = "list" if node.name in LISTS else "int" if node.name in NUMBERS else None
            for argument in node.kwargs if node.name == "map" else ():
                if argument.key == "attribute" and isinstance(argument.value, nodes.Const):
                    field.item().key(argument.value.value)
    elif isinstance(node, (nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod)):
        for item, other in ((node.left, node.right), (node.right, node.left)):
            field = _field(item, root, bindings)
            if field is not None and field.kind is None and isinstance(other, nodes.Const):
                field.kind = "int" if isinstance(other.value, (int, float)) else "str"
    _field(node, root, bindings)
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):  # a method is no field
        children = [node.node.node, *node.args]
    else:
        children = node.iter_child_nodes()
    for child in children:
        _visit(child, root, bindings)


def _pairs(node: nodes.For, root: Field, bindings: dict[str, Field]) -> dict[str, Field]:
    """The targets of a loop over zip(a, b)."""
    call = node.iter.node if isinstance(node.iter, nodes.Filter) else node.iter
    result = {name.name: Field() for name in node.target.items if isinstance(name, nodes.Name)}
    if isinstance(call, nodes.Call) and getattr(call.node, "name", "") == "zip":
        for name, argument in zip(result, call.args):
            if (field := _field(argument, root, bindings)) is not None:
                result[name] = field.item()
    return result


def _compare(node: nodes.Compare, root: Field, bindings: dict[str, Field]) -> None:
    for operand in node.ops:
        for element, other in ((node.expr, operand.expr), (operand.expr, node.expr)):
            field = _field(element, root, bindings)
            if field is None or field.kind in ("list", "dict"):
                continue
            if operand.op in ("in", "notin") and element is operand.expr:
                continue
            if isinstance(other, nodes.Neg) and isinstance(other.node, nodes.Const):
                field.kind = field.kind or "int"
            elif isinstance(other, nodes.Const) and other.value is not None:
                step = 1 if operand.op in ("gt", "gteq", "ne") and isinstance(other.value, (int, float)) else 0
                field.constants.append(other.value + step if step else other.value)
            elif isinstance(other, (nodes.List, nodes.Tuple)):
                field.constants += [item.value for item in other.items if isinstance(item, nodes.Const)]


def _field(node: nodes.Node, root: Field, bindings: dict[str, Field]) -> Field | None:
    """The field that an expression reads; None where it is no field."""
    if isinstance(node, nodes.Name):
        free = node.name not in bindings and node.name not in jinja_sandbox._ENVIRONMENT.globals
        return root.key(node.name) if free else bindings.get(node.name)
    if isinstance(node, nodes.Filter) and node.name in ("counted", "paid") and node.node is not None:
        return _field(node.node, root, bindings)
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        owner, method = _field(node.node.node, root, bindings), node.node.attr
        if owner is not None and owner.kind is None:
            owner.kind = "list" if method in ("append", "index") else "dict" if method in ("keys", "items") else "str"
        return None
    if isinstance(node, nodes.Getattr):
        owner = _field(node.node, root, bindings)
        methods = set().union(*jinja_sandbox.METHODS.values()) - {"items", "values", "index", "title", "count"}
        return owner.key(node.attr) if owner is not None and node.attr not in methods else None
    if isinstance(node, nodes.Getitem):
        owner = _field(node.node, root, bindings)
        if owner is None:
            return None
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return owner.key(node.arg.value)
        return owner.item() if owner.kind != "dict" and not isinstance(node.arg, nodes.Slice) else None
    return None
