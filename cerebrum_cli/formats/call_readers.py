"""How a model writes function calls, and the readers of calls that are written so. Pure."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import Match, Pattern, Texts
from cerebrum_cli.core.tools import ToolCall, ToolCalls, ToolSpecs
from cerebrum_cli.formats.argument_types import typed

NAME = r"(?P<name>[\w.:/-]+?)"  # of a function
NAME_KEYS = ("name", "tool_name", "function", "tool")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
# Where calls as JSON begin. The template of Qwen2.5-Coder has two braces there, and the model copies them or the first.
JSON_START = r"\{?(?=\{|\[\s*\{)"
BRACE_END = re.compile(r"\s*\}")
FENCE_END = re.compile(r"\s*```")
NO_ARGUMENTS = re.compile(r"\s*(?:<|\Z)")
BLANK = re.compile(r"\s*")
SEPARATORS = re.compile(r"[\s;,]*")  # between calls
JSON_WORDS = {"true": True, "false": False, "null": None}
# In calls as Python, models write line breaks, quotes and backslashes in strings as they are, and zeros before numbers.
STRING_OR_ZEROS = re.compile(
    r"""(?s)(?P<quote>["'])(?P<body>(?:[^\\]|\\.)*?)(?P=quote)(?=\s*[,:)\]}])|(?<![\w.])0+(?=\d)"""
)
UNESCAPED = re.compile(r"""(?s)\\(?=[^abfnrtvxuUN0-7'"\\\n])|(?P<escaped>\\.)|[\n\r\0"']""")
ESCAPES = {"\\": r"\\", "\n": r"\n", "\r": r"\r", "\0": r"\0", '"': r"\"", "'": r"\'"}
DECODER = json.JSONDecoder(strict=False)  # strings may contain line breaks

UNREADABLE = (ValueError, SyntaxError, RecursionError, MemoryError)

Form = Literal["JSON call", "Python", "JSON", "bare keys", "pairs"]


@frozen
class CallSyntax:
    """How a model writes calls: a header, and what follows it.

    - `header`: precedes a call; its group `name`, if any, is the name of the function
    - `form`: what follows. "JSON call" is objects with name and arguments, or a list of them; "Python" is calls, or a
      list of them. The others are the arguments: "JSON", JSON with "bare keys", or "pairs" of a key and a text
    - `pairs`: patterns with the groups `key` and `value`; the first that matches is used
    - `quote`: what is around strings if keys are bare
    - `closing`: ends Python, and arguments with bare keys
    - `openings`: texts that calls begin with
    - `markers`: texts of the markup, which may be special tokens
    - `in_headers`: calls are in the headers of blocks, so they are read from the whole reply with all special tokens
    """

    header: Pattern
    form: Form = "JSON call"
    pairs: tuple[Pattern, ...] = ()
    quote: str = ""
    closing: str = ""
    openings: Texts = ()
    markers: Texts = ()
    in_headers: bool = False


Syntaxes = tuple[CallSyntax, ...]


class Found(NamedTuple):
    """Calls in a text, from where their header begins to where their arguments end."""

    calls: ToolCalls
    start: int
    end: int


def find_calls(text: str, syntaxes: Syntaxes, tools: ToolSpecs) -> list[Found]:
    """The calls in a text in any of several syntaxes; of calls that overlap, those that begin first."""
    found: list[Found] = []
    of_all = (calls for syntax in syntaxes for calls in _calls_in(text, syntax, tools))
    for calls in sorted(of_all, key=attrgetter("start")):
        if not found or calls.start >= found[-1].end:
            found.append(calls)
    return found


def _calls_in(text: str, syntax: CallSyntax, tools: ToolSpecs) -> Iterator[Found]:
    read = READERS[syntax.form]
    at = 0
    while header := syntax.header.search(text, at):
        at = header.start() + 1
        with suppress(*UNREADABLE):
            calls, at = read(CallSite(text, header, syntax, tools))
            if header[0].endswith("{"):
                at = _after(BRACE_END, text, at)
            if "```" in header[0]:
                at = _after(FENCE_END, text, at)
            yield Found(calls, header.start(), at)


class CallSite(NamedTuple):
    """A header of a syntax in a text, with the functions that may be called."""

    text: str
    header: Match
    syntax: CallSyntax
    tools: ToolSpecs

    @property
    def start(self) -> int:
        """Where what follows the header begins."""
        return self.header.end()

    @property
    def end(self) -> int:
        """Where what follows the header is closed."""
        end = self.text.find(self.syntax.closing, self.start)
        return len(self.text) if end < 0 else end

    @property
    def name(self) -> str:
        return self.header["name"].removeprefix("functions.")

    def call(self, arguments: JsonObject) -> ToolCalls:
        """The call with the name in the header."""
        return (ToolCall(self.name, arguments),)


# Readers of what follows a header: they return the calls and their end, or raise one of UNREADABLE.


def _json_calls(site: CallSite) -> tuple[ToolCalls, int]:
    """Calls as JSON, one after the other."""
    text = site.text
    names = [tool.name for tool in site.tools if site.syntax.openings]  # without markup, `{name: ...}` may be anything
    calls, end = json_calls_at(text, site.start, names)
    with suppress(*UNREADABLE):
        while True:
            others, end = json_calls_at(text, _after(SEPARATORS, text, end), names)
            calls += others
    return calls, end


def json_calls_at(text: str, start: int, names: Sequence[str] = ()) -> tuple[ToolCalls, int]:
    """The calls in the JSON value at a site, and its end. Raises ValueError or RecursionError.

    An object has name and arguments under keys of their own, or one of the `names` as its only key.
    """
    value, end = decode(text, start)
    items = value if isinstance(value, list) else [value]
    if not items:
        raise ValueError("no calls")
    return tuple(_json_call(item, names) for item in items), end


def decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at a site, after white space, and its end. Raises ValueError or RecursionError."""
    return DECODER.raw_decode(text, _after(BLANK, text, start))


def _after(pattern: Pattern, text: str, start: int) -> int:
    """Where what matches a pattern at a place ends."""
    found = pattern.match(text, start)
    return found.end() if found else start


def _json_call(item: Any, names: Sequence[str]) -> ToolCall:
    if not isinstance(item, dict):
        raise ValueError("no object")
    if isinstance(item.get("function"), dict):
        item = item["function"]
    name, arguments = _first_value(item, NAME_KEYS), _first_value(item, ARGUMENT_KEYS)
    if len(item) == 1 and not item.keys().isdisjoint(names):
        [(name, arguments)] = item.items()
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("no call")
    return ToolCall(name, arguments)


def _first_value(item: JsonObject, keys: Sequence[str]) -> Any:
    """The value of the first of several keys that an object has; None without any."""
    return next((item[key] for key in keys if key in item), None)


def _python_calls(site: CallSite) -> tuple[ToolCalls, int]:
    program = STRING_OR_ZEROS.sub(_as_python, site.text[site.start : site.end]).strip()
    calls: list[ToolCall] = []
    for statement in ast.parse(program).body:
        if not isinstance(statement, ast.Expr):
            raise ValueError("no expression")
        value = _JsonWords().visit(statement.value)
        calls += map(_python_call, value.elts if isinstance(value, ast.List) else [value])
    if not calls:
        raise ValueError("no calls")
    return tuple(calls), site.end


def _as_python(found: Match) -> str:
    """A string with the escapes that models omit; nothing instead of zeros."""
    quote = found["quote"]
    if not quote:
        return ""
    body = UNESCAPED.sub(lambda character: character["escaped"] or ESCAPES[character[0]], found["body"])
    return f"{quote}{body}{quote}"


class _JsonWords(ast.NodeTransformer):
    """Replaces JSON's constants with Python's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(JSON_WORDS[node.id]) if node.id in JSON_WORDS else node


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with keyword arguments")
    return ToolCall(ast.unparse(node.func), {str(item.arg): ast.literal_eval(item.value) for item in node.keywords})


def _json_arguments(site: CallSite) -> tuple[ToolCalls, int]:
    """A call with arguments as JSON, or without arguments if its markup ends there."""
    if NO_ARGUMENTS.match(site.text, site.start):
        return site.call({}), site.start
    arguments, end = decode(site.text, site.start)
    if not isinstance(arguments, dict):
        raise ValueError("no object")
    return site.call(arguments), end


def _bare_keys(site: CallSite) -> tuple[ToolCalls, int]:
    pieces = site.text[site.start : site.end].split(site.syntax.quote)
    for number, piece in enumerate(pieces):
        if number % 2:  # in quotes
            pieces[number] = json.dumps(piece)
        else:
            piece = re.sub(r"\bNone\b", "null", piece)
            pieces[number] = re.sub(r"([{,]\s*)([\w.-]+)\s*:", r'\1"\2":', piece)
    return site.call(json.loads("".join(pieces))), site.end


def _pairs(site: CallSite) -> tuple[ToolCalls, int]:
    schema = next((tool.parameters for tool in site.tools if tool.name == site.name), {})
    end, arguments = site.start, {}
    while pair := next(filter(None, (pattern.match(site.text, end) for pattern in site.syntax.pairs)), None):
        key, value = pair["key"], pair["value"]
        if value.startswith("<![CDATA["):
            value = value.removeprefix("<![CDATA[").removesuffix("]]>")
        arguments[key] = typed(value, key, schema)
        end = pair.end()
    return site.call(arguments), end


READERS: dict[Form, Callable[[CallSite], tuple[ToolCalls, int]]] = {
    "JSON call": _json_calls,
    "Python": _python_calls,
    "JSON": _json_arguments,
    "bare keys": _bare_keys,
    "pairs": _pairs,
}
