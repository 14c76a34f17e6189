"""Jinja templates of other people's, rendered safely and the same way every time.

jinja2's immutable sandbox keeps a template from Python's attributes and modules. Here it is also kept from never ending
and from filling the memory: loops, calls, filters and growing texts are charged to a budget, in steps and not in
seconds, so that a render succeeds or fails alike on every machine. What is random draws from a seed.
"""

import copy
import functools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import meta, nodes, runtime, sandbox, visitor
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

BUDGET = 200_000  # steps of a render: iterations, calls, elements of lists, 64 characters of text
CHARACTERS = 64
MAX_TEMPLATE = 1 << 16  # characters
MAX_DIGITS = 10_000  # of what rounds or truncates
MAX_BITS = 4096  # of a product


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FILTERS = _words("""abs capitalize choice count d default first float format int join last length list lower map max min
most_frequent random reject rejectattr replace reverse round select selectattr sort string title trim truncate unique
upper""")
METHODS = {
    str: _words("""capitalize count endswith find index isdigit islower isupper join lower lstrip partition replace
    rfind rindex rpartition rsplit rstrip split splitlines startswith strip title upper"""),
    dict: _words("copy get items keys pop setdefault update values"),
    list: _words("append copy count extend index insert pop remove reverse"),
    tuple: _words("count index"),
}
WIDE = re.compile(r"\d{4}|\*")  # in a format: a width of thousands
MUTATES = re.compile(r"\.\s*(append|extend|insert|pop|remove|reverse|setdefault|update)\s*\(")
RANDOM = re.compile(r"\b(choice|random)\b")
STATE = " state"  # no name that a template could write


