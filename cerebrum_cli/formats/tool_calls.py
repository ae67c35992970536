"""How a prompt format supports functions, and the reader of the calls in replies. Pure.

A call in the model's own syntax counts anywhere in an answer. If there is none, JSON or a Python list of calls
counts if it begins a line or a fence, names a known function, and its arguments fit.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from string import ascii_letters, digits
from typing import Any

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import Pattern, Texts, partial_marker_length
from cerebrum_cli.core.tools import ToolCall, ToolCalls, ToolSpec, ToolSpecs, read_call

NAME_KEYS = ("name", "tool_name", "function", "tool")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
BARE_START = re.compile(r"(?m)^[ \t]*(?P<fence>```[\w-]*\s*)?(?=[\[{])")
PYTHON_START = re.compile(r"\[\s*[A-Za-z_][\w.]*\(")
JSON_WORDS = {"true": True, "false": False, "null": None}
PYTHON_BEGUN = re.compile(r"\[\s*([A-Za-z_][\w.]*(\(.*)?)?\Z")
WORD = f"{ascii_letters}{digits}+-.\\"  # characters of numbers, words and escapes in JSON, which may be incomplete
FENCE_START = re.compile(r"```[\w-]*\s*")
_DECODER = json.JSONDecoder(strict=False)  # strings may contain line breaks

Finder = Callable[[str, ToolSpecs], Iterable[ToolCall]]
Arguments = Callable[[str, int], JsonObject]  # at a place in a text; or ValueError


def no_calls(text: str, tools: ToolSpecs) -> ToolCalls:  # noqa: ARG001
    return ()


@frozen
class ToolFormat:
    """How a format supports functions, and how its model calls them.

    - `has_place`: the prompt shows the functions to the model
    - `takes_text`: rounds can be given as they were written, before their results
    - `writes_calls`: it writes calls with names and arguments, which are JSON text with `text_arguments`; only one call
      at a time unless it `writes_several`
    - `moves_text`: it writes the text of a round after the results, where its reply would end
    - `find`: finds calls in its own syntax
    - `opening`: the text that its calls begin with; empty if they are JSON alone
    - `markers`: texts of the syntax that may be special tokens
    - `in_headers`: calls are in the headers of blocks, so they are read from the whole reply with all special tokens
    """

    has_place: bool = False
    takes_text: bool = False
    writes_calls: bool = False
    writes_several: bool = False
    text_arguments: bool = False
    moves_text: bool = False
    find: Finder = no_calls
    opening: str = ""
    markers: Texts = ()
    in_headers: bool = False

    def read(self, text: str, tools: ToolSpecs) -> tuple[ToolCalls, bool]:
        """The calls in a text, in order, and whether they are in the model's own syntax."""
        own = tuple(self.find(text, tools))
        calls = own or tuple(bare_calls(text, tools))
        return tuple(read_call(call.name, call.arguments) for call in calls), bool(own)

    def filter(self, tools: ToolSpecs) -> CallFilter:
        """What passes on an answer without calls."""
        return CallFilter(self.opening, tools)


PLAIN_TOOLS = ToolFormat()  # of formats that do not support functions


def bare_calls(text: str, tools: ToolSpecs) -> Iterator[ToolCall]:
    """Calls of known functions without markup."""
    known = {tool.name: tool for tool in tools}
    text = without_triple_quotes(text)
    at = 0
    while start := BARE_START.search(text, at):
        calls, at = calls_at(text, start.end(), tools)
        if not calls:
            line = text[start.end() :].partition("\n")[0]
            calls, at = python_calls(line), start.end() + 1
        if all(call.name in known and fits(known[call.name], call.arguments) for call in calls):
            yield from calls


def fits(tool: ToolSpec, arguments: JsonObject) -> bool:
    """Whether all arguments are known, and none that is required is missing."""
    required = set(tool.parameters.get("required", ()))
    return required <= arguments.keys() and arguments.keys() <= tool.parameters.get("properties", {}).keys()


# Syntaxes.


def json_calls(header: Pattern, text: str, tools: ToolSpecs) -> Iterator[ToolCall]:
    """Calls as JSON objects, or lists of them, after a marker."""
    text = without_triple_quotes(text)
    for found in header.finditer(text):
        calls, at = calls_at(text, found.end(), tools)
        while calls:
            yield from calls
            calls, at = calls_at(text, at, tools)


def named_calls(header: Pattern, arguments: Arguments, text: str, tools: ToolSpecs) -> Iterator[ToolCall]:  # noqa: ARG001
    """Calls whose header contains the name, and precedes the arguments."""
    for found in header.finditer(text):
        try:
            yield ToolCall(found["name"].removeprefix("functions."), arguments(text, found.end()))
        except (ValueError, RecursionError):
            continue


