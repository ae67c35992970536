"""The one reader of a reply: bytes or text in, pieces of its reasoning and its answer out, and the stage it is in.

Text is held back only while further text may still change what it is: half a character, the beginning of markup or of
a stop string, and white space that may be the last.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cerebrum_cli.core.events import Channel
from cerebrum_cli.core.text import partial_marker_length
from cerebrum_cli.formats.thinking import ReasoningMarkup

MAX_BLANKS = 4  # characters of white space before an answer under a grammar
TAIL = 64  # characters of the end of a text that are remembered

SplitText = tuple[Channel, str]
# Where a reply is: in its reasoning, in markup or white space before its answer, or in its answer.
Stage = Literal["thinking", "undecided", "answer"]


@dataclass(frozen=True, slots=True)
class ReplyRules:
    """How the text of a reply is read: without markup, all of it is the answer.

    - `trims`: white space around reasoning and answer is dropped
    - `opened`: markup of reasoning that the prompt leaves open
    - `prefix`, `prefix_tokens`: text of the reply to continue, and its number of tokens
    - `stops_anywhere`: stop strings count in reasoning, too, since the model is not known to mark any
    - `markers`: the texts that open reasoning or precede an answer, each with its special tokens. Such a token is never
      part of an answer. A marker without any is spelled out, and an answer may begin with the same characters.
    - `endings`: tokens of each text that ends reasoning
    - `reasoning_end`: tokens within which the controls of a reply have ended its reasoning; None for any number
    """

    markups: tuple[ReasoningMarkup, ...] = ()
    opened: ReasoningMarkup | None = None
    prefix: str = ""
    prefix_tokens: int = 0
    trims: bool = False
    stops_anywhere: bool = True
    markers: Mapping[str, frozenset[int]] = field(default_factory=dict, hash=False)
    endings: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    reasoning_end: int | None = None


class ReplyText:
    """The text of one reply, up to the stop string that completes first, by channel.

    Reasoning comes before the answer: markup in the answer is plain text. White space around both is dropped if the
    rules say so. `open_markup` is that of reasoning that has not ended, after `reasoning_tokens` tokens so far.
    """

    def __init__(self, rules: ReplyRules, stop: Sequence[str] = ()) -> None:
        self.rules = rules
        self.open_markup = rules.opened
        self.stage: Stage = "answer"
        if rules.markups:
            self.stage = "undecided"
        if rules.opened:
            self.stage = "thinking"
        self.overhang = ""  # of the answer, in the text that ended what precedes it
        self.tail = ""  # the last characters, with markup
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # text that is not assigned to a channel yet
        self._has_special = False  # token in the markup that is held
        self._has_answer = self.stage == "answer"
        self._footer = ""
        self._spaces: dict[Channel, str] = {}  # white space that may be the last of a channel, once it has text
        self._pieces: list[SplitText] = []
        self._stops = StopStrings(())
        self.feed_text(rules.prefix)
        self._stops = StopStrings(stop)
        self.reasoning_tokens = 0
        if self.open_markup:
            self.reasoning_tokens = rules.prefix_tokens

    def feed(self, piece: bytes, tokens: Sequence[int] = ()) -> list[SplitText]:
        """Add the bytes of some tokens, and return what can be assigned to a channel."""
        if self.open_markup:
            self.reasoning_tokens += len(tokens)
        pieces = self.feed_text(self._decoder.decode(piece))
        if self.stage == "undecided":
            self._has_special = bool(self._marker) and (self._has_special or any(map(self._is_special, tokens)))
        return pieces

    def feed_text(self, text: str) -> list[SplitText]:
        """Add text, and return what can be assigned to a channel."""
        self._pieces = []
        self.tail = (self.tail + text)[-TAIL:]
        if self.rules.stops_anywhere:
            text = self._stops.feed(text)
        self._read(text)
        return self._pieces

    def finish(self, is_truncated: bool = False) -> list[SplitText]:
        """Return the text held back; an incomplete character becomes U+FFFD, or is dropped from a truncated reply."""
        if is_truncated or self.is_stopped:
            self._decoder.reset()
        pieces = self.feed_text(self._decoder.decode(b"", final=True))
        if self.rules.stops_anywhere:
            self._read(self._stops.flush())
        if self.stage == "thinking":
            self._emit("thinking", self._held)
            return pieces
        self.stage = "answer"
        self._read("")
        rest = self._held + self._stops.flush()
        if not self._footer or rest.rstrip() != self._footer:
            self._emit("answer", rest)
        return pieces

    @property
    def channel(self) -> Channel:
        """The channel of a token that completes no text."""
        if self.open_markup:
            return "thinking"
        return "answer"

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has ended the reply."""
        return self._stops.is_found

    # Where a grammar begins to apply.

    @property
    def held(self) -> str:
        """Text that is part of the answer unless it turns out to be markup."""
        if self._has_special:
            return ""
        return self.overhang or self._marker

    @property
    def rest(self) -> str:
        """Text that completes the markup that has begun; empty if none has."""
        started = self._marker
        for marker in self.rules.markers:
            if started and marker.startswith(started):
                return marker.removeprefix(started)
        return ""

    @property
    def closing(self) -> tuple[int, ...]:
        """Tokens that end reasoning which is open; empty if none is."""
        if self.open_markup is None:
            return ()
        return self.rules.endings.get(self.open_markup.ending(), ())

    def passes(self, token: int, text: str) -> bool:
        """Whether a token is markup, or white space, that may precede the answer here."""
        started = self._marker
        line = (started + text).lstrip()
        if not line:
            return text.isspace() and len(self._held) < MAX_BLANKS
        if not text:
            return False
        may_be_any = started or self._is_special(token)
        for marker, tokens in self.rules.markers.items():
            completes = line.startswith(marker) and not line[len(marker) :].strip()
            if (completes or marker.startswith(line)) and (may_be_any or not tokens):
                return True
        return False

    def begin_answer(self) -> None:
        """Begin the answer, with the text that may have been markup."""
        self.stage = "answer"

    @property
    def _marker(self) -> str:
        """The markup that has begun, if any."""
        if self.stage != "undecided":
            return ""
        return self._held.lstrip()

    def _is_special(self, token: int) -> bool:
        return any(token in tokens for tokens in self.rules.markers.values())

    # Reading, by stage.

    def _read(self, text: str) -> None:
        if self.stage != "answer":
            self._held += text
            text = ""
            while self._leaves_stage():
                pass
        if self.stage == "answer":
            self._read_answer(text)

    def _leaves_stage(self) -> bool:
        """Read what is held in the current stage; whether another one follows in which to read the rest."""
        if self.open_markup:
            return self._read_reasoning(self.open_markup.close)
        return self.stage == "undecided" and self._read_markup()

    def _read_reasoning(self, close: str) -> bool:
        reasoning, closed, after = self._held.partition(close)
        if closed:
            self.stage = "undecided"
            self.open_markup = None
        else:
            cut = len(reasoning) - partial_marker_length(reasoning, (close,))
            reasoning, after = reasoning[:cut], reasoning[cut:]
        self._held = after
        self._emit("thinking", reasoning)
        return bool(closed)

    def _read_markup(self) -> bool:
        """Decide between markup and answer, at the start of the reply or after a reasoning block."""
        text = self._held.lstrip()
        if not text:
            return False
        opening = {markup.open: markup for markup in self.rules.markups}
        footers = {markup.header: markup.footer for markup in self.rules.markups if markup.header}
        markers = (*opening, *footers)
        found = max(filter(text.startswith, markers), key=len, default="")
        if not found and any(marker.startswith(text) for marker in markers):
            return False  # it may still be one
        self._held = text.removeprefix(found)
        self._has_special = False
        self._footer = footers.get(found, "")
        self.stage = "answer"
        if found in opening:
            self.stage = "thinking"
            self.open_markup = opening[found]
        return True

    def _read_answer(self, text: str) -> None:
        if not self._has_answer:
            text = (self._held + text).lstrip()
            self._held = ""
            self._has_answer = bool(text)
            self.overhang = text
        if not self.rules.stops_anywhere:
            text = self._stops.feed(text)
        if self._footer:
            text, self._held = split_footer(self._held + text, self._footer)
        self._emit("answer", text)

    def _emit(self, channel: Channel, text: str) -> None:
        """Add the text of a channel, without white space that may be at its start or end."""
        if not self.rules.trims:
            if text:
                self._pieces.append((channel, text))
            return
        space = self._spaces.get(channel)
        if space is None:
            text = text.lstrip()
            space = ""
        body = text.rstrip()
        if body:
            self._pieces.append((channel, space + body))
            self._spaces[channel] = text[len(body) :]
        elif channel in self._spaces:
            self._spaces[channel] = space + text


class StopStrings:
    """Finds the stop string that completes first in a text that comes in parts."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.is_found = False
        self._stop = tuple(stop)
        self._held = ""  # the beginning of a stop string

    def feed(self, text: str) -> str:
        """Add text, and return what precedes a stop string, or cannot be part of one."""
        if self.is_found:
            return ""
        if not self._stop:
            return text
        text = self._held + text
        found = [stop for stop in self._stop if stop in text]
        if found:
            first = min(found, key=lambda stop: (text.index(stop) + len(stop), -len(stop)))
            self.is_found = True
            self._held = ""
            return text[: text.index(first)]
        cut = len(text) - partial_marker_length(text, self._stop)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        rest = self._held
        self._held = ""
        return rest


def split_footer(text: str, footer: str) -> tuple[str, str]:
    """Split off what may be the end of an answer: a footer with white space behind it, or the beginning of one."""
    body = text.rstrip()
    cut = len(text) - partial_marker_length(text, (footer,))
    if body.endswith(footer):
        cut = len(body) - len(footer)
    return text[:cut], text[cut:]
