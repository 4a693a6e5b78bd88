"""The sandbox that chat templates run in: foreign code, which gets so much time and so many characters, and no more.

jinja2's own sandbox keeps a template away from Python's insides. Here every call, filter, loop and operator that can
grow a value is asked first how large its result will be, and each looks at the clock.
https://jinja.palletsprojects.com/en/stable/sandbox
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup, escape

from octavo.gpt.tokenizer.message_text import MessageText, SpecialTokenEscaper

SECONDS = 2.0  # of the rendering thread's own time, so that a busy machine refuses nothing
MAX_CHARACTERS = 10_000_000  # of the output, and of any one value
MAX_TOTAL = 6 * MAX_CHARACTERS  # of all values that a rendering makes; Python takes up to four bytes for each
MAX_ITEMS = 250_000  # of lists and dicts, those inside counted as often as they occur
MAX_WIDTH = 10_000  # of fields, indents and batches
MAX_BITS = 100_000  # of an integer

HTML = ("urlize", "striptags", "xmlattr")  # filters that no prompt needs and that have costs of their own
PRINTING = ("tojson", "string", "pprint", "urlencode", "join", "format")  # filters that write out all they are given
WIDE = ("center", "indent", "wordwrap", "truncate", "batch", "slice", "round", "tojson")
ON_WRITTEN_TEXT = ("tojson", "pprint", "urlencode", "escape", "e", "forceescape", "wordcount")
GROWING = ("translate", "maketrans", "expandtabs")  # methods of texts that are not for templates


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; rendering keeps what is inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(inside, lineno=line)  # names set inside end there, as transformers has it


class _Guard(NodeTransformer):
    """Sends loops, `~`, `in` and literal collections, which become plain Python, through filters of ours."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_each")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concatenated")

    def visit_Operand(self, node: nodes.Operand) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.op in ("in", "notin"):
            node.expr = _filtered(node.expr, "_searched")
        return node

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_kept")

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_kept") if node.ctx == "load" else node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for one rendering: blocks trimmed, loop controls, and the functions that templates expect.

    TemplateError where the template asks for more than it gets. An environment that is not `start`ed only compiles.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, escaper: SpecialTokenEscaper | None = None) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self._escaper = escaper
        self._deadline: float | None = None
        self._num_made = 0
        self.filters = {name: self._guarded(name, each) for name, each in self.filters.items() if name not in HTML}
        self.filters["tojson"] = self._guarded("tojson", _to_json)
        self.filters |= {"_each": self._each, "_kept": self._kept, "_concatenated": self._concatenated}
        self.filters["_searched"] = self._searched
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        del self.globals["lipsum"]
        self.concat, self.finalize = self._concatenated, self._printed  # type: ignore[method-assign]

    def start(self) -> None:
        """Let the time run."""
        self._deadline = time.thread_time() + SECONDS

    def tick(self) -> None:
        """TemplateError when the time is over; also while compiling, so that nothing is worked out then."""
        if self._deadline is None or time.thread_time() > self._deadline:
            raise TemplateError(f"it takes more than {SECONDS:g} s")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and not (isinstance(obj, str | type) and attr in GROWING)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.tick()
        _require_operands(operator, left, right)
        if hasattr(left, "__html__") or hasattr(right, "__html__"):
            left, right = self._as_html(left), self._as_html(right)
        return self._kept(self.binop_table[operator](left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        __self.tick()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | bytes | int):
            if __obj.__name__ == "join" and args:
                args = (list(args[0]), *args[1:])
            _require_arguments(__obj.__name__, owner, [*args, *kwargs.values()])
        return __self._kept(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        format = super().wrap_str_format(value)
        if format is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            _require_fields(value.__self__, r"\{[^{}]*:([^{}]*)", value.__self__.count("{"), [*args, *kwargs.values()])
            if re.search(r":[^{}]*\{", value.__self__):
                _require_widths([*args, *kwargs.values()])  # a field's width may be another argument
            return format(*args, **kwargs)

        return bounded

    def _parse(self, *args: Any) -> nodes.Template:
        template = super()._parse(*args)
        _Guard().visit(template)
        return template

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the filter with a look at the clock and at what it is given."""
        num_own = int(hasattr(function, "jinja_pass_arg"))  # arguments that jinja2 puts before the template's

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            own, given = args[:num_own], list(args[num_own:])
            if name == "join" and given:
                given[0] = list(given[0])
            _require_filter(name, given, kwargs)
            if name not in ON_WRITTEN_TEXT or self._escaper is None:
                return self._kept(function(*own, *given, **kwargs))
            result = self._kept(function(*own, *self._escaper.reveal(given), **kwargs))
            return self._escaper.hide(result)  # what comes from a message is among it

        return guarded

    def _each(self, items: Iterable[Any]) -> Iterator[Any]:
        self.tick()
        for item in items:
            self.tick()
            yield item

    def _kept(self, value: Any) -> Any:
        """Return a value that was made, counted, texts of messages as such."""
        if isinstance(value, str | list | tuple | dict):
            self._num_made += len(value) if isinstance(value, str) else 8 * len(value)
            if self._num_made > MAX_TOTAL:
                _refuse(f"it makes more than {MAX_TOTAL:,} characters")
        if isinstance(value, list | tuple | dict):
            weigh(value, MAX_ITEMS)
        if type(value) in (list, tuple):
            return type(value)(map(self._as_text, value))
        return self._as_text(value)

    def _as_text(self, value: Any) -> Any:
        return self._escaper.text(value) if self._escaper is not None and type(value) is str else value

    def _as_html(self, value: Any) -> Any:
        """Return a value with its texts of messages escaped: markup that they are added to sees no hidden character."""
        if isinstance(value, MessageText) and self._escaper is not None:
            return Markup(self._escaper.hide(str(escape(self._escaper.reveal(value)))))
        return tuple(map(self._as_html, value)) if isinstance(value, tuple) else value

    def _searched(self, value: Any) -> Any:
        self.tick()
        if self._escaper is None or type(value) is not str:
            return value
        return MessageText(value, self._escaper)  # what it is searched for may be hidden

    def _concatenated(self, parts: Iterable[Any]) -> Any:
        self.tick()
        parts = list(parts)
        weigh(parts, MAX_CHARACTERS, "characters")
        return self._kept("".join(map(str, map(self._printed, parts))))

    def _printed(self, value: Any) -> Any:
        """Return a value that is about to be written out."""
        if isinstance(value, Namespace):
            _refuse("a namespace cannot be written out")
        if not isinstance(value, str):
            weigh(value, MAX_CHARACTERS, "characters")
        return value


def weigh(value: Any, most: int, unit: str = "items") -> int:
    """Return how many items or characters a value has, with what is inside it; TemplateError for more than `most`."""
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        total += 1 if unit == "items" or not isinstance(item, str | bytes) else len(item)
        if isinstance(item, Mapping):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | type({}.keys()) | type({}.values()) | type({}.items())):
            stack += item
        if total + len(stack) > most + 1:
            _refuse(f"it makes a value of more than {most:,} {unit}")
    return total


def _require_operands(operator: str, left: Any, right: Any) -> None:
    pair = ((left, right), (right, left))
    if operator == "%" and isinstance(left, str | bytes):
        uses = str(left).count("%") if isinstance(right, Mapping) else 1
        _require_fields(str(left), r"%([^a-zA-Z%]*)", uses, [right])
    elif operator == "+" and all(isinstance(each, str | bytes | list | tuple) for each in (left, right)):
        _require_room(len(left) + len(right))
    elif operator == "*" and (found := [(a, n) for a, n in pair if isinstance(a, str | bytes | list | tuple)]):
        sequence, times = found[0]
        _require_room(len(sequence) * (times if isinstance(times, int) else 0))
    elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        power = left.bit_length() * max(right, 0)
        if (power if operator == "**" else left.bit_length() + right.bit_length()) > MAX_BITS:
            _refuse(f"it makes an integer of more than {MAX_BITS:,} bits")


def _require_arguments(name: str, owner: str | bytes | int, args: list[Any]) -> None:
    """TemplateError if a method of a text would make too long a one."""
    if name == "replace" and len(args) > 1 and isinstance(owner, str | bytes):
        _require_room(_replaced(owner, args[0], args[1]))
    elif name == "join" and isinstance(owner, str | bytes):
        _require_room(len(owner) * len(args[0]) + weigh(args[0], MAX_CHARACTERS, "characters"))
    else:
        _require_room(max((arg for arg in args if isinstance(arg, int)), default=0))


def _require_filter(name: str, given: list[Any], options: Mapping[str, Any]) -> None:
    """TemplateError if a filter would make too long a text, or take too long."""
    others = [*given[1:], *options.values()]
    if name in WIDE:
        _require_widths(others)
    if name in PRINTING:
        num_characters = weigh(given, MAX_CHARACTERS, "characters")
        _require_room(num_characters * (1 + max((arg for arg in others if type(arg) is int), default=0)))
    if name == "join" and others and isinstance(others[0], str):
        _require_room(len(others[0]) * len(given[0]))
    if name == "replace" and len(others) > 1:
        _require_room(_replaced(str(given[0]), str(others[0]), str(others[1])))
    if name == "indent":
        width = max((len(arg) if isinstance(arg, str) else int(arg) for arg in others), default=4)
        _require_room((str(given[0]).count("\n") + 1) * width)
    if name == "format":
        _require_operands("%", given[0], options or tuple(given[1:]))
    if name == "sum" and not all(isinstance(arg, int | float | str | None) for arg in others):
        _refuse("sum is for numbers")


def _require_fields(format: str, pattern: str, uses: int, values: list[Any]) -> None:
    """TemplateError if a format with these values would make too long a text."""
    specs = re.findall(pattern, format)
    widths = sum(min(int(number[:10]), MAX_CHARACTERS + 1) for spec in specs for number in re.findall(r"\d+", spec))
    if any("*" in spec for spec in specs):
        _require_widths(values[0] if isinstance(values[0], list | tuple) else values)
    _require_room(len(format) + widths + uses * weigh(values, MAX_CHARACTERS, "characters"))


def _require_widths(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_WIDTH:
            _refuse(f"it asks for more than {MAX_WIDTH:,} at once")


def _require_room(num_characters: int) -> None:
    if num_characters > MAX_CHARACTERS:
        _refuse(f"it makes a value of more than {MAX_CHARACTERS:,} characters")


def _replaced(text: Any, old: Any, new: Any) -> int:
    """Return the length of a text after a replacement, about."""
    return len(text) + text.count(old) * len(new)


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
