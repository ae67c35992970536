"""How a prompt format supports functions, and the reader of the calls in replies. Pure.

A call in the model's own syntax counts anywhere in an answer. If there is none, JSON or a Python list of calls
counts if it begins a line or a fence, names a known function, and its arguments fit. Calls as Python without a list
count if they are the whole reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from string import ascii_letters, digits

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import Match, Texts, partial_marker_length
from cerebrum_cli.core.tools import ToolCalls, ToolSpec, ToolSpecs, read_call
from cerebrum_cli.formats.call_readers import (
    BARE_START,
    QUOTED,
    WHOLE_PYTHON,
    Finder,
    Found,
    after_separator,
    bracket_end,
    calls_at,
    decode,
    no_calls,
    python_calls_at,
)
from cerebrum_cli.formats.failed_calls import failed_calls, failed_header

PYTHON_BEGUN = re.compile(r"(?s)\[\s*((?P<name>[A-Za-z_][\w.]*)(?P<arguments>\(\s*(\).*|[A-Za-z_]\w*(\s*=.*)?)?)?)?\Z")
WORD = f"{ascii_letters}{digits}+-.\\"  # characters of numbers, words and escapes in JSON, which may be incomplete
FENCE_START = re.compile(r"```[\w-]*\s*")
FENCE_END = re.compile(r"\s*```")


@frozen
class ToolFormat:
    """How a format supports functions, and how its model calls them.

    - `has_place`: the prompt shows the functions to the model
    - `takes_text`: rounds can be given as they were written, before their results
    - `writes_calls`: it writes calls with names and arguments, which are JSON text with `text_arguments`; only one call
      at a time unless it `writes_several`
    - `moves_text`: it writes the text of a round after the results, where its reply would end
    - `find`: finds calls in its own syntax
    - `openings`: the texts that its calls begin with; none if they are JSON alone
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
    openings: Texts = ()
    markers: Texts = ()
    in_headers: bool = False

    def read(self, text: str, tools: ToolSpecs) -> tuple[ToolCalls, bool]:
        """The calls in a text, in order, and whether they are in the model's own syntax."""
        found, are_own = self._find(text, tools)
        calls = [call for part in found for call in part.calls]
        return tuple(read_call(call.name, call.arguments) for call in calls), are_own

    def text_beside(self, text: str, start: int, tools: ToolSpecs) -> str:
        """A text with calls from a place on, without them and their markup."""
        found, _ = self._find(text, tools)
        starts = [start, *(part.end for part in found)]
        ends = [*(part.start for part in found), len(text)]
        pieces = [text[begin:end] for begin, end in zip(starts, ends, strict=True)]
        for marker in sorted(self.markers, key=len, reverse=True):
            pieces = [piece.replace(marker, "") for piece in pieces]
        return "\n".join(filter(None, (piece.strip(" \t\n;,") for piece in pieces)))

    def split_at_calls(self, reasoning: str, tools: ToolSpecs) -> tuple[str, ToolCalls]:
        """Reasoning without the calls in the model's own syntax that it ends with, and these; none if text follows."""
        found = list(self.find(reasoning, tools))
        if not found or self.text_beside(reasoning, found[0].start, tools):
            return reasoning, ()
        return reasoning[: found[0].start].rstrip(), self.read(reasoning, tools)[0]

    def failed(self, text: str, answer: str, tools: ToolSpecs) -> Found | None:
        """Calls in a text without calls that were meant as such; places are those in its answer."""
        header = failed_header(text, answer, tools) if self.in_headers else None
        return header or failed_calls(answer, self.openings, tools)

    def _find(self, text: str, tools: ToolSpecs) -> tuple[list[Found], bool]:
        own = list(self.find(text, tools))
        return own or list(bare_calls(text, tools)), bool(own)

    def filter(self, tools: ToolSpecs) -> CallFilter:
        """What passes on an answer without calls."""
        return CallFilter(self.openings, tools)


PLAIN_TOOLS = ToolFormat()  # of formats that do not support functions


