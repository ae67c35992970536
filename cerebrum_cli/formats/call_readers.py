"""Readers of calls by kind of syntax: JSON after a marker, a name before arguments, and Python. Pure.

A syntax is one of these readers with its markers, bound to them as a `Finder`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any, NamedTuple

from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import Pattern
from cerebrum_cli.core.tools import ToolCall, ToolCalls, ToolSpecs
from cerebrum_cli.formats.argument_types import typed

NAME_KEYS = ("name", "tool_name", "function", "tool")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
JSON_WORDS = {"true": True, "false": False, "null": None}
NAME = r"(?P<name>[\w.:/-]+?)"  # of a function
BARE_START = re.compile(r"(?m)^[ \t]*(?P<fence>```[\w-]*\s*)?(?=[\[{])")  # of a call without markup
PYTHON_START = re.compile(r"\s*(?P<list>\[)?\s*(?P<call>[A-Za-z_][\w.]*)\(")
WHOLE_PYTHON = re.compile(r"\s*(?:```[\w-]*\s+)?(?P<name>[A-Za-z_][\w.]*)\(")  # of a reply that is only calls
BETWEEN_CALLS = re.compile(r"[\s;,]*")
QUOTED = r'"""(?:[^\\]|\\.)*?"""|"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\''  # strings in Python
UNESCAPED = r'"(?:[^\\]|\\.)*?"(?=\s*[,:)\]}])|\'(?:[^\\]|\\.)*?\'(?=\s*[,:)\]}])'  # ... with quotes inside
ESCAPES = {"\n": r"\n", "\r": r"\r", "\0": r"\0"}
JSON_STRING = r'"""(?:[^\\]|\\.)*?"""|"(?:[^"\\]|\\.)*"'
ZEROS = re.compile(r"(?<![\w.])0+(?=\d)")  # before a number, which Python rejects
_DECODER = json.JSONDecoder(strict=False)  # strings may contain line breaks


class Found(NamedTuple):
    """Calls in a text, from where their markup begins to where their arguments end."""

    calls: ToolCalls
    start: int
    end: int


Finder = Callable[[str, ToolSpecs], Iterable[Found]]
CallsAtPlace = Callable[[int], tuple[ToolCalls, int]]  # at a place in a text, and their end
Arguments = Callable[[str, int, JsonObject], tuple[JsonObject, int]]  # at a place, and their end; or ValueError


def no_calls(text: str, tools: ToolSpecs) -> tuple[Found, ...]:  # noqa: ARG001
    return ()


def first_calls(finders: Sequence[Finder], text: str, tools: ToolSpecs) -> Iterator[Found]:
    """What several finders find, in the order of the text; of overlapping calls, those that begin first."""
    end = 0
    for found in sorted((found for finder in finders for found in finder(text, tools)), key=attrgetter("start")):
        if found.start >= end:
            yield found
            end = found.end


# Calls as JSON.


def json_calls(header: Pattern, text: str, tools: ToolSpecs) -> Iterator[Found]:
    """Calls as JSON objects, or lists of them, after a marker."""
    return calls_after(header, lambda place: calls_at(text, place, tools), text)


def calls_after(header: Pattern, calls_at_place: CallsAtPlace, text: str) -> Iterator[Found]:
    """Calls that follow a marker, one after the other."""
    at = 0
    while marker := header.search(text, at):
        start, at = marker.start(), marker.start() + 1
        calls, end = calls_at_place(marker.end())
        while calls:
            yield Found(calls, start, end)
            start = at = end
            calls, end = calls_at_place(after_separator(text, end))


def after_separator(text: str, start: int) -> int:
    """The next place that is no white space, semicolon or comma."""
    separator = BETWEEN_CALLS.match(text, start)
    return separator.end() if separator else start


def calls_at(text: str, start: int, tools: ToolSpecs) -> tuple[ToolCalls, int]:
    """The calls in the JSON value at a place, and where it ends; if it is anything else, none, and the next place."""
    try:
        value, end = decode(text, start)
        items = value if isinstance(value, list) else [value]
        return tuple(_call_of(item, tools) for item in items), end
    except (ValueError, RecursionError):
        return (), start + 1


def decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at a place, after white space, and where it ends. Raises ValueError.

    Strings may be in Python's triple quotes, as small models write programs.
    """
    while text[start : start + 1].isspace():
        start += 1
    try:
        return _DECODER.raw_decode(text, start)
    except ValueError:
        if '"""' not in text[start:]:
            raise
        end = bracket_end(text, start, JSON_STRING)
        return json.loads(without_triple_quotes(text[start:end]), strict=False), end


def without_triple_quotes(text: str) -> str:
    pieces = text.split('"""')
    pieces[1::2] = [json.dumps(piece)[1:-1] for piece in pieces[1::2]]
    return '"'.join(pieces)


def bracket_end(text: str, start: int, strings: str) -> int:
    """Where the bracket at a place is closed; brackets in strings do not count. Raises JSONDecodeError."""
    depth = 0
    for token in re.compile(rf"(?s:{strings})|[\[{{(]|[\]}})]").finditer(text, start):
        if token[0] in "[{(":
            depth += 1
        elif token[0] in "]})":
            depth -= 1
            if not depth:
                return token.end()
    raise json.JSONDecodeError("Unterminated brackets", text, start)


