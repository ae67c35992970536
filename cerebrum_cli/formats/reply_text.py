"""The one reader of a reply: bytes or text in, pieces of its reasoning and its answer out, and the stage it is in.

Bytes become text, a reader of markup splits it by channel, stop strings end the answer, and the white space around
both is dropped. Text is held back only while further text may still change what it is, with two exceptions
(`correction`): a closing tag without an opening one turns the answer emitted so far into reasoning, and reasoning that
a reply opens but never closes is its answer, unless the model is known to have this markup.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cache

from cerebrum_cli.core.events import Channel
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts, partial_marker_length
from cerebrum_cli.core.token_ids import TokenIds, Tokenize, TokenPredicate
from cerebrum_cli.core.vocabulary import Vocabulary, detokenize
from cerebrum_cli.formats.markup import (
    CHANNEL_MARKUPS,
    MARKERS,
    ChannelReader,
    PlainReader,
    Stage,
    TagReader,
    is_markup,
)
from cerebrum_cli.formats.prompt_format import Markups, ReasoningMarkup

MARGIN = r"\A(?:\s*\n)?(?:[ \t](?=\S))?"  # before an answer, which keeps its indentation
MAX_BLANKS = 4  # characters of white space before an answer under a grammar
TAIL = 64  # characters of the end of a text that are remembered

SplitText = tuple[Channel, str]


@frozen
class ReplyRules:
    """How the text of a reply is read: without markup, all of it is the answer.

    - `trims`: white space around reasoning and answer is dropped
    - `opened`: markup of reasoning that the prompt leaves open
    - `prefix`, `prefix_tokens`: text of the reply to continue, and its number of tokens
    - `stops_anywhere`: a server may look for stop strings in all of the text, since the model is not known to reason
    - `markers`: the texts that open reasoning or precede an answer, each with its special tokens. Such a token is never
      part of an answer. A marker without any is spelled out, and an answer may begin with the same characters.
    - `endings`: tokens of each text that ends reasoning
    - `plain_answer`: an answer has no markup, since it matches a grammar
    - `questions`: an answer may have the markers that they have
    - `known_markups`: those that the model is known to have. The reply is read as they are written, unless it begins
      with another one.
    - `keeps_unclosed`: reasoning that nothing closes is no answer, whatever its markup: it may have function calls
    """

    markups: Markups = ()
    opened: ReasoningMarkup | None = None
    prefix: str = ""
    prefix_tokens: int = 0
    trims: bool = False
    stops_anywhere: bool = True
    markers: Mapping[str, frozenset[int]] = field(default_factory=dict, hash=False)
    endings: Tokenize | None = field(default=None, hash=False)
    plain_answer: bool = False
    questions: Texts = ()
    known_markups: Markups = ()
    keeps_unclosed: bool = False


class ReplyText:
    """The text of one reply, up to the stop string that completes first, by channel."""

    def __init__(self, rules: ReplyRules, stop: Sequence[str] = ()) -> None:
        self.rules = rules
        self.tail = ""  # the last characters, with markup
        self.correction: Channel | None = None  # the channel that the text so far is of after all
        self.has_closed_list = False  # which only repeated its last entries
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._reader = choose_reader(rules, (*rules.questions, *stop))
        self._stops = StopStrings(())
        self._thinking = Margins(rules.trims, rules.trims)
        self._answer = Margins(rules.trims or bool(rules.markups), rules.trims)
        self._has_shown_answer = False
        self._has_special = False  # token in the markup that is held
        self._overhang = ""  # of the answer, in the text that ended what precedes it
        if rules.prefix:
            self.feed_text(rules.prefix)
        self._stops = StopStrings(stop)
        self.reasoning_tokens = rules.prefix_tokens if self.open_markup else 0

    @property
    def stage(self) -> Stage:
        return self._reader.stage

    @property
    def open_markup(self) -> ReasoningMarkup | None:
        """The markup of reasoning that has not ended."""
        return self._reader.markup

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has ended the reply."""
        return self._stops.is_found

    def feed(self, piece: bytes, tokens: Sequence[int] = ()) -> list[SplitText]:
        """Add the bytes of some tokens, and return what can be assigned to a channel."""
        if self.open_markup:
            self.reasoning_tokens += len(tokens)
        pieces = self.feed_text(self._decoder.decode(piece))
        if self.stage == "undecided":
            self._has_special = bool(self._begun_marker) and (self._has_special or any(map(self._is_special, tokens)))
        return pieces

    def feed_text(self, text: str, channel: Channel | None = None) -> list[SplitText]:
        """Add text, and return what can be assigned to a channel.

        Once a server has stated a channel, there is no markup: neither there nor in what follows, which is the answer.
        """
        self.tail = (self.tail + text)[-TAIL:]
        if channel:
            self.begin_answer()
        if channel == "thinking":
            pieces = self._read("")
            self._add(pieces, "thinking", text)
            return pieces
        return self._read(text)

    def finish(self, is_truncated: bool = False) -> list[SplitText]:
        """Return the text held back; an incomplete character becomes U+FFFD, or is dropped from a truncated reply."""
        if is_truncated or self.is_stopped:
            self._decoder.reset()
        pieces = self._read(self._decoder.decode(b"", final=True), is_over=True)
        if self._is_unannounced and not is_truncated:
            self._make_answer(pieces)
        self._add_end(pieces)
        return pieces

    def _read(self, text: str, is_over: bool = False) -> list[SplitText]:
        """Read text up to a stop string."""
        pieces: list[SplitText] = []
        for kind, part in self._reader.read(text, is_over):
            if kind == "markup":
                self._answer.separate()
            elif kind == "was thinking":
                self._make_reasoning(pieces)
            else:
                self._add(pieces, kind, part)
        if self.rules.plain_answer and self.stage == "answer":
            self._reader = PlainReader(self._reader.held)
        self._has_shown_answer = self._has_shown_answer or any(channel == "answer" for channel, _ in pieces)
        return pieces

    def _add(self, pieces: list[SplitText], channel: Channel, text: str) -> None:
        """Add text of a channel to the pieces, without white space that may be at its start or end."""
        if self.is_stopped:
            return
        if channel == "thinking":
            text = self._thinking.without_end(self._thinking.without_start(text))
        else:
            text = self._answer.without_start(text)
            self._overhang = self._overhang or text
            text = self._answer.without_end(self._stops.feed(text))
        if text:
            pieces.append((channel, text))

    def _add_end(self, pieces: list[SplitText]) -> None:
        """Add what may have been the beginning of a stop string in the answer."""
        if text := self._answer.without_end(self._stops.flush()):
            pieces.append(("answer", text))

    def _make_reasoning(self, pieces: list[SplitText]) -> None:
        """Make reasoning of the answer so far."""
        self._add_end(pieces)
        if self._has_shown_answer:
            self.correction = "thinking"
        self._has_shown_answer = False
        pieces[:] = [("thinking", text) for _, text in pieces]
        self._thinking = self._answer
        self._answer = Margins(True, self.rules.trims)
        self._overhang = ""

    @property
    def _is_unannounced(self) -> bool:
        """Whether the text is behind a tag that the model is not known to have: its answer may be about tags."""
        is_known = self.open_markup in self.rules.known_markups or self.rules.keeps_unclosed
        return bool(self._reader.reasoning) and not is_known

    def _make_answer(self, pieces: list[SplitText]) -> None:
        """Make an answer of the reasoning and its tag. It is too late for stop strings."""
        text = self._answer.without_start("".join(self._reader.reasoning))
        pieces[:] = [piece for piece in pieces if piece[0] == "answer"]
        pieces.append(("answer", self._answer.without_end(text)))
        self.correction = "answer"
        self._reader = PlainReader()

    # Where a grammar begins to apply.

    def begin_answer(self) -> None:
        """Begin an answer without markup, with the text that may have been markup."""
        self._has_special = False
        self._reader = PlainReader(self._reader.held)

    @property
    def answer_start(self) -> str:
        """Text that is the beginning of the answer, unless it turns out to be markup."""
        if self._has_special:
            return ""
        return self._overhang or self._begun_marker

    @property
    def missing_markup(self) -> str:
        """Text that completes the markup that has begun; empty if none has."""
        begun = self._begun_marker
        for marker in self.rules.markers:
            if begun and marker.startswith(begun):
                return marker.removeprefix(begun)
        return ""

    @property
    def closing(self) -> TokenIds:
        """Tokens that end reasoning which is open; empty if none is."""
        if self.open_markup is None or self.rules.endings is None:
            return ()
        return self.rules.endings(self.open_markup.ending())

    def precedes_answer(self, token: int, text: str) -> bool:
        """Whether a token is markup, or white space, that may precede the answer here."""
        if not text:
            return False
        begun = self._begun_marker
        line = (begun + text).lstrip()
        if not line:
            return len(self._reader.held) < MAX_BLANKS
        is_special = bool(begun) or self._is_special(token)
        for marker, tokens in self.rules.markers.items():
            is_complete = line.startswith(marker) and not line[len(marker) :].strip()
            if (is_complete or marker.startswith(line)) and (is_special or not tokens):
                return True
        return False

    @property
    def _begun_marker(self) -> str:
        """The markup that has begun, if any."""
        if self.stage != "undecided":
            return ""
        return self._reader.held.lstrip()

    def _is_special(self, token: int) -> bool:
        return any(token in tokens for tokens in self.rules.markers.values())