def bare_calls(text: str, tools: ToolSpecs) -> Iterator[Found]:
    """Calls of known functions without markup."""
    known = {tool.name: tool for tool in tools}
    if whole := whole_python(text, known):
        yield whole
        return
    at = 0
    while begun := BARE_START.search(text, at):
        start, place = begun.span()
        calls, at = _calls_or_python(text, place, tools)
        while calls and all(call.name in known and fits(known[call.name], call.arguments) for call in calls):
            closing = FENCE_END.match(text, at)
            if begun["fence"] and closing:
                at = closing.end()
            yield Found(calls, start, at)
            start = after_separator(text, at)
            calls, end = _calls_or_python(text, start, tools)
            at = end if calls else at


def whole_python(text: str, names: Collection[str]) -> Found | None:
    """The calls of known functions in a text that is nothing but calls as Python."""
    found: ToolCalls = ()
    at = 0
    while begun := WHOLE_PYTHON.match(text, at):
        calls, at = python_calls_at(text, begun.start("name"))
        if not calls or begun["name"] not in names:
            return None
        found += calls
        at = after_separator(text, at)
    return Found(found, 0, len(text)) if found and text[at:].strip() in ("", "```") else None


def _calls_or_python(text: str, start: int, tools: ToolSpecs) -> tuple[ToolCalls, int]:
    calls, end = calls_at(text, start, tools)
    if not calls and text.startswith("[", start):
        return python_calls_at(text, start)
    return calls, end


def fits(tool: ToolSpec, arguments: JsonObject) -> bool:
    """Whether all arguments are known, and none that is required is missing."""
    required = set(tool.parameters.get("required", ()))
    return required <= arguments.keys() and arguments.keys() <= tool.parameters.get("properties", {}).keys()


class CallFilter:
    """Passes on an answer that arrives in pieces, up to text that may be a function call."""

    def __init__(self, openings: Texts, tools: ToolSpecs) -> None:
        self._openings = openings
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
        while line < len(text) and not self._may_be_call(text[line:].lstrip(" \t"), self._is_blank_before(line)):
            line = text.find("\n", line) + 1 or len(text)
        opened = [text.index(opening) for opening in self._openings if opening in text]
        return min(line, len(text) - partial_marker_length(text, self._openings), *opened)

    def _is_blank_before(self, line: int) -> bool:
        return not (self.shown + self.held[:line]).strip()

    def _may_be_call(self, line: str, is_whole_reply: bool) -> bool:
        """Whether the beginning of a line is a call without markup, or may become one."""
        if "```".startswith(line) or FENCE_START.fullmatch(line):
            return True
        body = FENCE_START.sub("", line, 1) if line.startswith("```") else line
        if is_whole_reply and self._may_be_only_python(body):
            return True
        if begun := PYTHON_BEGUN.match(body):
            return self._may_be_python(begun, is_whole_reply)
        if not body.startswith(("[", "{")):
            return False
        try:
            decode(body, 0)
        except json.JSONDecodeError as error:
            if error.pos >= len(body.rstrip().rstrip(WORD)) or error.msg.startswith("Unterminated"):
                return True
        except RecursionError:
            return False
        return self._is_call(line, is_whole_reply)

    def _is_call(self, line: str, is_whole_reply: bool) -> bool:
        return any(bare_calls(line, self._tools)) or bool(failed_calls(line, (), self._tools, is_whole_reply))

    def _may_be_only_python(self, text: str) -> bool:
        """Whether a text is nothing but calls of known functions as Python, or may become that."""
        begun = WHOLE_PYTHON.match(text)
        if begun is None:
            return any(tool.name.startswith(text) for tool in self._tools)
        if begun["name"] not in [tool.name for tool in self._tools]:
            return False
        try:
            end = after_separator(text, bracket_end(text, begun.end() - 1, QUOTED))
        except ValueError:
            return True
        return "```".startswith(text[end:].rstrip()) or self._may_be_only_python(text[end:])

    def _may_be_python(self, begun: Match, is_whole_reply: bool) -> bool:
        """Whether a Python list that has begun may be one of calls."""
        names = [tool.name for tool in self._tools]
        if not begun["arguments"]:
            return any(name.startswith(begun["name"] or "") for name in names)
        try:
            bracket_end(begun[0], 0, QUOTED)
        except ValueError:
            return begun["name"] in names
        return self._is_call(begun[0], is_whole_reply)
