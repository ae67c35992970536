"""Text that was meant as a function call and is none: it does not parse, or it names no function. Pure.

A user may ask for JSON, so only what can hardly be anything else is a failed call:

- The model's own markup at the beginning of a line, outside of fences.
- At the beginning of a line or a fence, a Python list, or JSON with the keys of a call, that names a known function.
- A known function with arguments in parentheses that is the whole reply.
- JSON with the keys of a call and no others, which names an unknown function or none, and ends the reply. In a fence,
  it must be the whole reply: after an explanation, it may be an example.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

from cerebrum_cli.core.text import Texts
from cerebrum_cli.core.tools import ToolCall, ToolSpecs, read_call
from cerebrum_cli.formats.call_readers import (
    ARGUMENT_KEYS,
    BARE_START,
    NAME_KEYS,
    QUOTED,
    WHOLE_PYTHON,
    Found,
    after_separator,
    bracket_end,
    decode,
    first_value,
)

FENCE = re.compile(r"(?m)^[ \t]*```")
FENCE_END = re.compile(r"\s*`{0,3}\s*\Z")
PROSE = re.compile(r"`|[ \t]+\w+[ \t,.]")  # after markup that is only mentioned
_NAME_KEY = rf"""[\[{{\s]*\{{\s*["']?(?:{"|".join(NAME_KEYS)})["']?\s*:\s*["'](?P<name>[\w.-]+)["']"""
NAMED = re.compile(_NAME_KEY)
NAMED_CALL = re.compile(rf"""{_NAME_KEY}\s*,\s*["']?(?:arguments|parameters)["']?\s*:""")
LISTED = re.compile(r"\[\s*(?P<name>[A-Za-z_][\w.]*)\(")
LINK = re.compile(r"\[[^\]\n]*\]\(")  # in Markdown
KEYS_OF_CALLS = ({"name", "arguments"}, {"name", "parameters"}, {"arguments"})
EXTRA_KEYS = {"id", "type"}
IN_HEADERS = ("to=functions.", "<|tool_call:begin|>")  # what calls in headers of blocks begin with
NO_NAME = "unknown"  # of the function in a call without one, since templates write a name
SHOWN = 30  # characters of a text where it is wrong


def failed_calls(text: str, openings: Texts, tools: ToolSpecs, is_whole_reply: bool = True) -> Found | None:
    """The first failed calls in a reply without calls, whose markup has these openings; None without any.

    Calls that cannot be read have an error as their result. Others name an unknown function, or the arguments do not
    fit. The text is the rest of a reply, unless it `is_whole_reply`.
    """
    names = [tool.name for tool in tools]
    found = chain(_in_markup(text, openings, names), _in_text(text, names, is_whole_reply), _only_python(text, names))
    return min(found, key=lambda calls: calls.start, default=None)


def failed_header(text: str, answer: str, tools: ToolSpecs) -> Found | None:
    """A failed call in the header of a block, in a reply with all special tokens; its place is behind the answer."""
    names = [tool.name for tool in tools]
    starts = [text.index(opening) for opening in IN_HEADERS if opening in text]
    if not starts:
        return None
    calls, _, _ = _unread_markup(text, min(starts), names)
    return Found(calls, len(answer), len(answer))


def _in_markup(text: str, openings: Texts, names: Collection[str]) -> Iterator[Found]:
    for opening in openings:
        if opening.startswith("{"):  # no markup, but JSON
            continue
        for line in re.finditer(rf"(?m)^[ \t]*{re.escape(opening)}", text):
            is_in_fence = len(FENCE.findall(text, 0, line.start())) % 2 == 1
            if not is_in_fence and not PROSE.match(text, line.end()):
                yield _unread_markup(text, line.start(), names)


def _unread_markup(text: str, start: int, names: Collection[str]) -> Found:
    """A call in markup, which has the first name of a function in it."""
    written = text[start:]
    places = {name: written.find(name) for name in names if name in written}
    name = min(places, key=lambda known: places[known], default=NO_NAME)
    value = re.search(r"[\[{]", written)
    problem = _problem_at(written, value.start()) if value else "it has no name and arguments"
    return Found((_unread(name, problem, written),), start, len(text))


def _problem_at(text: str, start: int) -> str:
    """Why the value at a place in a text is no call."""
    try:
        value, _ = decode(text, start)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()):
            return "it ends too early"
        return f"{error.msg} at {text[error.pos :][:SHOWN]!r}"
    except (ValueError, RecursionError):
        return "it is too deep"
    if not isinstance(value, dict) or first_value(value, NAME_KEYS) is None:
        return "it has no name"
    return "it has no arguments"


def _in_text(text: str, names: Collection[str], is_whole_reply: bool) -> Iterator[Found]:
    at = 0
    while begun := BARE_START.search(text, at):
        start, place = begun.span()
        is_whole = is_whole_reply and not text[:start].strip()
        may_be_example = bool(begun["fence"]) and not is_whole
        try:
            values, at = _values_at(text, place)
        except (ValueError, RecursionError):
            at = place + 1
            if unread := _unread_at(text, place, names, may_be_example):
                yield Found((unread,), start, len(text))
            continue
        end = FENCE_END.match(text, at)
        may_be_unknown = end is not None and not may_be_example
        calls = [_call_of(value, names, may_be_unknown) for value in values]
        if calls and None not in calls:
            yield Found(tuple(filter(None, calls)), start, end.end() if end else at)


def _unread_at(text: str, start: int, names: Collection[str], may_be_example: bool) -> ToolCall | None:
    """The call that text at a place, which is no JSON, was meant as."""
    named = NAMED.match(text, start)
    if named and (named["name"] in names or (not may_be_example and NAMED_CALL.match(text, start))):
        return _unread(named["name"], _problem_at(text, start), text[start:])
    listed = LISTED.match(text, start)
    if listed and listed["name"] in names and not LINK.match(text, start):
        return _unread(listed["name"], "it is no list of calls with named arguments", text[start:])
    return None


def _only_python(text: str, names: Collection[str]) -> Iterator[Found]:
    """A reply that is a known function with arguments in parentheses, which are no call with named arguments."""
    begun = WHOLE_PYTHON.match(text)
    if begun is None or begun["name"] not in names:
        return
    with suppress(ValueError):
        end = bracket_end(text, begun.end() - 1, QUOTED)
        if FENCE_END.match(text, end):
            yield Found((_unread(begun["name"], "its arguments have no names, as in f(x=1)", text),), 0, len(text))


def _values_at(text: str, start: int) -> tuple[list[Any], int]:
    """The JSON values at a place, one after the other or in lists, and where they end. Raises ValueError."""
    values: list[Any] = []
    value, end = decode(text, start)
    while True:
        values += value if isinstance(value, list) else [value]
        following = after_separator(text, end)
        if text[following : following + 1] not in ("[", "{"):
            return values, end
        try:
            value, end = decode(text, following)
        except (ValueError, RecursionError):
            return values, end


def _call_of(item: Any, names: Collection[str], may_be_unknown: bool) -> ToolCall | None:
    """The call that an object was meant as; None for any other value."""
    if not isinstance(item, dict):
        return None
    if isinstance(item.get("function"), dict):
        item = item["function"]
    keys = item.keys() - EXTRA_KEYS
    name, arguments = first_value(item, NAME_KEYS), first_value(item, ARGUMENT_KEYS)
    written = json.dumps(item, ensure_ascii=False)
    if name in names:
        if not keys <= {*NAME_KEYS, *ARGUMENT_KEYS}:
            return None
        if isinstance(arguments, dict | str):
            return read_call(name, arguments)
        return _unread(name, "its arguments are no object" if arguments else "it has no arguments", written)
    if not may_be_unknown or keys not in KEYS_OF_CALLS or not isinstance(arguments, dict):
        return None
    if name:
        return read_call(str(name), arguments)
    return _unread(NO_NAME, "it has no name", written)


def _unread(name: str, problem: str, written: str) -> ToolCall:
    return ToolCall(name, {}, f"this call was not run, since {problem}:\n{written.strip()}")