def choose_reader(rules: ReplyRules, mentioned_in: Texts) -> PlainReader | TagReader:
    """The reader for a reply. Where a grammar waits for the answer, headers of channels are spelled as in their row."""
    if not (rules.markups or rules.opened):
        return PlainReader()
    has_channels = rules.opened in CHANNEL_MARKUPS or any(markup in CHANNEL_MARKUPS for markup in rules.known_markups)
    has_channels = has_channels and not rules.plain_answer
    return (ChannelReader if has_channels else TagReader)(mentioned_in, rules.opened)


def markup_tokens(vocabulary: Vocabulary, texts: Texts) -> TokenPredicate:
    """A predicate of tokens that are markup in a reply: one of the texts, or of any known kind."""
    tokens = vocabulary.special_token_ids((*texts, *MARKERS))
    return cache(lambda token: token in tokens or is_markup(detokenize(vocabulary, [token])))


class Margins:
    """Drops the white space around a text that comes in parts: blank lines and a single space before it, all behind it.

    White space that may be the last is held back until text follows.
    """

    def __init__(self, trims_start: bool, trims_end: bool) -> None:
        self._start = "" if trims_start else None  # white space so far; None once the text has begun
        self._trims_end = trims_end
        self._end = ""  # white space that may be the last
        self._has_text = False

    def without_start(self, text: str) -> str:
        if self._start is None:
            return text
        text = self._start + text
        if not text.strip():
            self._start = text
            return ""
        self._start = None
        return re.sub(MARGIN, "", text, count=1)

    def without_end(self, text: str) -> str:
        if not self._trims_end:
            return text
        text = self._end + text
        body = text.rstrip()
        self._end = text[len(body) :]
        self._has_text = self._has_text or bool(body)
        return body

    def separate(self) -> None:
        """Put a blank line between the text so far and what follows."""
        if self._has_text:
            self._start, self._end = "", "\n\n"


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
        if not self._stop:  # the search would take 2 us a token
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
