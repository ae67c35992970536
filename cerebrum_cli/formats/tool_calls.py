"""How a model writes calls of functions, learned by rendering its chat template, and the reader of such calls.

A template is given a conversation in which a reply calls functions with known names and arguments: what it writes
around them is the syntax. Without it, a JSON object that names a known function, in a fence or on lines of its own, is
a call, too.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import Texts
from cerebrum_cli.core.tools import Round, ToolCall, ToolCalls, ToolSpec, ToolSpecs
from cerebrum_cli.formats.markers import HEADERS, TAG
from cerebrum_cli.formats.template_sandbox import ANSWER, NEXT_QUESTION, QUESTION, try_render

# Names, texts and numbers of the calls that a template is given; digits, which no template changes.
FIRST, SECOND, RESULTS, NEXT_ANSWER = "fn1234", "fn2345", ("1457890", "1678901"), "1789012"
KEY, OTHER_KEY, THIRD_KEY = "key3456", "key4567", "key5678"
TEXT, NUMBER, OTHER_TEXT = "6789012", 7890123, "8901234"
_PARAMETERS = {"type": "object", "properties": {key: {"type": "string"} for key in (KEY, OTHER_KEY, THIRD_KEY)}}
PROBES = tuple(ToolSpec(name, "does something", _PARAMETERS) for name in (FIRST, SECOND))
CALLS = (
    ToolCall(FIRST, {KEY: TEXT, OTHER_KEY: NUMBER}, RESULTS[0]),
    ToolCall(SECOND, {THIRD_KEY: OTHER_TEXT}, RESULTS[1]),
)
TOOL_VARIABLES = ("tools", "xml_tools")  # of templates; SmolLM3 has the latter
NAME_KEYS = ("name", "tool_name", "function", "tool")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
NAME = r"(?P<name>[\w.:/-]+?)"
CALL_ID = re.compile(r"call0000\d")
JSON_START = re.compile(r"(?m)^[ \t]*(?P<fence>```[\w-]*\s*)?(?=[\[{])")
PYTHON_START = re.compile(r"\[\s*[A-Za-z_][\w.]*\(")
MARKER = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]|\]<\]\w+\[>\[")
_decoder = json.JSONDecoder(strict=False)


class Found(NamedTuple):
    """A call in a text, and where it begins and ends."""

    start: int
    end: int
    call: ToolCall


Finder = Callable[[str, ToolSpecs], Iterator[Found]]
Arguments = Callable[[str, int], tuple[JsonObject, int]]  # from a place in a text, and where they end; or ValueError


def _nothing(text: str, tools: ToolSpecs) -> Iterator[Found]:  # noqa: ARG001
    yield from ()


@frozen
class ToolFormat:
    """What a chat template does with functions, and how its model calls them.

    - `has_place`: it shows the functions to the model
    - `takes_text`: rounds of calls can be given as they were written, before their results
    - `writes_calls`: it writes calls with names and arguments, which are JSON text with `text_arguments`; only one call
      at a time unless it `writes_several`
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
    find: Finder = _nothing
    opening: str = ""
    markers: Texts = ()
    in_headers: bool = False

    def read(self, text: str, tools: ToolSpecs) -> list[Found]:
        """The calls in a text, in order: those in the model's own syntax, or else JSON that fits a known function."""
        return list(self.find(text, tools)) or list(bare_calls(text, tools))


PLAIN_TOOLS = ToolFormat()  # of formats without a place for functions


# Learning.


def tool_messages(conversation: Conversation, text_arguments: bool = False) -> list[JsonDict]:
    """The messages of a conversation as templates take them."""
    messages = conversation.openai_messages
    if text_arguments:
        for message in messages:
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return messages


def tool_variables(tools: ToolSpecs) -> JsonDict:
    return {name: [tool.openai for tool in tools] for name in TOOL_VARIABLES} if tools else {}


