"""How a prompt format supports functions, and the reader of the calls in replies. Pure.

A call in the model's own syntax counts anywhere in an answer. If there is none, JSON counts that begins a line or a
fence: calls of known functions, one after the other or in a list.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import Match, Pattern, Texts, partial_marker_length
from cerebrum_cli.core.tools import ToolCall, ToolCalls, ToolSpecs, read_call

HOLES = {
    "$name": r"(?P<name>[\w.:/-]+?)\s*",
    "$key": r"(?P<key>[^<>/\s\"]+?)",
    "$value": "(?P<value>.*?)",
    "$id": r"[\w:.-]*",
    "$any": "[^>]*?",
    # The header of a call to a function, as gpt-oss writes it in several ways.
    "$recipient": r"to=(?!assistant|user|self)(?P<name>[\w.-]+)(?:(?!<\|(?:message|start|end)\|>).)*",
}
PARTS = r"(\s*\$value\s*|\$(?:name|key|id|any|recipient)|\s+|\d+)"  # of a text with holes
ARGUMENTS = r"\$(?:calls|python|json|bare|pairs)"
MARKER = r"<[^<>\s]+>|\[[A-Z_]+\]|\]<\]\w+\[>\["
# Where calls as JSON begin. The template of Qwen2.5-Coder has two braces there, and the model copies them or the first.
JSON_START = r"\{?(?=\{|\[\s*\{)"
NAME_KEYS = ("name", "tool_name", "function", "tool")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
SEPARATORS = r"[\s;,]*"  # between calls
# In calls as Python, models write line breaks, quotes and backslashes in strings as they are, JSON's words, and zeros
# before numbers.
STRING = r"""(?s)(?P<quote>["'])(?P<body>(?:[^\\]|\\.)*?)(?P=quote)(?=\s*[,:)\]}])"""
WORD_OR_ZEROS = r"\b(?P<word>true|false|null)\b(?!=)|(?<![\w.])0+(?=\d)"
PYTHON_WORDS = {"true": "True", "false": "False", "null": "None"}
UNESCAPED = r"""(?s)\\(?=[^abfnrtvxuUN0-7'"\\\n])|(?P<escaped>\\.)|[\n\r\0"']"""
ESCAPES = {"\\": r"\\", "\n": r"\n", "\r": r"\r", "\0": r"\0", '"': r"\"", "'": r"\'"}
DECODER = json.JSONDecoder(strict=False)  # strings may contain line breaks
UNREADABLE = (ValueError, SyntaxError, RecursionError, MemoryError)


@frozen
class CallSyntax:
    """How a model writes calls.

    - `call`: a call with holes, such as `<function=$name>$json</function>`. The arguments are `$json`; `$bare`, JSON
      whose keys have no quotes, and whose strings are between `quote`s; or `$pairs` of a key and a text, which are
      written as `pair`. Without a name, there are `$calls`: JSON with names and arguments; or `$python`.
    - `section`: precedes the first of several calls
    - `others`: more texts of the markup, which may be special tokens
    - `in_headers`: calls are in the headers of blocks, so they are read from the whole reply with all special tokens
    """

    call: str
    pair: str = ""
    quote: str = ""
    section: str = ""
    others: Texts = ()
    in_headers: bool = False

    @property
    def arguments(self) -> str:
        """The hole of the arguments, or of whole calls."""
        return str(re.findall(ARGUMENTS, self.call)[0])

    @property
    def closing(self) -> str:
        return self.call.partition(self.arguments)[2]

    @property
    def openings(self) -> Texts:
        """Texts that calls begin with."""
        return tuple(filter(None, (self.section, self.call.partition("$")[0].strip())))

    @property
    def markers(self) -> Texts:
        """Texts of the markup, which may be special tokens."""
        return (*re.findall(MARKER, self.section + self.call + self.pair + self.quote), *self.others)


Syntaxes = tuple[CallSyntax, ...]


def pattern(text: str) -> str:
    """A regular expression of a text with holes. White space and numbers may differ; that beside a value is its own."""
    expression = ""
    for part in re.split(PARTS, text.replace("><", "> <")):
        hole = part.strip()
        if hole == "$value":
            expression += part.replace("\n", "\n?").replace(hole, HOLES[hole])
        elif hole in HOLES:
            expression += HOLES[hole] if HOLES[hole] not in expression else "(?P=key)"
        elif part.isspace():
            expression += r"\s*"
        else:
            expression += r"\d+" if part.isdigit() else re.escape(part)
    return expression


@cache
def header_pattern(syntax: CallSyntax) -> Pattern:
    """What precedes the arguments of a call, or the calls; without markup, it begins a line or a fence."""
    before = syntax.call.partition(syntax.arguments)[0]
    follows = {
        "$calls": JSON_START,
        "$python": r"(?=\[?\s*[A-Za-z_])",
        "$json": r"(?=\{)" if before.rstrip().endswith("$name") else r"(?=[{<]|\Z)",
        "$bare": r"(?=\{)",
        "$pairs": _pair_end(syntax),
    }
    line = "" if syntax.openings or syntax.in_headers else r"(?m:^)[ \t]*(?:```[\w-]*\s*)?"
    return re.compile(f"(?s){line}{pattern(before)}\\s*{follows[syntax.arguments]}")


@cache
def pair_patterns(syntax: CallSyntax) -> tuple[Pattern, Pattern]:
    """A pair of a key and a text, and one without the end that models may omit."""
    value, end = HOLES["$value"], _pair_end(syntax)
    whole = pattern(syntax.pair)
    unclosed = whole.partition(value)[0] + value
    return re.compile(rf"(?s)\s*{whole}{end}"), re.compile(rf"(?s)\s*{unclosed}\n?{end}")


def _pair_end(syntax: CallSyntax) -> str:
    """What follows a pair: another one, or the end of the call."""
    ends = (_key_opening(syntax), syntax.closing, *syntax.openings, *syntax.others)
    return rf"(?=\s*(?:{'|'.join(map(pattern, filter(None, ends)))}|\Z))"


def _key_opening(syntax: CallSyntax) -> str:
    return syntax.pair.partition("$key")[0]


class Found(NamedTuple):
    """Calls in a text, from where their header begins to where they end."""

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
    read = READERS[syntax.arguments]
    at = 0
    while header := header_pattern(syntax).search(text, at):
        at = header.start() + 1
        with suppress(*UNREADABLE):
            calls, at = read(CallSite(text, header, syntax, tools))
            for closing in _closings(header[0], syntax):
                at = _after(rf"\s*{pattern(closing)}", text, at)
            yield Found(calls, header.start(), at)


def _closings(header: str, syntax: CallSyntax) -> Iterator[str]:
    if header.endswith("{"):
        yield "}"
    if "```" in header:
        yield "```"
    yield syntax.closing


def _after(expression: str, text: str, start: int) -> int:
    """Where what matches an expression at a place ends."""
    found = re.compile(expression).match(text, start)
    return found.end() if found else start


class CallSite(NamedTuple):
    """The header of a call in a text, with the functions that may be called."""

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
        closing = self.syntax.closing
        end = self.text.find(closing, self.start) if closing else -1
        return len(self.text) if end < 0 else end

    @property
    def name(self) -> str:
        """The name of the function, to which models may add a namespace and a number."""
        return re.sub(r"\Afunctions\.|:\d+\Z", "", self.header["name"])

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
    """The calls in the JSON value at a place, and its end. Raises ValueError or RecursionError.

    An object has name and arguments under keys of their own, or one of the `names` as its only key.
    """
    value, end = DECODER.raw_decode(text, start)
    items = value if isinstance(value, list) else [value]
    if not items:
        raise ValueError("no calls")
    return tuple(_json_call(item, names) for item in items), end


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
    program = re.sub(f"{STRING}|{WORD_OR_ZEROS}", _as_python, site.text[site.start : site.end]).strip()
    calls: list[ToolCall] = []
    for statement in ast.parse(program).body:
        if not isinstance(statement, ast.Expr):
            raise ValueError("no expression")
        value = statement.value
        calls += map(_python_call, value.elts if isinstance(value, ast.List) else [value])
    if not calls:
        raise ValueError("no calls")
    return tuple(calls), site.end


def _as_python(found: Match) -> str:
    """A string with the escapes that models omit, a word of Python instead of JSON's, or nothing instead of zeros."""
    quote = found["quote"]
    if not quote:
        return PYTHON_WORDS.get(found["word"], "")
    body = re.sub(UNESCAPED, lambda character: character["escaped"] or ESCAPES[character[0]], found["body"])
    return f"{quote}{body}{quote}"


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with keyword arguments")
    return ToolCall(ast.unparse(node.func), {str(item.arg): ast.literal_eval(item.value) for item in node.keywords})


def _json_arguments(site: CallSite) -> tuple[ToolCalls, int]:
    """A call with arguments as JSON, or without arguments if its markup ends there."""
    if not site.text.startswith("{", site.start):
        return site.call({}), site.start
    arguments, end = DECODER.raw_decode(site.text, site.start)
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
    from cerebrum_cli.formats.argument_types import typed  # jsonschema takes 90 ms to import

    whole, unclosed = pair_patterns(site.syntax)
    schema = next((tool.parameters for tool in site.tools if tool.name == site.name), {})
    end, arguments = site.start, dict[str, Any]()
    while True:
        pair = whole.match(site.text, end)
        if pair is None or f"\n{_key_opening(site.syntax)}" in pair["value"]:
            pair = unclosed.match(site.text, end)
        if pair is None:
            return site.call(arguments), end
        value = pair["value"]
        if value.startswith("<![CDATA["):
            value = value.removeprefix("<![CDATA[").removesuffix("]]>")
        arguments[pair["key"]] = typed(value, pair["key"], schema)
        end = pair.end()


READERS: dict[str, Callable[[CallSite], tuple[ToolCalls, int]]] = {
    "$calls": _json_calls,
    "$python": _python_calls,
    "$json": _json_arguments,
    "$bare": _bare_keys,
    "$pairs": _pairs,
}


BARE = CallSyntax("$calls")
BARE_BEGUN = r"(?m)^[ \t]*(?:`{1,2}\Z|```[\w-]*\s*)?(?:\[\s*)?\Z"
# What may precede the place of an error in incomplete JSON: a part of a number, of a word or of an escape.
INCOMPLETE = r"[\w+\-.\\]*\s*\Z"


class CallsInText(NamedTuple):
    """The calls in a text, the text before and behind them, and whether they are in the model's own syntax."""

    calls: ToolCalls
    before: str
    behind: str = ""
    are_own: bool = False


@frozen
class ToolFormat:
    """How a format supports functions, and how its model calls them.

    - `has_place`: the prompt shows the functions to the model
    - `takes_text`: rounds can be given as they were written, before their results
    - `writes_calls`: it writes calls with names and arguments, which are JSON text with `text_arguments`; only one call
      at a time unless it `writes_several`
    - `moves_text`: it writes the text of a round after the results, where its reply would end
    - `syntaxes`: of the model's own calls; none if they are JSON without markup
    """

    has_place: bool = False
    takes_text: bool = False
    writes_calls: bool = False
    writes_several: bool = False
    text_arguments: bool = False
    moves_text: bool = False
    syntaxes: Syntaxes = ()

    @property
    def openings(self) -> Texts:
        """Texts that calls begin with."""
        return tuple(opening for syntax in self.syntaxes for opening in syntax.openings)

    @property
    def markers(self) -> Texts:
        """Texts around calls and in them, which may be special tokens."""
        return tuple(marker for syntax in self.syntaxes for marker in syntax.markers)

    @property
    def in_headers(self) -> bool:
        """Whether calls are in the headers of blocks, so that the whole reply is read with all special tokens."""
        return any(syntax.in_headers for syntax in self.syntaxes)

    def read(self, text: str, tools: ToolSpecs) -> CallsInText:
        """The calls in a text, and the text around them."""
        own = find_calls(text, self.syntaxes, tools)
        found = own or [bare for bare in find_calls(text, (BARE,), tools) if _are_known(bare.calls, tools)]
        if not found:
            return CallsInText((), text)
        calls = tuple(read_call(call.name, call.arguments) for each in found for call in each.calls)
        before, *behind = _around(text, found, self.markers)
        return CallsInText(calls, before, "\n".join(filter(None, behind)), bool(own))

    def filter(self, tools: ToolSpecs) -> CallFilter:
        """What passes on an answer without calls."""
        return CallFilter(self.openings, tools)


PLAIN_TOOLS = ToolFormat()  # of formats that do not support functions


def _are_known(calls: ToolCalls, tools: ToolSpecs) -> bool:
    return {call.name for call in calls} <= {tool.name for tool in tools}


def _around(text: str, found: Iterable[Found], markers: Texts) -> Iterator[str]:
    """The texts before, between and behind calls, without the markers and the white space beside the calls."""
    beside = "|".join([r"\s", *map(re.escape, sorted(markers, key=len, reverse=True))])
    start = 0
    for calls in found:
        before = re.sub(rf"(?:{beside})*\Z", "", text[start : calls.start])
        yield _behind(before, beside) if start else before
        start = calls.end
    yield _behind(text[start:].rstrip(), beside)


def _behind(text: str, beside: str) -> str:
    """A text behind a call, unless it only separates calls."""
    text = re.sub(rf"\A(?:{beside})*", "", text)
    return "" if re.fullmatch(SEPARATORS, text) else text


class CallFilter:
    """Passes on an answer that arrives in pieces, up to text that may be a function call."""

    def __init__(self, openings: Texts, tools: ToolSpecs) -> None:
        self._openings = openings
        self._tools = tools
        self.clear()

    def clear(self) -> None:
        """Begin again, with another answer."""
        self._text = ""
        self._certain = 0  # characters

    @property
    def shown(self) -> str:
        return self._text[: self._certain]

    @property
    def held(self) -> str:
        return self._text[self._certain :]

    def feed(self, text: str) -> str:
        """Add text, and return what is certainly not part of a call."""
        self._text += text
        held = self.held
        certain = held[: self._call_start() - self._certain].rstrip()  # white space may precede a call
        self._certain += len(certain)
        return certain

    def _call_start(self) -> int:
        """Where a call begins, or may begin, after the text that was passed on."""
        text, start = self._text, self._certain
        starts = [len(text) - partial_marker_length(text[start:], self._openings)]
        starts += [text.index(opening, start) for opening in self._openings if opening in text[start:]]
        if begun := re.compile(BARE_BEGUN).search(text, start):
            starts.append(begun.start())
        starts += [bare.start() for bare in header_pattern(BARE).finditer(text, start) if self._may_be_call(bare.end())]
        return min(starts)

    def _may_be_call(self, place: int) -> bool:
        """Whether the JSON at a place is a call of a known function, or may become one."""
        try:
            return _are_known(json_calls_at(self._text, place)[0], self._tools)
        except json.JSONDecodeError as error:
            return error.msg.startswith("Unterminated") or bool(re.match(INCOMPLETE, self._text[error.pos :]))
        except (ValueError, RecursionError):
            return False
