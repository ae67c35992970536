"""The one reader of a reply: bytes or text in, pieces of its reasoning and its answer out, and the stage it is in.

Text is held back only while further text may still change what it is: half a character, the beginning of markup or of
a stop string, and white space that may be the last. One exception: a closing tag without an opening one turns the
answer emitted so far into reasoning (`was_reasoning`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from functools import cache
from typing import Literal

from cerebrum_cli.core.events import Channel
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts, partial_marker_length
from cerebrum_cli.core.token_ids import TokenIds, Tokenize, TokenPredicate
from cerebrum_cli.core.vocabulary import Vocabulary, detokenize
from cerebrum_cli.formats.markers import (
    MARKER_START,
    MARKERS,
    MENTION,
    PARTIAL_MARKER,
    PARTIAL_MENTION,
    REASONING_MARKUPS,
    UNNAMED,
    Marker,
    end_pattern,
    find_markers,
    is_markup,
    marker_at_start,
    markup_after,
    may_start_marker,
    read_header,
)
from cerebrum_cli.formats.prompt_format import ReasoningMarkup

MAX_BLANKS = 4  # characters of white space before an answer under a grammar
MAX_LINE = 500  # characters of a line in which markup may be quoted
MAX_PREAMBLE = 100  # characters before a tag that opens reasoning all the same
TAIL = 64  # characters of the end of a text that are remembered
QUOTES = ("`", "'", '"', "\u201c", "\u2018", "\u00ab")  # before markup that is mentioned
SENTENCE_ENDS = (".", "!", "?", "\u2026")

SplitText = tuple[Channel, str]
# Where a reply is: in its reasoning, in markup or white space before its answer, or in its answer.
Stage = Literal["thinking", "undecided", "answer"]


@frozen
class ReplyRules:
    """How the text of a reply is read: without markup, all of it is the answer.

    - `trims`: white space around reasoning and answer is dropped
    - `opened`: markup of reasoning that the prompt leaves open
    - `prefix`, `prefix_tokens`: text of the reply to continue, and its number of tokens
    - `stops_anywhere`: stop strings count in reasoning, too, since the model is not known to mark any
    - `markers`: the texts that open reasoning or precede an answer, each with its special tokens. Such a token is never
      part of an answer. A marker without any is spelled out, and an answer may begin with the same characters.
    - `endings`: tokens of each text that ends reasoning
    - `plain_answer`: an answer has no markup, since it matches a grammar
    - `questions`: an answer may have the markers that they have
    """

    markups: tuple[ReasoningMarkup, ...] = ()
    opened: ReasoningMarkup | None = None
    prefix: str = ""
    prefix_tokens: int = 0
    trims: bool = False
    stops_anywhere: bool = True
    markers: Mapping[str, frozenset[int]] = field(default_factory=dict, hash=False)
    endings: Tokenize | None = field(default=None, hash=False)
    plain_answer: bool = False
    questions: Texts = ()

    def is_mentioned(self, marker: str) -> bool:
        return any(marker in question for question in self.questions)


class ReplyText:
    """The text of one reply, up to the stop string that completes first, by channel.

    A tag opens reasoning before the answer, or after a few words on a line of its own; elsewhere it is text. Markers
    that nobody writes by hand, as those of channels, count anywhere unless they are quoted. White space around both is
    dropped if the rules say so. `open_markup` is that of reasoning that has not ended, after `reasoning_tokens` tokens.
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
        self._has_reasoning = self._had_reasoning = bool(rules.opened)
        self._opening = ""  # of the reasoning that has just begun, which may be text
        self._mentions_tags = False  # in the answer
        self._answer_length = self._answer_before = 0  # before the text that is being read
        self._line = ""  # of the answer, so far
        self._is_fenced = False  # in a code block
        self._is_over = False
        self._footer = ""
        self.was_reasoning = False
        self._spaces: dict[Channel, str] = {}  # white space that may be the last of a channel, once it has text
        self._beginnings: dict[Channel, str] = {}  # white space that may be the first of a channel
        self._pieces: list[SplitText] = []
        self._stops = StopStrings(())
        if rules.prefix:
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

    def feed_text(self, text: str, channel: Channel | None = None) -> list[SplitText]:
        """Add text, and return what can be assigned to a channel.

        Once a server has stated a channel, there is no markup: neither there nor in what follows, which is the answer.
        """
        self._pieces = []
        self._answer_before = self._answer_length
        self.tail = (self.tail + text)[-TAIL:]
        if channel:
            self._end_markup()
        if channel == "thinking":
            self._emit("thinking", text)
            return self._pieces
        if self.rules.stops_anywhere:
            text = self._stops.feed(text)
        self._read(text)
        return self._pieces

    def finish(self, is_truncated: bool = False) -> list[SplitText]:
        """Return the text held back; an incomplete character becomes U+FFFD, or is dropped from a truncated reply."""
        if is_truncated or self.is_stopped:
            self._decoder.reset()
        pieces = self.feed_text(self._decoder.decode(b"", final=True))
        self._is_over = True
        rest = self._stops.flush()
        if self.stage == "answer":
            self._held += rest
            rest = ""
        self._read(rest)
        return pieces

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
    def closing(self) -> TokenIds:
        """Tokens that end reasoning which is open; empty if none is."""
        if self.open_markup is None or self.rules.endings is None:
            return ()
        return self.rules.endings(self.open_markup.ending())

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
        if self.stage == "answer":
            text = self._up_to_stop(text)
        self._held += text
        is_stage_left = True
        while is_stage_left:  # then the rest is read in the next one
            if self.open_markup:
                is_stage_left = self._read_reasoning(end_pattern(self.open_markup))
            elif self.stage == "undecided":
                is_stage_left = self._read_start()
            else:
                is_stage_left = self._read_answer()

    def _read_reasoning(self, end: str) -> bool:
        is_text = self._reads_opening()
        if is_text is None or is_text:
            return bool(is_text)
        text = self._held
        found = re.search(end, text)
        if found is None:
            cut = self._certain_length(text)
            self._emit("thinking", text[:cut])
            self._held = text[cut:]
            return False
        self._emit("thinking", text[: found.start()])
        self.open_markup = None
        self.stage = "undecided"
        at = found.end()
        if MARKERS.get(found[0]) in ("header", "answer"):
            at = found.start()
        self._held = text[at:]
        return True

    def _certain_length(self, text: str) -> int:
        """The length of what cannot be the beginning of a marker."""
        if self._is_over:
            return len(text)
        partial = re.search(PARTIAL_MARKER, text)
        return partial.start() if partial else len(text)

    def _read_start(self) -> bool:
        """Decide between markup and answer, at the start of the reply or between blocks."""
        text = self._held.lstrip()
        if not text:
            return False
        marker = self._marker_at_start(text)
        if marker is None and not self._is_over and may_start_marker(text, self.rules.stops_anywhere):
            return False
        if marker and (marker.effect in ("close", "wrapper") or text[: marker.end] in UNNAMED):
            if not self._is_over and PARTIAL_MENTION.fullmatch(text, marker.end):
                return False
            if MENTION.match(text, marker.end):
                self._mention(text[: marker.end])
                return True
        if marker is None or not self._is_meant(marker, text):
            self.begin_answer()
            return True
        if marker.effect == "header":
            return self._read_header(marker, text)
        self._has_special = False
        self._held = text[marker.end :]
        if marker.effect == "open":
            self._open(marker.markup, text[: marker.end])
        elif marker.effect in ("answer", "wrapper"):
            self._footer = marker.footer
            self._start_block()
        return True

    def _marker_at_start(self, text: str) -> Marker | None:
        """The marker that a text starts with. Where a grammar waits for the answer, a header is taken literally."""
        if not self.rules.stops_anywhere:
            for markup in self.rules.markups:
                if text.startswith(markup.open):
                    return Marker(0, len(markup.open), "open", markup)
        return marker_at_start(text)

    def _mention(self, spelling: str) -> None:
        """Begin the answer with a marker that it is about."""
        self.begin_answer()
        self._mentions_tags = True
        before, _, after = self._held.partition(spelling)
        self._emit("answer", before + spelling)
        self._held = after

    def _is_meant(self, marker: Marker, text: str) -> bool:
        """Whether a marker at the start is markup: a question may have asked for a tag with an unusual name."""
        if marker.effect not in ("open", "wrapper"):
            return True
        if marker.effect == "open" and marker.markup in REASONING_MARKUPS:
            return True
        is_mentioned = self.rules.is_mentioned(text[: marker.end])
        return not is_mentioned and (marker.effect == "open" or self._has_reasoning)

    def _read_header(self, marker: Marker, text: str) -> bool:
        header = read_header(text, marker.end, self._is_over)
        if header is None:
            return False
        end, channel = header
        if end < marker.end:
            self._mention(text[: marker.end])
            return True
        self._has_special = False
        self._held = text[end:]
        if channel == "thinking":
            self._open(markup_after(text[:end]))
        else:
            self._start_block()
        return True

    def _open(self, markup: ReasoningMarkup, opening: str = "") -> None:
        self.open_markup = markup
        self.stage = "thinking"
        is_own = bool(self.rules.markers.get(opening)) and not self._has_reasoning
        self._opening = "" if is_own else opening
        self._had_reasoning, self._has_reasoning = self._has_reasoning, True

    def _reads_opening(self) -> bool | None:
        """Whether the opening of reasoning is text instead, which a sentence is about; None while this is undecided."""
        if not self._opening:
            return False
        if not self._is_over and PARTIAL_MENTION.fullmatch(self._held):
            return None
        opening, self._opening = self._opening, ""
        if not MENTION.match(self._held):
            return False
        self.open_markup = None
        self._has_reasoning = self._had_reasoning
        self._held = opening + self._held
        self._mention(opening)
        return True

    def _end_markup(self) -> None:
        """From here on, text without a channel is the answer, and so is what may have been markup."""
        self.rules = replace(self.rules, plain_answer=True)
        self.open_markup = None
        if self.stage != "answer":
            self.begin_answer()
        self._read("")

    def _start_block(self) -> None:
        """Start the answer, or continue it after an earlier block."""
        if "answer" in self._spaces:
            self._spaces["answer"] = self._spaces["answer"] or "\n\n"
        self.begin_answer()

    def begin_answer(self) -> None:
        """Begin the answer, with the text that may have been markup."""
        self._has_special = False
        self._beginnings = {}
        self.stage = "answer"
        self._held = self._up_to_stop(self._held)

    def _up_to_stop(self, text: str) -> str:
        """The text of an answer, without white space before it, up to a stop string that counts there."""
        if not self._has_answer:
            text = self._first_text("answer", text)
            self._has_answer = bool(text)
            self.overhang = text
        return text if self.rules.stops_anywhere else self._stops.feed(text)

    def _read_answer(self) -> bool:
        """Pass on what is held of the answer, up to a marker; return whether text after the marker is left to read."""
        text = self._held
        cut = len(text)
        if self.rules.markups and not self.rules.plain_answer and re.search(MARKER_START, text):
            for marker in find_markers(text):
                before, after = text[: marker.start], text[marker.end :]
                if self._counts(marker, before, after):
                    return self._leave_answer(marker, before, after)
            cut = self._certain_length(text)
        if self._footer:
            start = footer_start(text, self._footer)
            if text[start:].rstrip().casefold() == self._footer or not self._is_over:
                cut = min(cut, start)
        self._emit("answer", text[:cut])
        self._held = text[cut:]
        return False

    def _counts(self, marker: Marker, before: str, after: str) -> bool:
        """Whether a marker in the answer is markup, not a part of its text."""
        spelling = self._held[marker.start : marker.end]
        line, is_fenced = self._last_line(before)
        is_quoted = is_fenced or line.count("`") % 2 == 1 or line.endswith(QUOTES) or self.rules.is_mentioned(spelling)
        if marker.effect == "open":
            is_apart = (not line[:4].strip(" ") and len(line) < 4) or line.rstrip().endswith(SENTENCE_ENDS)
            is_early = self._answer_length + marker.start <= MAX_PREAMBLE and is_apart and not self._has_reasoning
            self._mentions_tags = self._mentions_tags or is_quoted or not is_early
            return is_early and not is_quoted
        if is_quoted or marker.effect == "wrapper":
            return False
        if marker.effect == "close" and not self._has_reasoning:
            self._mentions_tags = self._mentions_tags or bool(MENTION.match(after))
            if self._mentions_tags:
                return False
        if spelling.startswith("</"):
            is_last = not (after.strip() or self._mentions_tags)
            is_apart = not line.endswith(" ") or after.startswith("\n") or not (after or self._is_over)
            return is_apart and (is_last or not (self._has_reasoning or self._mentions_tags))
        return marker.effect != "answer" or not self._has_reasoning

    def _leave_answer(self, marker: Marker, before: str, after: str) -> bool:
        """Read a marker in the answer: it is dropped, or begins another block, or all before it was reasoning."""
        self._emit("answer", before)
        is_undecided = not after.strip() or (marker.effect == "close" and PARTIAL_MENTION.fullmatch(after))
        if marker.effect in ("close", "answer") and is_undecided and not self._is_over:
            self._held = self._held[len(before) :]
            return False
        if marker.effect in ("header", "end", "open"):
            self.stage = "undecided"
            self._held = self._held[len(before) :] + self._stops.flush()
        elif marker.effect == "dropped" or self._has_reasoning or not after.strip():
            self._held = after
        else:
            self._make_reasoning()
            self._footer = marker.footer
            self._held = after + self._stops.flush()
        return True

    def _make_reasoning(self) -> None:
        """Make reasoning of the answer so far."""
        self.was_reasoning = self._answer_before > 0
        self._pieces[:] = [("thinking", text) for _, text in self._pieces]
        self._spaces["thinking"] = self._spaces.pop("answer", "")
        self._has_reasoning = True
        self._has_answer = False
        self._answer_length = self._answer_before = 0
        self.overhang = ""
        self.stage = "undecided"

    def _last_line(self, text: str) -> tuple[str, bool]:
        """The last line of the answer with a text, and whether it is in a fenced code block."""
        *lines, last = (self._line + text).split("\n")
        is_fenced = self._is_fenced
        for line in lines:
            if line.lstrip().startswith(("```", "~~~")):
                is_fenced = not is_fenced
        return last[-MAX_LINE:], is_fenced

    def _emit(self, channel: Channel, text: str) -> None:
        """Add the text of a channel, without white space that may be at its start or end."""
        if channel == "answer":
            self._answer_length += len(text)
            self._line, self._is_fenced = self._last_line(text)
        if not self.rules.trims:
            if text:
                self._pieces.append((channel, text))
            return
        space = self._spaces.get(channel)
        if space is None:
            text = self._first_text(channel, text)
            space = ""
        body = text.rstrip()
        if body:
            self._pieces.append((channel, space + body))
            self._spaces[channel] = text[len(body) :]
        elif channel in self._spaces:
            self._spaces[channel] = space + text

    def _first_text(self, channel: Channel, text: str) -> str:
        """The first text of a channel: without blank lines and a single space before it, which models write there."""
        text = self._beginnings.get(channel, "") + text
        body = text.lstrip()
        self._beginnings[channel] = "" if body else text
        space = text[: len(text) - len(body)].rpartition("\n")[2]
        if not body or len(space) == 1:
            return body
        return space + body


def markup_tokens(vocabulary: Vocabulary, texts: Texts) -> TokenPredicate:
    """A predicate of tokens that are markup in a reply: one of the texts, or of any known kind."""
    tokens = vocabulary.special_token_ids((*texts, *MARKERS))
    return cache(lambda token: token in tokens or is_markup(detokenize(vocabulary, [token])))


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


def footer_start(text: str, footer: str) -> int:
    """Where the end of an answer may begin: a footer with white space behind it, or the beginning of one."""
    body = text.rstrip()
    if body.casefold().endswith(footer):
        return len(body) - len(footer)
    return len(text) - partial_marker_length(text.casefold(), (footer,))