@cache
def find_tool_format(source: str) -> ToolFormat:
    """Find out what a template does with functions, by rendering small conversations."""
    asked = Conversation().user(QUESTION)
    prompt = _after_question(source, asked)
    if prompt is None:
        return PLAIN_TOOLS
    has_place = FIRST in prompt[0]
    as_text = _after_question(source, _replied(asked, CALLS[:1], CALLS[1:]).user(NEXT_QUESTION), takes_text=True)
    takes_text = as_text is not None and all(result in as_text[1].partition(ANSWER)[2] for result in RESULTS)
    before = as_text[1].partition(ANSWER)[0] if as_text and takes_text else prompt[1]
    for calls, text_arguments in product((CALLS, CALLS[:1]), (False, True)):
        written = _after_question(source, _replied(asked, calls), text_arguments)
        if written and all(call.name in written[1] and call.result in written[1] for call in calls):
            rest = written[1][len(_whole_markers(shared_start(written[1], before))) :]
            learned = _known_syntax(source) or _learn(_without_reasoning(rest.partition(RESULTS[0])[0]))
            several = len(calls) > 1
            return ToolFormat(has_place, takes_text, True, several, text_arguments, *learned)
    return ToolFormat(has_place, takes_text, False, False, False, *_known_syntax(source))


def _replied(asked: Conversation, *rounds: ToolCalls) -> Conversation:
    return asked.add(Message("assistant", NEXT_ANSWER, rounds=tuple(Round(calls, ANSWER) for calls in rounds)))


def _after_question(
    source: str, conversation: Conversation, text_arguments: bool = False, takes_text: bool = False
) -> tuple[str, str] | None:
    """A prompt with the probing functions, before and after the question; None if the template fails.

    If rounds of calls come last, their reply has not come to its end.
    """
    messages = tool_messages(conversation, text_arguments)
    if conversation.messages[-1].rounds:
        messages.pop()
    for message in messages:
        if takes_text:
            message.pop("tool_calls", None)
        elif "tool_calls" in message:
            message["content"] = ""
    prompt = try_render(source, messages, **tool_variables(PROBES))
    if prompt is None or QUESTION not in prompt:
        return None
    before, _, after = prompt.partition(QUESTION)
    return before, after


def _without_reasoning(written: str) -> str:
    """What a template has written after the markup of reasoning."""
    for found in reversed([*re.finditer(TAG, written[: written.find(FIRST)])]):
        return written[found.end() :]
    return written


def shared_start(first: str, second: str) -> str:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return first[:index]
    return min(first, second, key=len)


def shared_end(first: str, second: str) -> str:
    return shared_start(first[::-1], second[::-1])[::-1]


def _whole_markers(text: str) -> str:
    """A text without the beginning of a marker at its end."""
    start = text.rfind("<")
    if start > text.rfind(">"):
        return text[:start]
    return text


Learned = tuple[Finder, str, Texts, bool]  # the last fields of a ToolFormat


def _known_syntax(source: str) -> Learned | tuple[()]:
    """The syntax of a few models whose templates do not show it, or whose values are not JSON."""
    if "<|channel|>commentary to=functions." in source:
        header = r"to=functions\.(?P<name>[\w.-]+)[^{]*?<\|message\|>(?=\s*\{)"
        return partial(_named, re.compile(header), json_arguments), "", (), True
    if "<|tool_call>call:" in source:
        markers = ("<|tool_call>", "<tool_call|>", '<|"|>')
        header = r"<\|tool_call>\s*call:(?P<name>[\w.-]+)(?=\{)"
        return partial(_named, re.compile(header), _gemma_arguments), markers[0], markers, False
    if "<|tool_call_start|>" in source:
        opening = "<|tool_call_start|>"
        return partial(_python_calls, opening), opening, (opening, "<|tool_call_end|>"), False
    return ()


def _learn(written: str) -> Learned | tuple[()]:
    """The syntax of calls that a template has written."""
    name = written.rfind(FIRST, 0, written.find(KEY))
    markers = tuple(dict.fromkeys(MARKER.findall(written)))
    for start in (found.start() for found in re.finditer(r"[\[{]", written[:name])):
        if _json_calls_at(written, start, PROBES):
            opening = written[:start].strip()
            return partial(_json_after, opening), opening, markers, False
    named = _learn_named(written, name)
    if named is None:
        return ()
    first = MARKER.match(written[:name].strip())
    in_headers = bool(HEADERS.keys() & markers) or "to=" in written[:name]
    return named, first[0] if first else "", markers, in_headers


