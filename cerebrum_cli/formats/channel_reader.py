"""The reader of replies in blocks whose headers name a channel, as of gpt-oss (Harmony), Gemma 4, Solar, Muse. Pure.

Blocks for the user are the answer; reasoning, and what is addressed to a function, is not.
"""

from __future__ import annotations

import re

from cerebrum_cli.core.events import Channel
from cerebrum_cli.core.text import Match
from cerebrum_cli.formats.markers import (
    ANSWERS,
    BLOCK_CLOSES,
    BLOCK_ENDS,
    CHANNEL_MARKUPS,
    HARMONY,
    HEADERS,
    MESSAGES,
    any_of,
)
from cerebrum_cli.formats.prompt_format import ReasoningMarkup
from cerebrum_cli.formats.tag_reader import ReaderEvents, TagReader, is_quoted

MAX_HEADER = 120  # characters
LINES = ("<|channel>", "<unused94>")  # begin a header that ends with its line
START = any_of(HEADERS.keys() - set(LINES))
END = any_of((*BLOCK_ENDS, *BLOCK_CLOSES))
BOUNDARY = any_of((*HEADERS, *BLOCK_ENDS, *BLOCK_CLOSES, "<|content|>", "<|think|>"))
# The first header of a reply may lack its first marker, and so may one behind the end of a block.
ROLES = ("assistant", "analysis", "commentary", "final", "user")
WORDS = rf"(?:{any_of(ROLES)})?(?:\s?to=[\w.]+)?\s?"
BLOCKS = rf"(?:(?:{START})[^<\n]*(?:<\|constrain\|>\w*)?)"
HEADER = (
    rf"(?P<text>{WORDS}{BLOCKS}*)\s*(?P<message>{any_of(MESSAGES)})|(?P<line>{any_of(LINES)})\s*+(?P<name>\w*+)(?=\W)"
)
PARTIAL_HEADER = rf"{WORDS}(?:to?=?)?{BLOCKS}*\s*(?:<\|?\w*\|?)?|(?:{any_of(LINES)})\s*\w*"

UNFINISHED = rf"(?:(?:{START})(?:{any_of(ROLES)})?)+|(?:{any_of(LINES)})\s*\w*"  # at the end of a reply


class ChannelReader(TagReader):
    """Reads blocks. Text without a header is the answer, or reasoning in tags. An answer may quote markers."""

    def _read_start(self, is_over: bool) -> ReaderEvents:
        text = self.held.lstrip()
        header, end = re.match(HEADER, text), re.match(END, text)
        if header:
            self.held = text[header.end() :]
            if channel_of(header) == "thinking":
                self.markup = markup_after(header[0])
            else:
                self._is_answer = True
            yield "markup", ""
        elif end:
            self.held = text[end.end() :]
            yield "markup", ""
        elif is_over or not may_become_header(text):
            yield from self._read_text(text, is_over)

    def _read_text(self, text: str, is_over: bool) -> ReaderEvents:
        """Read what has no header: a marker there is one that a sentence is about, or not complete at the end."""
        if is_over and re.fullmatch(UNFINISHED, text):
            self.held = ""
        elif marker := re.match(BOUNDARY, text):
            self._is_answer = True
            yield from self._pass_on("answer", len(self.held) - len(text) + marker.end())
        else:
            yield from super()._read_start(is_over)

    def _read_reasoning(self, markup: ReasoningMarkup, is_over: bool) -> ReaderEvents:
        if markup not in CHANNEL_MARKUPS:
            yield from super()._read_reasoning(markup, is_over)
        elif found := re.search(BOUNDARY, self.held):
            yield from self._pass_on("thinking", found.start())
            self.markup = None
        else:
            yield from self._pass_on_certain("thinking", is_over, BLOCK_CLOSES)

    def _read_answer(self, is_over: bool) -> ReaderEvents:
        for found in re.finditer(BOUNDARY, self.held):
            before = "".join(self._answer) + self.held[: found.start()]
            if not (is_quoted(before) or self._is_mentioned(found[0])):
                yield from self._pass_on("answer", found.start())
                self._is_answer = False
                return
        yield from self._pass_on_certain("answer", is_over, BLOCK_CLOSES)


def may_become_header(text: str) -> bool:
    """Whether further text may complete a header, or the end of a block."""
    is_begun = any(marker.startswith(text) for marker in (*BLOCK_CLOSES, *ROLES))
    return is_begun or (len(text) <= MAX_HEADER and bool(re.fullmatch(PARTIAL_HEADER, text)))


def channel_of(header: Match) -> Channel:
    """The channel of a block, by the first word behind the last marker; only what is for the user is an answer."""
    if channel := MESSAGES.get(header["message"]):
        return channel
    if header["line"]:
        return "answer" if header["name"] and header["name"].casefold() in ANSWERS else "thinking"
    text = header["text"]
    recipient = re.search(r"to=(\w+)", text)
    is_for_user = recipient is None or recipient[1] in ("user", "assistant")
    name = re.match(r"\s*(?:assistant)?([^\W_]*)", re.split(START, text)[-1], re.IGNORECASE)
    return "answer" if name and name[1].casefold() in ANSWERS and is_for_user else "thinking"


def markup_after(header: str) -> ReasoningMarkup:
    """The markup of the reasoning after a header: of a known one, or of those that begin with the same marker."""
    for markup in CHANNEL_MARKUPS:
        if markup.open in header:
            return markup
    marker = header[: header.find(">") + 1]
    return HEADERS.get(marker, HARMONY)
