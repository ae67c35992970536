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

from cerebrum_cli.core.conversation import Conversation, Message, wire_message
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.tools import Round, ToolCall, ToolCalls, ToolSpec
from cerebrum_cli.formats.markup import HEADERS, TAG
from cerebrum_cli.formats.template_sandbox import ANSWER, NEXT_QUESTION, QUESTION, try_render
from cerebrum_cli.formats.tool_calls import (
    DECODER,
    MARKER,
    PLAIN_TOOLS,
    CallSyntax,
    Syntaxes,
    ToolFormat,
    find_calls,
    json_calls_at,
)
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
    """What a template has written for calls, without the text `before` them, reasoning and their results."""
    rest = written[len(_whole_markers(shared_start(written, before))) :].partition(RESULTS[0])[0]
    reasoning = [*re.finditer(TAG, rest[: rest.find(FIRST)])]
    return rest[reasoning[-1].end() :] if reasoning else rest


def shared_start(first: str, second: str) -> str:
    while not second.startswith(first):
        first = first[:-1]
    return first


def _whole_markers(text: str) -> str:
    """A text without an incomplete marker at its end."""
    start = text.rfind("<")
    return text[:start] if start > text.rfind(">") else text


def learn(written: str) -> Syntaxes:
    """The syntax of the calls that a template has written; none if they are JSON without markup, or unknown."""
    written = re.sub(r"call0000\d", "$id", written)
    name = written.rfind(FIRST, 0, written.find(KEY))
    before, after = written[:name], written[name + len(FIRST) :]
    others = tuple(dict.fromkeys(re.findall(MARKER, written)))
    for bracket in re.finditer(r"[\[{]", before):
        with suppress(ValueError):
            json_calls_at(written, bracket.start(), (FIRST, SECOND))
            opening = written[: bracket.start()].strip()
            return (CallSyntax(f"{opening}$calls", others=others),) if opening else ()
    syntax = _with_json(after) or _with_bare_keys(after) or _with_pairs(after)
    if syntax is None:
        return ()
    section = re.match(MARKER, before.strip())
    mark = re.search(r"(?:<[^<]*\$id)?<[^<]*\Z", before)
    return (
        replace(
            syntax,
            call=f"{mark[0] if mark else before}$name{syntax.call}",
            section=section[0] if section else "",
            others=others,
            in_headers=not HEADERS.keys().isdisjoint(others),
        ),
    )


# Calls with a name, by what a template has written after it.


def _with_json(after: str) -> CallSyntax | None:
    start = after.find("{")
    with suppress(ValueError):
        arguments, end = DECODER.raw_decode(after, start)
        if arguments == CALLS[0].arguments:
            return CallSyntax(f"{after[:start]}$json{_marker_at(after[end:])}")
    return None


def _with_bare_keys(after: str) -> CallSyntax | None:
    found = re.match(rf"\{{{KEY}:(?P<quote>\S+?){TEXT}(?P=quote),{OTHER_KEY}:{NUMBER}\}}(?P<rest>.*)", after, re.DOTALL)
    return CallSyntax(f"$bare{_marker_at(found['rest'])}", quote=found["quote"]) if found else None


def _with_pairs(after: str) -> CallSyntax | None:
    """Both values are followed by the end of a pair, and the first one then by the beginning of the second."""
    before_key, _, rest = after.partition(KEY)
    before_text, _, rest = rest.partition(TEXT)
    after_text, _, rest = rest.partition(OTHER_KEY)
    before_number, _, after_number = rest.partition(str(NUMBER))
    after_text, after_number = after_text.replace(KEY, "$key"), after_number.replace(OTHER_KEY, "$key")
    value_end = _whole_markers(shared_start(after_text, after_number))
    key_opening = after_text.removeprefix(value_end)
    if not value_end.strip() or not before_key.endswith(key_opening):
        return None
    before_value = before_text
    if before_text != before_number:  # it names the type of the value
        end = shared_start(before_text[::-1], before_number[::-1])[::-1]
        before_value = f"{shared_start(before_text, before_number)}$any{end}"
    closing = _marker_at(after_number.removeprefix(value_end))
    return CallSyntax(
        f"{before_key.removesuffix(key_opening)}$pairs{closing}", f"{key_opening}$key{before_value}$value{value_end}"
    )


def _marker_at(text: str) -> str:
    """The marker that a text begins with, if any."""
    found = re.match(MARKER, text.lstrip())
    return found[0] if found else ""
