"""Renders Jinja templates from untrusted sources safely and reproducibly.

jinja2's immutable sandbox denies a template Python's attributes and modules. This one also bounds its time and memory:
loops, calls, filters and growing strings are charged to a budget, counted in steps and not in seconds, so that a render
succeeds or fails alike on every machine. Random choices are seeded.
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

BUDGET = 200_000  # steps per render: iterations, calls, items of lists, 64 characters of text
CHARACTERS = 64
MAX_TEMPLATE = 1 << 16  # characters
MAX_DIGITS = 10_000  # argument of round and truncate
MAX_BITS = 4096  # size of a product


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
WIDE = re.compile(r"\d{4}|\*")  # in a format: a width of a thousand or more
MUTATES = re.compile(r"\.\s*(append|extend|insert|pop|remove|reverse|setdefault|update)\s*\(")
RANDOM = re.compile(r"\b(choice|random)\b")
STATE = " state"  # not a name that a template could use


class RenderState:
    """The remaining budget of a render, and its random numbers."""

    def __init__(self, seed: int) -> None:
        self.left = BUDGET
        self._seed = seed

    @functools.cached_property
    def random(self) -> random.Random:
        """Created on first use, because most templates need no random numbers."""
        return random.Random(self._seed)

    def charge(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise SecurityError(f"more than {BUDGET:,} steps: does it end?")

    def result(self, value: Any) -> Any:
        """Charges for `value` by its size, and returns it."""
        if isinstance(value, str):
            self.charge(1 + len(value) // CHARACTERS)
        elif isinstance(value, (list, tuple, dict, set)):
            self.charge(1 + len(value))
        else:
            self.charge()
        return value

    def before(self, name: str, text: Any, args: tuple) -> tuple:
        """Charges in advance for operations that can grow; returns the arguments, with iterators turned into lists."""
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
    """The environment in which templates are compiled; see the module's docstring."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self) -> None:
        super().__init__(optimized=False, autoescape=False)  # no constant folding while compiling
        available = {**self.filters, "choice": _choice, "random": _choice, "most_frequent": _most_frequent}
        self.filters = {name: _charged(name, available[name]) for name in FILTERS}
        self.filters |= {"counted": _counted, "paid": _paid}
        self.globals = {"range": self.globals["range"], "dict": dict, "namespace": Namespace, "zip": zip}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Meter().visit(super()._parse(source, name, filename))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allows methods of strings and containers by name; `JinjaTemplate` copies the row if a template mutates it."""
        for kind, methods in METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return isinstance(obj, (Namespace, runtime.LoopContext)) and not attr.startswith("_")

    def wrap_str_format(self, value: Any) -> None:
        """Disables the wrapper of `str.format`, which is not an allowed method because its widths are not bounded."""

    def call(self, context: runtime.Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Charges for a call, in advance where its result may be far larger than its arguments."""
        state: RenderState = context[STATE]
        if isinstance(obj, runtime.LoopContext) and args:
            args = (list(args[0]),)
            state.charge(len(args[0]))
        args = state.before(getattr(obj, "__name__", ""), getattr(obj, "__self__", ""), args)
        return state.result(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Charges for arithmetic, and refuses results that would be too large."""
        state: RenderState = context[STATE]
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
    """Inserts charges into the syntax tree: for loops, and for strings that grow without a call."""

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
    state: RenderState = context[STATE]
    for value in values:
        state.charge()
        yield value


@jinja2.pass_context
def _paid(context: runtime.Context, value: Any) -> Any:
    return context[STATE].result(value)


def _charged(name: str, function: Callable) -> Callable:
    """Wraps a filter so that it charges for its work."""
    passed = getattr(function, "jinja_pass_arg", None)

    @jinja2.pass_context
    @functools.wraps(function, updated=())
    def charged(context: runtime.Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        state: RenderState = context[STATE]
        if name == "join":  # the filter's arguments are (list, separator), the method's the other way round
            (value,) = state.before(name, args[0] if args else kwargs.get("d", ""), (value,))
        else:
            args = state.before(name, value, args)
        if passed is None:
            return state.result(function(value, *args, **kwargs))
        passed_argument = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[
            passed.name
        ]
        return state.result(function(passed_argument, value, *args, **kwargs))

    return charged


@jinja2.pass_context
def _choice(context: runtime.Context, values: Iterable) -> Any:
    return context[STATE].random.choice(list(values))


def _most_frequent(values: Iterable) -> list | None:
    """The most frequent values."""
    counts = Counter(values).most_common()
    return [value for value, count in counts if count == counts[0][1]] or None


_ENVIRONMENT = Sandbox()


class TemplateError(Exception):
    """Why a template cannot be compiled, or rendered with these values, in one line."""


class EndlessError(TemplateError):
    """The template took too many steps."""


class JinjaTemplate:
    """A compiled template.

    Attributes:
      names: variables that it reads and does not set.
      constant: whether all renders of it are equal.

    Raises:
      TemplateError: the text is not a template, or uses what is not allowed.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEMPLATE:
            raise TemplateError(f"a template of {len(text):,} characters; the limit is {MAX_TEMPLATE:,}")
        self._mutates = bool(MUTATES.search(text))
        try:
            self._template = _ENVIRONMENT.from_string(text)
            undeclared = meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
        except Exception as error:  # templates can raise anything
            raise TemplateError(_line(error)) from None
        self.names = frozenset(undeclared - _ENVIRONMENT.globals.keys())
        self.constant = not self.names and not RANDOM.search(text)

    def render(self, values: Mapping[str, Any], seed: int = 0) -> str:
        """Renders the template; a function of the values and the seed.

        Raises:
          TemplateError: the template fails, or takes too many steps.
        """
        state = RenderState(seed)
        values = copy.deepcopy(dict(values)) if self._mutates else values
        try:
            # "shared" uses the mapping as it is, with the globals in it; otherwise jinja2 would merge chains of
            # mappings.
            context = self._template.new_context({**_ENVIRONMENT.globals, **values, STATE: state}, shared=True)
            return "".join(map(state.result, self._template.root_render_func(context)))
        except Exception as error:
            raise (EndlessError if state.left < 0 else TemplateError)(_line(error)) from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
