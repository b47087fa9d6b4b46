"""Jinja for templates that came from elsewhere: what they may do, and how much of it, whatever the machine's speed.

A template is input. It runs in jinja2's immutable sandbox, and everything that costs time or memory is charged to a
budget of work, counted in characters: each turn of a loop, each value that an operator, filter, method or `{{ }}`
touches. So the same template stops at the same point on every machine. A timer on CPU time stands behind it in the
main thread, for what the budget does not see (a comparison of huge texts inside nested loops).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import repeat
from types import MappingProxyType
from typing import Any, TypeVar

from jinja2 import Template, TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from sft_dist.core.process import cpu_limit

WORK = 10_000_000  # characters, plus WORK_PER_CHAR for each character of the record
WORK_PER_CHAR = 1000

_TICK, _ITEMS, _CONCAT = (
    "sft_dist.tick",
    "sft_dist.items",
    "sft_dist.concat",
)  # no name that a template can write
_OTHER_FILES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_WIDE = ("center", "ljust", "rjust", "zfill", "indent", "batch", "slice", "tojson", "expandtabs", "wordwrap")
_PERCENT_WIDTH = re.compile(r"%[^a-zA-Z%]*(\*|\d{5})")
_FORMAT_WIDTH = re.compile(r":[^}]*(\{|\d{5})")
_MAX_BITS = 10_000  # of an integer
_NODE = 20  # characters that an element of a list costs beside its text: looking at it takes as long


_Repeated = TypeVar("_Repeated", nodes.For, nodes.Macro, nodes.CallBlock)


class TooMuchWork(Exception):  # noqa: N818  what happened, not an error of ours
    """A rendering used up its budget of work or of CPU time."""


class WorkBudget:
    """What one rendering may still do, in characters, and its source of chance."""

    def __init__(self) -> None:
        self._left = 0
        self._seed: Callable[[], int] = int
        self._chance: random.Random | None = None

    def start(self, work: int, seed: Callable[[], int]) -> None:
        """Begin a rendering."""
        self._left, self._seed, self._chance = work, seed, None

    @property
    def chance(self) -> random.Random:
        """Where this rendering's draws come from; made when the first is asked for, which is seldom."""
        self._chance = self._chance or random.Random(self._seed())
        return self._chance

    def charge(self, work: int) -> None:
        """Take off `work` characters, or raise `TooMuchWork`."""
        self._left -= work
        if self._left < 0:
            raise TooMuchWork("it loops too often or makes too long a text")

    def charge_for(self, *values: Any) -> int:
        """Charge the size of values as they would be written out, and return it. Stops at the end of the budget."""
        size = text_size(*values, limit=self._left)
        self.charge(size)
        return size


def text_size(*values: Any, limit: float = math.inf) -> int:
    """Return the size of values as they would be written out, in characters; counting stops behind `limit`."""
    size = 0
    stack = list(values)
    while stack and size <= limit:
        value = stack.pop()
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, Mapping):
            size += _NODE * len(value)
            stack.extend(value.keys())
            stack.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            size += _NODE * len(value)
            stack.extend(value)
        else:
            size += 8
    return size