def _learn_named(written: str, name: int) -> Finder | None:
    """The syntax of calls whose name is followed by the arguments."""
    after_name = name + len(FIRST)
    start = written.find("{", after_name)
    if start >= 0:
        try:
            arguments, end = json_arguments(written, start)
        except ValueError:
            arguments, end = {}, 0
        if arguments == CALLS[0].arguments:
            before = _before_name(written, name, end)
            header = rf"{before}{NAME}\s*{_pattern(written[after_name:start])}(?=\s*\{{)"
            return partial(_named, re.compile(header), json_arguments)
    return _learn_pairs(written, name)


def _before_name(written: str, name: int, end: int) -> str:
    """A pattern of what precedes the name of each call; `end` is where the arguments of the first one end."""
    before = written[:name]
    second = written.rfind(SECOND, end, written.find(THIRD_KEY))
    gap = before if second < 0 else written[end:second]
    shared = shared_end(before, gap)
    start = max(0, shared.find("<"))
    if shared.strip():
        return _pattern(shared[start:])
    return rf"(?:(?m:^)[ \t]*|{_pattern(gap)})"


def _learn_pairs(written: str, name: int) -> Finder | None:
    """The syntax of calls whose arguments are pairs of a key and a text."""
    places = [written.find(text, name) for text in (FIRST, KEY, TEXT, OTHER_KEY, str(NUMBER))]
    if -1 in places or places != sorted(places):
        return None
    before_key, between, after_text, between_number = (
        written[start + len(text) : end]
        for text, start, end in zip((FIRST, KEY, TEXT, OTHER_KEY), places, places[1:], strict=False)
    )
    rest = written[places[-1] + len(str(NUMBER)) :]
    after_value = _whole_markers(shared_start(after_text.replace(KEY, "\0"), rest.replace(OTHER_KEY, "\0")))
    key_opening = after_text.replace(KEY, "\0")[len(after_value) :]
    if not after_value.strip() or not before_key.endswith(key_opening):
        return None
    before = _before_name(written, name, len(written) - len(rest))
    ends = MARKER.match(rest.replace(OTHER_KEY, "\0")[len(after_value) :].strip())
    followed = _pattern(key_opening) + (f"|{re.escape(ends[0])}" if ends else r"|\Z")
    header = rf"{before}{NAME}\s*{_pattern(before_key.removesuffix(key_opening))}(?=\s*(?:{followed}))"
    shared = shared_start(between, between_number)
    middle = _edge(shared)
    if between != between_number:
        end = shared_end(between, between_number)
        middle = _pattern(shared) + "[^>]*?" + _edge(end)
    value_end = _edge(after_value).replace("\0", "(?P=key)")
    pair = rf"\s*{_pattern(key_opening)}(?P<key>[^<>\s\"]+?){middle}(?P<value>.*?){value_end}"
    return partial(_named, re.compile(header), partial(_pairs, re.compile(pair, re.DOTALL)))


def _pattern(literal: str) -> str:
    """A regular expression of a literal: white space may differ, and so may ids and numbers."""
    pieces = [re.escape(CALL_ID.sub("\1", piece)) for piece in literal.split()]
    text = r"\s*".join(pieces)
    return re.sub(r"\d+", r"\\d+", text).replace("\\\1", "\1").replace("\1", r"[\w:.-]*")


def _edge(literal: str) -> str:
    """A regular expression of a literal beside a value: only its own white space is not the value's."""
    return "".join(f"{re.escape(character)}{'?' * character.isspace()}" for character in literal)


# Reading.


def _json_after(opening: str, text: str, tools: ToolSpecs) -> Iterator[Found]:
    """Calls as JSON objects, or lists of them, after a marker."""
    header = re.compile(_pattern(opening) + r"\s*(?=[\[{])")
    for found in header.finditer(text) if opening else ():
        end = found.end()
        while decoded := _json_calls_at(text, end, tools):
            calls, end = decoded
            for call in calls:
                yield Found(found.start(), end, call)


def _named(header: re.Pattern[str], arguments: Arguments, text: str, tools: ToolSpecs) -> Iterator[Found]:  # noqa: ARG001
    for found in header.finditer(text):
        try:
            values, end = arguments(text, found.end())
        except (ValueError, RecursionError):
            continue
        yield Found(found.start(), end, ToolCall(found["name"].removeprefix("functions."), values))


def json_arguments(text: str, start: int) -> tuple[JsonObject, int]:
    value, end = _decode(text, start)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value, end