class State:
    """What one render may still spend, and where its random numbers come from."""

    def __init__(self, seed: int) -> None:
        self.left = BUDGET
        self._seed = seed

    @functools.cached_property
    def random(self) -> random.Random:
        """Seeded when it is first asked for: most templates never do."""
        return random.Random(self._seed)

    def charge(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise SecurityError(f"more than {BUDGET:,} steps: does it end?")

    def result(self, value: Any) -> Any:
        """`value`, paid for by its size."""
        if isinstance(value, str):
            self.charge(1 + len(value) // CHARACTERS)
        elif isinstance(value, (list, tuple, dict, set)):
            self.charge(1 + len(value))
        else:
            self.charge()
        return value

    def before(self, name: str, text: Any, args: tuple) -> tuple:
        """Pays for what would grow before it does; its arguments, lists where they were iterators."""
        if name == "replace" and len(args) >= 2 and isinstance(text, str):
            self.charge(text.count(str(args[0])) * len(str(args[1])) // CHARACTERS)
        elif name == "join" and args:
            parts = list(args[0])
            self.charge(sum(len(str(part)) + len(str(text)) for part in parts) // CHARACTERS)
            args = (parts, *args[1:])
        elif name == "format" and WIDE.search(str(text)):
            raise SecurityError("a format of thousands of characters")
        elif name in ("round", "truncate") and any(isinstance(arg, int) and abs(arg) > MAX_DIGITS for arg in args):
            raise SecurityError(f"{name} to more than {MAX_DIGITS:,}")
        return args


class Sandbox(sandbox.ImmutableSandboxedEnvironment):
    """The environment that templates are compiled in; see the module."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self) -> None:
        super().__init__(optimized=False, autoescape=False)  # nothing is computed while compiling
        known = {**self.filters, "choice": _choice, "random": _choice, "most_frequent": _most_frequent}
        self.filters = {name: _charged(name, known[name]) for name in FILTERS}
        self.filters |= {"counted": _counted, "paid": _paid}
        self.globals = {"range": self.globals["range"], "dict": dict, "namespace": Namespace, "zip": zip}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Meter().visit(super()._parse(source, name, filename))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Methods of texts and containers by name; what the row's own lists lose is given back (`Template`)."""
        for kind, methods in METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return isinstance(obj, (Namespace, runtime.LoopContext)) and not attr.startswith("_")

    def wrap_str_format(self, value: Any) -> None:
        """Nothing stands in for `str.format`, whose widths are not bounded: it is no admitted method."""

    def call(self, context: runtime.Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Charges for the call, beforehand where its result may be far larger than its arguments."""
        state: State = context[STATE]
        if isinstance(obj, runtime.LoopContext) and args:
            args = (list(args[0]),)
            state.charge(len(args[0]))
        args = state.before(getattr(obj, "__name__", ""), getattr(obj, "__self__", ""), args)
        return state.result(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic whose result stays small."""
        state: State = context[STATE]
        if operator == "%" and isinstance(left, str):
            state.before("format", left, ())
        if operator == "*":
            sized, times = (left, right) if hasattr(left, "__len__") else (right, left)
            if hasattr(sized, "__len__"):
                state.charge(len(sized) * max(0, int(times)))
            elif isinstance(left, int) and isinstance(right, int) and _bits(left) + _bits(right) > MAX_BITS:
                raise SecurityError("a product of more than a thousand digits")
        if operator == "**" and isinstance(right, int) and _bits(left) * abs(right) > MAX_BITS:
            raise SecurityError("a power of more than a thousand digits")
        return state.result(super().call_binop(context, operator, left, right))


def _bits(number: Any) -> int:
    return number.bit_length() if isinstance(number, int) else 64


class _Meter(visitor.NodeTransformer):
    """Puts what is charged into the syntax tree: loops, and texts that grow without a call."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        node = self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted")
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.AssignBlock:
        node = self.generic_visit(node)
        node.filter = _filtered(node.filter, "paid")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        return _filtered(self.generic_visit(node), "paid")


def _filtered(node: nodes.Expr | None, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


@jinja2.pass_context
def _counted(context: runtime.Context, values: Iterable) -> Iterator:
    state: State = context[STATE]
    for value in values:
        state.charge()
        yield value


@jinja2.pass_context
def _paid(context: runtime.Context, value: Any) -> Any:
    return context[STATE].result(value)


def _charged(name: str, function: Callable) -> Callable:
    """A filter that pays for what it does."""
    passed = getattr(function, "jinja_pass_arg", None)

    @jinja2.pass_context
    @functools.wraps(function, updated=())
    def charged(context: runtime.Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        state: State = context[STATE]
        if name == "join":  # of (list, text between), where the method has them the other way round
            (value,) = state.before(name, args[0] if args else kwargs.get("d", ""), (value,))
        else:
            args = state.before(name, value, args)
        if passed is None:
            return state.result(function(value, *args, **kwargs))
        given = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[passed.name]
        return state.result(function(given, value, *args, **kwargs))

    return charged


@jinja2.pass_context
def _choice(context: runtime.Context, values: Iterable) -> Any:
    return context[STATE].random.choice(list(values))


def _most_frequent(values: Iterable) -> list | None:
    """The values that come most often."""
    counts = Counter(values).most_common()
    return [value for value, count in counts if count == counts[0][1]] or None


_ENVIRONMENT = Sandbox()


class TemplateError(Exception):
    """Why a template cannot be compiled, or rendered with these values: one line."""


class EndlessError(TemplateError):
    """It took too many steps."""


class Template:
    """A compiled template.

    Attributes:
      names: the variables it reads and does not set.
      constant: whether every render of it is the same.

    Raises:
      TemplateError: no template, or one that uses what is not admitted.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEMPLATE:
            raise TemplateError(f"a template of {len(text):,} characters; {MAX_TEMPLATE:,} are admitted")
        self._mutates = bool(MUTATES.search(text))
        try:
            self._template = _ENVIRONMENT.from_string(text)
            known = meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
        except Exception as error:  # foreign code: whatever goes wrong is its fault
            raise TemplateError(_line(error)) from None
        self.names = frozenset(known - _ENVIRONMENT.globals.keys())
        self.constant = not self.names and not RANDOM.search(text)

    def render(self, values: Mapping[str, Any], seed: int = 0) -> str:
        """The text; the same for the same values and seed.

        Raises:
          TemplateError: the template fails, or takes too many steps.
        """
        state = State(seed)
        values = copy.deepcopy(dict(values)) if self._mutates else values
        try:
            # "shared": taken as they are, with the globals among them, where jinja2 would merge chains of mappings
            context = self._template.new_context({**_ENVIRONMENT.globals, **values, STATE: state}, shared=True)
            return "".join(map(state.result, self._template.root_render_func(context)))
        except Exception as error:
            raise (EndlessError if state.left < 0 else TemplateError)(_line(error)) from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