class BudgetEnvironment(ImmutableSandboxedEnvironment):
    """Jinja in a sandbox with a budget of work; nothing can be loaded from another file.

    Args:
        cpu_seconds: Limit of one rendering.
        filters: Beside those of jinja2; `random` draws from the seed of the rendering.
        variables: Names that every template sees, beside those of jinja2.
        lists_grow: Whether a list that a template makes takes `append`.
        options: Of `jinja2.Environment`.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(
        self,
        *,
        cpu_seconds: float,
        filters: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
        variables: Mapping[str, Any] = MappingProxyType({}),
        lists_grow: bool = False,
        **options: Any,
    ) -> None:
        # without the optimizer, no expression is evaluated while a template is compiled
        super().__init__(optimized=False, finalize=self._finalize, **options)
        self.budget = WorkBudget()
        self._cpu_seconds, self._lists_grow = cpu_seconds, lists_grow
        self.globals.pop("lipsum")
        self.globals |= variables
        self.filters |= {"random": self.choice, **filters}
        for name, plain in list(self.filters.items()):
            self.filters[name] = self._guarded(name, plain)
        self.filters |= {_TICK: self._tick, _ITEMS: self._items, _CONCAT: self._concat}

    def compile_template(self, text: str) -> tuple[Template, nodes.Template]:
        """Return the compiled template and its syntax tree as written.

        Raises:
            TemplateSyntaxError: When it is not valid, or refers to another file.
        """
        written = self.parse(text)
        if other := next(written.find_all(_OTHER_FILES), None):
            raise TemplateSyntaxError("a template may not read another file", other.lineno)
        counted = _Counted().visit(self.parse(text))
        code = self.compile(counted)
        return Template.from_code(self, code, self.make_globals(None)), written

    def render(
        self, template: Template, variables: Mapping[str, Any], *, work: int, seed: Callable[[], int] = int
    ) -> str:
        """Return the rendered text.

        Raises:
            TooMuchWork: When it needs more than `work`, or the CPU seconds.
            SecurityError: When it does what a template may not.
            Exception: Whatever its expressions raise, such as a TypeError.
        """
        self.budget.start(work, seed)
        with cpu_limit(self._cpu_seconds, TooMuchWork):
            return template.render(variables)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow `append`, where lists grow, besides what the sandbox allows."""
        grows = self._lists_grow and type(obj) is list and attr == "append"
        return grows or super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuse at once what would else print as nothing."""
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Run an operator whose result may be much larger than its operands."""
        self.budget.charge_for(left, right)
        if operator == "%" and isinstance(left, str):
            _check_width(_PERCENT_WIDTH, left)
        elif isinstance(left, int) and isinstance(right, int):
            bits = abs(right) if operator == "**" else 1
            if left.bit_length() * bits > _MAX_BITS or right.bit_length() > _MAX_BITS:
                raise TooMuchWork("it makes too large a number")
        elif operator == "*":
            for times, value in ((left, right), (right, left)):
                if isinstance(times, int):
                    self.budget.charge_for(*repeat(value, min(max(times, 0), 1)))
                    self.budget.charge(max(times, 0) * (len(value) if hasattr(value, "__len__") else 1))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063  as jinja2 has it
        """Call a function or method after charging what it touches."""
        budget = __self.budget
        name, this = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        budget.charge_for(*args, *kwargs.values())
        if wrapped := getattr(__obj, "__wrapped__", None):  # the sandbox wraps str.format and str.format_map
            name, this = wrapped.__name__, wrapped.__self__
            _check_width(_FORMAT_WIDTH, this)
        if isinstance(this, str):
            __self._charge_text(name, this, *args, *kwargs.values())
        return super().call(__context, __obj, *args, **kwargs)

    def _charge_text(self, name: str, text: Any, *args: Any) -> None:
        """Charge the result of a method or filter of texts that can be longer than what goes in."""
        size = self.budget.charge_for(text)
        if name == "replace" and len(args) >= 2:
            self.budget.charge(
                (str(text).count(str(args[0])) if args[0] != "" else size + 1) * len(str(args[1]))
            )
        elif name == "join" and args and isinstance(args[0], Sequence):
            self.budget.charge(len(str(text)) * len(args[0]))
        elif name in _WIDE:
            self.budget.charge((size + 1) * sum(abs(a) for a in args if isinstance(a, int)))

    def _guarded(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that charges what goes in before it runs."""
        skip = int(hasattr(plain, "jinja_pass_arg"))  # the first argument is jinja2's own

        @wraps(plain)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            value, *rest = args[skip:]
            rest += kwargs.values()
            self.budget.charge_for(*rest)
            if name == "format":
                _check_width(_PERCENT_WIDTH, str(value))
            if name == "join" and isinstance(value, Sequence):
                self.budget.charge_for(value)
                self._charge_text(name, rest[0] if rest else "", value)
            else:
                self._charge_text(name, value, *rest)
            return plain(*args, **kwargs)

        return guarded

    @pass_context
    def _finalize(self, context: Context, value: Any) -> Any:  # noqa: ARG002  see below
        # passing the context keeps jinja2 from evaluating constant expressions at compile time
        self.budget.charge_for(value)
        return value

    def choice(self, items: Sequence[Any]) -> Any:
        """Return one of the items, by the seed of this rendering."""
        return items[self.budget.chance.randrange(len(items))]

    @pass_context
    def _tick(self, context: Context, work: int) -> str:  # noqa: ARG002  as in _finalize
        self.budget.charge(work)
        return ""

    @pass_context
    def _items(self, context: Context, items: Iterable[Any]) -> Iterator[Any]:  # noqa: ARG002  as in _finalize
        for item in items:
            self.budget.charge(50)
            yield item

    @pass_context
    def _concat(self, context: Context, parts: Sequence[Any]) -> str:  # noqa: ARG002  as in _finalize
        self.budget.charge_for(parts)
        return "".join(map(str, parts))


class _Counted(NodeTransformer):
    """Puts the budget into a syntax tree: loops and macros tick, `~` goes through a filter that charges.

    A tick costs the fixed text inside the loop, which each of its turns may write.
    """

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        if node.test is not None:  # items that it refuses never reach the body
            node.iter = _filter(_ITEMS, node.iter)
        return _ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        return _ticking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        self.generic_visit(node)
        return _ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(_CONCAT, nodes.List(node.nodes, lineno=node.lineno))


def _ticking(node: _Repeated) -> _Repeated:
    """Return the node, its body charging for what a turn costs."""
    fixed = sum(len(text.data) for part in node.body for text in _texts(part))
    tick = _filter(_TICK, nodes.Const(50 + fixed, lineno=node.lineno))
    node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
    return node


def _texts(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    yield from [node] if isinstance(node, nodes.TemplateData) else node.find_all(nodes.TemplateData)


def _filter(name: str, value: Any) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _check_width(pattern: re.Pattern[str], text: str) -> None:
    if pattern.search(text):
        raise TooMuchWork("a format of it has a width that is computed or has five digits")