def _call_of(item: Any, tools: ToolSpecs) -> ToolCall:
    """A call as a JSON object: its name and arguments under keys of their own, or `{name: arguments}`."""
    if not isinstance(item, dict):
        raise ValueError("no object")
    if isinstance(item.get("function"), dict):
        item = item["function"]
    name, arguments = first_value(item, NAME_KEYS), first_value(item, ARGUMENT_KEYS)
    for tool in tools:
        if name is None and item.keys() == {tool.name}:
            name, arguments = tool.name, item[tool.name]
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("no call")
    return ToolCall(name, arguments)


def first_value(item: JsonObject, keys: Sequence[str]) -> Any:
    """The value of the first of several keys that an object has; None without any."""
    return next((item[key] for key in keys if key in item), None)


# Calls whose name precedes the arguments.


def named_calls(header: Pattern, arguments: Arguments, text: str, tools: ToolSpecs) -> Iterator[Found]:
    """Calls whose header contains the name, and precedes the arguments."""
    schemas = {tool.name: tool.parameters for tool in tools}
    at = 0
    while found := header.search(text, at):
        at = found.end()
        name = found["name"].removeprefix("functions.")
        with suppress(ValueError, RecursionError):
            values, at = arguments(text, found.end(), schemas.get(name, {}))
            yield Found((ToolCall(name, values),), found.start(), at)


def json_arguments(text: str, start: int, schema: JsonObject) -> tuple[JsonObject, int]:  # noqa: ARG001
    """Arguments as a JSON object; none if the call ends here."""
    rest = text[start:].lstrip()
    if not rest or rest.startswith("<"):
        return {}, start
    value, end = decode(text, start)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value, end


def pair_arguments(pairs: Sequence[Pattern], text: str, start: int, schema: JsonObject) -> tuple[JsonObject, int]:
    """Arguments as pairs of a key and a text, in the first form that matches; the schema says its type."""
    values = {}
    while found := next(filter(None, (pair.match(text, start) for pair in pairs)), None):
        value, kind = found["value"], found.groupdict().get("type")
        if value.startswith("<![CDATA["):
            value = value.removeprefix("<![CDATA[").removesuffix("]]>")
        values[found["key"]] = typed(value, found["key"], schema, kind)
        start = found.end()
    return values, start


def bare_key_arguments(quote: str, text: str, start: int, schema: JsonObject) -> tuple[JsonObject, int]:  # noqa: ARG001
    """Arguments as JSON whose keys have no quotes, and whose strings are between other quotes."""
    mark = re.escape(quote)
    end = bracket_end(text, start, f"{mark}.*?{mark}")
    parts = []
    for number, piece in enumerate(text[start:end].split(quote)):
        if number % 2:
            parts.append(json.dumps(piece))
        else:
            piece = re.sub(r"\bNone\b", "null", piece)
            parts.append(re.sub(r"([{,]\s*)([\w.-]+)\s*:", r'\1"\2":', piece))
    value, _ = json_arguments("".join(parts), 0, {})
    return value, end


# Calls as Python.


def python_calls(header: Pattern, text: str, tools: ToolSpecs) -> Iterator[Found]:  # noqa: ARG001
    """Calls as Python after a marker: a list of them, or one after the other."""
    return calls_after(header, lambda place: python_calls_at(text, place), text)


def python_calls_at(text: str, start: int) -> tuple[ToolCalls, int]:
    """The calls in the Python list or call at a place, and its end; if it is neither, none, and the next place."""
    found = PYTHON_START.match(text, start)
    if found is None:
        return (), start + 1
    start, opening = found.start("call"), found.end() - 1
    if found["list"]:
        start = opening = found.start("list")
    for strings in (QUOTED, UNESCAPED):
        try:
            end = bracket_end(text, opening, strings)
            return _parsed(text[start:end], strings), end
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return (), start + 1


def _parsed(written: str, strings: str) -> ToolCalls:
    pieces = re.split(f"(?s:({strings}))", written)
    pieces[::2] = [ZEROS.sub("", piece) for piece in pieces[::2]]
    pieces[1::2] = [_escaped(piece) for piece in pieces[1::2]]
    body = _JsonWords().visit(ast.parse("".join(pieces), mode="eval").body)
    return tuple(_python_call(item) for item in (body.elts if isinstance(body, ast.List) else [body]))


def _escaped(string: str) -> str:
    """A string of Python, in which models write line breaks and quotes as they are."""
    quote = string[0]
    if string.startswith(3 * quote) and len(string) > 2:
        return string
    body = re.sub(rf"\\.|{quote}", lambda found: found[0] if found[0] != quote else f"\\{quote}", string[1:-1])
    for character, escape in ESCAPES.items():
        body = body.replace(character, escape)
    return f"{quote}{body}{quote}"


class _JsonWords(ast.NodeTransformer):
    """Replaces JSON's constants with Python's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(JSON_WORDS[node.id]) if node.id in JSON_WORDS else node


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with keyword arguments")
    values = {str(item.arg): ast.literal_eval(item.value) for item in node.keywords}
    return ToolCall(ast.unparse(node.func), values)