def _decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at a place, after white space, and where it ends. Raises ValueError."""
    while text[start : start + 1].isspace():
        start += 1
    return _decoder.raw_decode(text, start)


def _pairs(pair: re.Pattern[str], text: str, start: int) -> tuple[JsonObject, int]:
    values = {}
    while found := pair.match(text, start):
        value = found["value"]
        if value.startswith("<![CDATA["):
            value = value[len("<![CDATA[") :].removesuffix("]]>")
        values[found["key"]] = value
        start = found.end()
    return values, start


def _gemma_arguments(text: str, start: int) -> tuple[JsonObject, int]:
    """Arguments as Gemma 4 writes them: keys without quotes, texts between `<|"|>`."""
    pieces = text[start:].split('<|"|>')
    parts = []
    for number, piece in enumerate(pieces):
        if number % 2:
            parts.append(json.dumps(piece))
        else:
            piece = re.sub(r"\bNone\b", "null", piece)
            parts.append(re.sub(r"([{,]\s*)([\w.-]+)\s*:", r'\1"\2":', piece))
    value, _ = json_arguments("".join(parts), 0)
    end = text.find("<tool_call|>", start)
    return value, len(text) if end < 0 else end


def _python_calls(opening: str, text: str, tools: ToolSpecs) -> Iterator[Found]:
    """Calls as a Python list of calls with literal keyword arguments, or as JSON, after a marker."""
    yield from _json_after(opening, text, tools)
    for found in re.finditer(re.escape(opening), text):
        listed = text[found.end() :].partition("<|tool_call_end|>")[0]
        for call in python_calls(listed):
            yield Found(found.start(), found.end() + len(listed), call)


def python_calls(text: str) -> list[ToolCall]:
    """The calls in a Python list such as `[weather(city="Oslo")]`; empty for anything else."""
    if not PYTHON_START.match(text.strip()):
        return []
    try:
        listed = ast.parse(text.strip(), mode="eval").body
        return [_python_call(item) for item in getattr(listed, "elts", ())]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _python_call(node: ast.expr) -> ToolCall:
    match node:
        case ast.Call(func=func, args=[], keywords=keywords):
            return ToolCall(ast.unparse(func), {str(item.arg): ast.literal_eval(item.value) for item in keywords})
    raise ValueError("no call with keyword arguments")


def bare_calls(text: str, tools: ToolSpecs) -> Iterator[Found]:
    """Calls of known functions that begin a line, or a fence, and whose arguments fit: JSON, or a list as in Python."""
    known = {tool.name: tool for tool in tools}
    at = 0
    while start := JSON_START.search(text, at):
        at = start.end() + 1
        line_end = text.find("\n", start.end()) % (len(text) + 1)
        decoded = _json_calls_at(text, start.end(), tools)
        calls, end = decoded or (python_calls(text[start.end() : line_end]), line_end)
        if calls and all(call.name in known and fits(known[call.name], call.arguments) for call in calls):
            fence = re.compile(r"\s*```").match(text, end) if start["fence"] else None
            at = fence.end() if fence else end
            for call in calls:
                yield Found(start.start(), at, call)


def fits(tool: ToolSpec, arguments: JsonObject) -> bool:
    """Whether all arguments are known, and none that is required is missing."""
    properties = tool.parameters.get("properties", {})
    required = set(tool.parameters.get("required", ()))
    return required <= arguments.keys() and arguments.keys() <= properties.keys()


def _json_calls_at(text: str, start: int, tools: ToolSpecs = ()) -> tuple[list[ToolCall], int] | None:
    """The calls in the JSON value at a place, and where it ends; None if it is anything else."""
    try:
        value, end = _decode(text, start)
        items = value if isinstance(value, list) else [value]
        calls = [_call_of(item, {tool.name for tool in tools}) for item in items]
    except (ValueError, RecursionError):
        return None
    return (calls, end) if calls else None


def _call_of(item: Any, names: set[str]) -> ToolCall:
    """A call as a JSON object: its name and arguments under keys of their own, or `{name: arguments}`."""
    if not isinstance(item, dict):
        raise ValueError("no object")
    if isinstance(item.get("function"), dict):
        item = item["function"]
    name = _first(item, NAME_KEYS)
    arguments = _first(item, ARGUMENT_KEYS)
    if name is None and len(item) == 1:
        [(name, arguments)] = item.items()
        if name not in names:
            raise ValueError("no name")
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("no call")
    return ToolCall(name, arguments)


def _first(item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if key in item), None)
