"""How a model writes function calls, learned by rendering its chat template.

The template renders a conversation in which a reply calls functions with known names and arguments; the text that it
puts around them is the syntax.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import product
from operator import attrgetter

from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.messages import wire_message
from cerebrum_cli.core.tools import Round, ToolCall, ToolCalls, ToolSpec
from cerebrum_cli.formats.call_readers import NAME, CallSyntax, Syntaxes, decode, find_calls, json_calls_at
from cerebrum_cli.formats.markers import HEADERS, TAG
from cerebrum_cli.formats.template_sandbox import ANSWER, NEXT_QUESTION, QUESTION, try_render
from cerebrum_cli.formats.tool_calls import PLAIN_TOOLS, ToolFormat
from cerebrum_cli.formats.tool_families import family_of

# Names, texts and numbers in the calls that a template renders, with digits, which no template changes.
FIRST, SECOND, RESULTS, NEXT_ANSWER = "fn1234", "fn2345", ("1457890", "1678901"), "1789012"
KEY, OTHER_KEY, THIRD_KEY = "key3456", "key4567", "key5678"
TEXT, NUMBER, OTHER_TEXT = "6789012", 7890123, "8901234"
_PARAMETER = {"type": "string", "description": "a text"}
_PARAMETERS = {"type": "object", "properties": dict.fromkeys((KEY, OTHER_KEY, THIRD_KEY), _PARAMETER)}
PROBES = tuple(ToolSpec(name, "does something", _PARAMETERS) for name in (FIRST, SECOND))
CALLS = (
    ToolCall(FIRST, {KEY: TEXT, OTHER_KEY: NUMBER}, RESULTS[0]),
    ToolCall(SECOND, {THIRD_KEY: OTHER_TEXT}, RESULTS[1]),
)
ASKED = Conversation().user(QUESTION)
TOOL_VARIABLES = ("tools", "xml_tools")  # of templates; SmolLM3 has the latter
CALL_ID = re.compile(r"call0000\d")
MARKER = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]|\]<\]\w+\[>\[")
PAIRS = re.compile(  # the first call; a template may repeat anything, so atomic groups prevent backtracking
    f"(?s){FIRST}(?>(.*?){KEY})(?>(.*?){TEXT})(?>(.*?){OTHER_KEY})(?>(.*?){NUMBER})(.*)"
)
BARE_KEYS = re.compile(
    rf"{FIRST}\{{{KEY}:(?P<quote>\S+?){TEXT}(?P=quote),{OTHER_KEY}:{NUMBER}\}}(?P<closing>{MARKER.pattern})"
)


def tool_variables(tools: Sequence[JsonDict]) -> JsonDict:
    """The variables of a template for functions as OpenAI describes them."""
    return dict.fromkeys(TOOL_VARIABLES, tools) if tools else {}


@cache
def find_tool_format(source: str) -> ToolFormat:
    """Find out how a template supports functions, by rendering small conversations."""
    family = family_of(source)
    known = family.syntaxes if family else ()
    prompt = _after_question(source, ASKED.openai_messages)
    if prompt is None:
        return replace(PLAIN_TOOLS, syntaxes=known)
    shown, before = prompt
    takes_text = False
    if as_text := _after_question(source, _with_rounds_as_text()):
        preceding, _, following = as_text[1].partition(ANSWER)
        takes_text = all(result in following for result in RESULTS)
        if takes_text:
            before = preceding
    return replace(_call_format(source, before, known), has_place=FIRST in shown, takes_text=takes_text)


def _call_format(source: str, before: str, known: Syntaxes) -> ToolFormat:
    """The format of a template's calls; `before` is the text before them in a prompt, `known` what its family writes.

    A model may have the markup of a family and another syntax, which is then learned.
    """
    for calls, text_arguments in product((CALLS, CALLS[:1]), (False, True)):
        written = _after_question(source, _with_calls(calls, "", text_arguments))
        if written and all(call.name in written[1] and call.result in written[1] for call in calls):
            syntaxes = known if _reads(known, calls, written[1]) else learn(_first_calls(written[1], before))
            with_text = _after_question(source, _with_calls(calls, ANSWER, text_arguments))
            return ToolFormat(
                writes_calls=True,
                writes_several=len(calls) > 1,
                text_arguments=text_arguments,
                moves_text=with_text is not None and ANSWER in with_text[1].rpartition(calls[-1].result)[2],
                syntaxes=syntaxes,
            )
    return replace(PLAIN_TOOLS, syntaxes=known)


def _reads(syntaxes: Syntaxes, calls: ToolCalls, written: str) -> bool:
    """Whether calls are read as a template writes them."""
    found = find_calls(written, syntaxes, PROBES)
    return [call.name for each in found for call in each.calls] == [call.name for call in calls]


def _with_calls(calls: ToolCalls, text: str, text_arguments: bool) -> list[JsonDict]:
    """Messages that end with the results of calls, which have a text before them; the reply is to follow."""
    write = wire_message if text_arguments else attrgetter("openai")
    conversation = ASKED.add(Message("assistant", "", rounds=(Round(calls, text),)))
    *messages, _ = map(write, conversation.turns)
    return messages


def _with_rounds_as_text() -> list[JsonDict]:
    """Messages of a reply with two rounds, as it was written, before the next question."""
    rounds = (Round(CALLS[:1], ANSWER), Round(CALLS[1:], ANSWER))
    conversation = ASKED.add(Message("assistant", NEXT_ANSWER, rounds=rounds)).user(NEXT_QUESTION)
    messages = conversation.openai_messages
    for message in messages:
        message.pop("tool_calls", None)
    return messages


def _after_question(source: str, messages: Sequence[JsonDict]) -> tuple[str, str] | None:
    """A prompt with the probing functions, before and after the question; None if the template fails."""
    prompt = try_render(source, messages, **tool_variables([tool.openai for tool in PROBES]))
    if prompt is None or QUESTION not in prompt:
        return None
    before, _, after = prompt.partition(QUESTION)
    return before, after


def _first_calls(written: str, before: str) -> str:
    """What a template has written for calls, without the text `before` them and their results."""
    rest = written[len(_whole_markers(shared_start(written, before))) :]
    return _without_reasoning(rest.partition(RESULTS[0])[0])


def _without_reasoning(written: str) -> str:
    """What a template has written after the markup of reasoning."""
    for found in reversed([*re.finditer(TAG, written[: written.find(FIRST)])]):
        return written[found.end() :]
    return written


def shared_start(first: str, second: str) -> str:
    while not second.startswith(first):
        first = first[:-1]
    return first


def shared_end(first: str, second: str) -> str:
    return shared_start(first[::-1], second[::-1])[::-1]


def _whole_markers(text: str) -> str:
    """A text without an incomplete marker at its end."""
    start = text.rfind("<")
    if start > text.rfind(">"):
        return text[:start]
    return text


def learn(written: str) -> Syntaxes:
    """The syntax of the calls that a template has written; none if they are JSON without markup, or unknown."""
    name = written.rfind(FIRST, 0, written.find(KEY))
    before = written[:name]
    markers = tuple(dict.fromkeys(MARKER.findall(written)))
    for bracket in re.finditer(r"[\[{]", before):
        with suppress(ValueError):
            json_calls_at(written, bracket.start(), (FIRST, SECOND))
            opening = written[: bracket.start()].strip()
            header = re.compile(_pattern(opening) + r"\s*(?=[\[{])")
            return (CallSyntax(header, openings=(opening,), markers=markers),) if opening else ()
    syntax = _json_arguments(written, name) or _bare_keys(written, name) or _pairs(written, name)
    if syntax is None:
        return ()
    first = MARKER.match(before.strip())
    opening = first[0] if first else before.strip()
    in_headers = bool(HEADERS.keys() & markers) or "to=" in before
    return (replace(syntax, openings=(opening,) if opening else (), markers=markers, in_headers=in_headers),)


# Calls with a name, and arguments behind it.


def _json_arguments(written: str, name: int) -> CallSyntax | None:
    after_name = name + len(FIRST)
    start = written.find("{", after_name)
    with suppress(ValueError):
        arguments, end = decode(written, start)
        if arguments == CALLS[0].arguments:
            header = f"{_before_name(written, name, end)}{NAME}\\s*{_pattern(written[after_name:start])}"
            return CallSyntax(re.compile(rf"{header}(?=\s*\{{)"), "JSON")
    return None


def _bare_keys(written: str, name: int) -> CallSyntax | None:
    found = BARE_KEYS.match(written, name)
    if found is None:
        return None
    header = re.compile(rf"{_before_name(written, name, found.end())}{NAME}\s*(?=\{{)")
    return CallSyntax(header, "bare keys", quote=found["quote"], closing=found["closing"])


def _pairs(written: str, name: int) -> CallSyntax | None:
    found = PAIRS.match(written, name)
    if found is None:
        return None
    before_key, between, after_text, between_number, after_number = found.groups()
    after_text, after_number = after_text.replace(KEY, "\0"), after_number.replace(OTHER_KEY, "\0")
    after_value = _whole_markers(shared_start(after_text, after_number))
    key_opening = after_text[len(after_value) :]
    if not after_value.strip() or not before_key.endswith(key_opening):
        return None
    closing = MARKER.match(after_number[len(after_value) :].strip())
    end = re.escape(closing[0]) if closing else r"\Z"
    followed = rf"(?=\s*(?:{_pattern(key_opening)}|{end}))"
    before_pairs = _pattern(before_key.removesuffix(key_opening))
    header = f"{_before_name(written, name, found.start(5))}{NAME}\\s*{before_pairs}{followed}"
    before_value = _before_value(between, between_number)
    value_end = _edge(after_value).replace("\0", "(?P=key)")
    pair = rf"(?s)\s*{_pattern(key_opening)}(?P<key>[^<>\s\"]+?){before_value}(?P<value>.*?){value_end}{followed}"
    return CallSyntax(re.compile(header), "pairs", pairs=(re.compile(pair),))


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


def _before_value(text: str, number: str) -> str:
    """A pattern of what is between a key and its value, from what precedes a text and a number."""
    shared = shared_start(text, number)
    if text == number:
        return _edge(shared)
    return _pattern(shared) + "[^>]*?" + _edge(shared_end(text, number))


def _pattern(literal: str) -> str:
    """A regular expression of a literal: white space may differ, and so may ids and numbers."""
    pieces = [re.escape(CALL_ID.sub("\1", piece)) for piece in literal.split()]
    text = r"\s*".join(pieces)
    return re.sub(r"\d+", r"\\d+", text).replace("\\\1", "\1").replace("\1", r"[\w:.-]*")


def _edge(literal: str) -> str:
    """A regular expression of a literal beside a value: only its own white space is not the value's."""
    text = "".join(f"{re.escape(character)}{'?' * character.isspace()}" for character in literal)
    return text.replace("><", r">\s*<")
