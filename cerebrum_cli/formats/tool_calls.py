"""How a prompt format supports functions, and the reader of the calls in replies. Pure.

A call in the model's own syntax counts anywhere in an answer. If there is none, JSON counts that begins a line or a
fence: calls of known functions, one after the other or in a list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts, partial_marker_length
from cerebrum_cli.core.tools import ToolCalls, ToolSpecs, read_call
from cerebrum_cli.formats.call_readers import (
    SEPARATORS,
    CallSyntax,
    Found,
    Syntaxes,
    find_calls,
    header_pattern,
    json_calls_at,
)

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