def without_triple_quotes(text: str) -> str:
    """JSON in which strings in Python's triple quotes, as small models write programs, are JSON, too."""
    pieces = text.split('"""')
    pieces[1::2] = [json.dumps(piece)[1:-1] for piece in pieces[1::2]]
    return '"'.join(pieces)


def calls_at(text: str, start: int, tools: ToolSpecs) -> tuple[list[ToolCall], int]:
    """The calls in the JSON value at a place, and where it ends; if it is anything else, none, and the next place."""
    try:
        value, end = decode(text, start)
        items = value if isinstance(value, list) else [value]
        return [_call_of(item, tools) for item in items], end
    except (ValueError, RecursionError):
        return [], start + 1


def decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at a place, after white space, and where it ends. Raises ValueError."""
    while text[start : start + 1].isspace():
        start += 1
    return _DECODER.raw_decode(text, start)


def _call_of(item: Any, tools: ToolSpecs) -> ToolCall:
    """A call as a JSON object: its name and arguments under keys of their own, or `{name: arguments}`."""
    if not isinstance(item, dict):
        raise ValueError("no object")
    if isinstance(item.get("function"), dict):
        item = item["function"]
    name, arguments = _first(item, NAME_KEYS), _first(item, ARGUMENT_KEYS)
    for tool in tools:
        if name is None and item.keys() == {tool.name}:
            name, arguments = tool.name, item[tool.name]
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("no call")
    return ToolCall(name, arguments)


def _first(item: JsonObject, keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if key in item), None)


def json_arguments(text: str, start: int) -> JsonObject:
    value, _ = decode(text, start)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def pair_arguments(pair: Pattern, text: str, start: int) -> JsonObject:
    """Arguments as pairs of a key and a text."""
    values = {}
    while found := pair.match(text, start):
        value = found["value"]
        if value.startswith("<![CDATA["):
            value = value.removeprefix("<![CDATA[").removesuffix("]]>")
        values[found["key"]] = value
        start = found.end()
    return values


def gemma_arguments(text: str, start: int) -> JsonObject:
    """Arguments as Gemma 4 writes them: keys without quotes, texts between `<|"|>`."""
    parts = []
    for number, piece in enumerate(text[start:].split('<|"|>')):
        if number % 2:
            parts.append(json.dumps(piece))
        else:
            piece = re.sub(r"\bNone\b", "null", piece)
            parts.append(re.sub(r"([{,]\s*)([\w.-]+)\s*:", r'\1"\2":', piece))
    return json_arguments("".join(parts), 0)


def python_calls(text: str) -> list[ToolCall]:
    """The calls in a Python list, `[weather(city="Oslo")]`; empty for anything else."""
    text = text.strip()
    if not PYTHON_START.match(text):
        return []
    try:
        listed = _JsonWords().visit(ast.parse(text, mode="eval").body)
        return [_python_call(item) for item in getattr(listed, "elts", ())]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


class _JsonWords(ast.NodeTransformer):
    """Replaces JSON's constants with Python's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(JSON_WORDS[node.id]) if node.id in JSON_WORDS else node


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with keyword arguments")
    return ToolCall(ast.unparse(node.func), {str(item.arg): ast.literal_eval(item.value) for item in node.keywords})


class CallFilter:
    """Passes on an answer that arrives in pieces, up to text that may be a function call."""

    def __init__(self, opening: str, tools: ToolSpecs) -> None:
        self._opening = opening
        self._tools = tools
        self.held = ""
        self.shown = ""

    def feed(self, text: str) -> str:
        """Add text, and return what is certainly not part of a call."""
        self.held += text
        length = len(self.held[: self._certain_length()].rstrip())  # white space may precede a call
        shown, self.held = self.held[:length], self.held[length:]
        self.shown += shown
        return shown

    def _certain_length(self) -> int:
        text = self.held
        line = text.find("\n") + 1 or len(text) if self.shown else 0
        while line < len(text) and not self._may_be_call(text[line:].lstrip(" \t")):
            line = text.find("\n", line) + 1 or len(text)
        if not self._opening:
            return line
        if self._opening in text:
            return min(line, text.index(self._opening))
        return min(line, len(text) - partial_marker_length(text, (self._opening,)))

    def _may_be_call(self, line: str) -> bool:
        """Whether the beginning of a line is a call without markup, or may become one."""
        if "```".startswith(line) or FENCE_START.fullmatch(line):
            return True
        body = FENCE_START.sub("", line, 1) if line.startswith("```") else line
        if PYTHON_BEGUN.match(body):
            return True
        if not body.startswith(("[", "{")):
            return False
        try:
            decode(without_triple_quotes(body), 0)
        except json.JSONDecodeError as error:
            if error.pos >= len(body.rstrip().rstrip(WORD)) or error.msg.startswith("Unterminated"):
                return True
        except RecursionError:
            return False
        return any(bare_calls(line, self._tools))
