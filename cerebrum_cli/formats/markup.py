"""The markup of reasoning: a row for each way in which a family of models writes it, and readers of replies. Pure.

Tags stand before and after the reasoning. In channels, a reply is a sequence of blocks: each has a header, such as
`<|channel|>analysis<|message|>`, whose text names the channel of the block, and most have a marker at their end.

A reader gets text in parts, and yields events of reasoning and answer. It holds text only while what follows may change
what that is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Literal, TypeAlias

from cerebrum_cli.core.events import Channel
from cerebrum_cli.core.text import Match, Pattern, Texts, partial_marker_length
from cerebrum_cli.formats.prompt_format import THINK, ReasoningMarkup

HARMONY_FINAL = "<|start|>assistant<|channel|>final<|message|>"
SOLAR_FINAL = "<|begin|>assistant<|content|>"
BEGIN_RESPONSE = "[BEGIN FINAL RESPONSE]"
NAMES = ("thinking", "seed:think", "mm:think", "think:opensource", "thought", "thoughts", "reasoning")
TAG_MARKUPS = (
    THINK,
    *(ReasoningMarkup(f"<{name}>", f"</{name}>", own_lines=True) for name in NAMES),
    *(ReasoningMarkup(f"[{name}]", f"[/{name}]") for name in ("THINK", "THINKING", "REASONING")),
    ReasoningMarkup("◁think▷", "◁/think▷"),
    ReasoningMarkup("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
    ReasoningMarkup("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>"),
    ReasoningMarkup("<|inner_prefix|>", "<|inner_suffix|>"),  # of Apertus
    ReasoningMarkup("Here are my reasoning steps:", BEGIN_RESPONSE),  # of Apriel, in its prompt
)
HARMONY = ReasoningMarkup(
    "<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>", final=HARMONY_FINAL
)
GEMMA = ReasoningMarkup("<|channel>thought", "<channel|>")
MEDGEMMA = ReasoningMarkup("<unused94>thought", "<unused95>")
KIMI = ReasoningMarkup("<|open|>think<|sep|>", "<|close|>think<|sep|>", "<|open|>response<|sep|>")
MUSE = ReasoningMarkup("to=self<|message|>", "<|eom|>", "<|start|>assistant to=user<|message|>")
CHANNEL_MARKUPS = (
    GEMMA,
    MEDGEMMA,
    HARMONY,
    ReasoningMarkup("<|start|>assistant<|channel|>analysis<|message|>", "<|end|>", HARMONY_FINAL),
    ReasoningMarkup("<|think|>", "<|end|>", SOLAR_FINAL),  # of Solar Open
    ReasoningMarkup("<|begin|>assistant<|think|>", "<|end|>", "<|content|>", final=SOLAR_FINAL),
    KIMI,
    MUSE,
    ReasoningMarkup("<|start|>assistant to=self<|message|>", "<|eom|>", "to=user<|message|>", final=MUSE.header),
)
REASONING_MARKUPS = (*TAG_MARKUPS, *CHANNEL_MARKUPS)

# The last sentence of reasoning that is ended early, by how names of architectures begin.
CLOSING_SENTENCES = {
    "qwen3": "Considering the limited time by the user, I have to give the solution based on the thinking directly"
    " now.",  # arXiv:2505.09388, section 4.4
}


def any_of(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))


# Tags.

ANSWER_TAGS = ("<|START_RESPONSE|>", "<|START_TEXT|>", "<|begin_of_solution|>", BEGIN_RESPONSE)
DROPPED_TAGS = (  # around an answer, or parts of it
    *("<|END_RESPONSE|>", "<|END_TEXT|>", "<|end_of_solution|>", "[END FINAL RESPONSE]"),
    *("<|begin_of_box|>", "<|end_of_box|>"),
)
NAME = (
    r"(?i:(?:[\w.-]+[:_])?(?:think|thinking|thoughts?|reason(?:ing)?|reflection|analysis|rationale|scratchpad"
    r"|monologue|cot)(?:[:_][\w.-]+)?)"
)
TAG = rf"[<◁]\|?/?{NAME} ?\|?[>▷]|\[/?(?:THINK(?:ING)?|REASONING)\]"  # of any family, also of one without a row
WRAPPER = r"(?i:<(?:(?:final_)?(?:answer|response|reply|result|output|solution)|final)>)"  # around an answer

# Channels.

HEADERS = {  # what begins a header, with the markup of the reasoning that mostly follows
    "<|channel|>": HARMONY,
    "<|start|>": HARMONY,
    "<|begin|>": HARMONY,
    "<|channel>": GEMMA,
    "<unused94>": MEDGEMMA,
    "<|open|>": KIMI,
}
MESSAGES: dict[str, Channel | None] = {  # what ends a header; None if its text names the channel
    "<|message|>": None,
    "<|sep|>": None,
    "<|content|>": "answer",
    "<|think|>": "thinking",
}
BLOCK_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|eom|>", "<|eot|>", "<|flush|>", "<|/think|>")
BLOCK_CLOSES = (GEMMA.close, MEDGEMMA.close, KIMI.close, "<|close|>response<|sep|>")
ANSWERS = ("final", "answer", "response", "user", "commentary", "to", "")  # first words of headers, behind a role

MARKERS = (*ANSWER_TAGS, *DROPPED_TAGS, *HEADERS, *MESSAGES, *BLOCK_ENDS, *BLOCK_CLOSES)


def is_markup(token: str) -> bool:
    """Whether the text of a token is a marker of a reply, or a part of one."""
    known = (*MARKERS, *(text for markup in REASONING_MARKUPS for text in markup.texts))
    return any(token in text for text in known) or bool(re.fullmatch(f"{TAG}|{WRAPPER}", token))


def markup_of(tag: str) -> ReasoningMarkup | None:
    """The markup of reasoning that a tag opens, if it opens any; one that is in no row has a similar tag at the end."""
    for markup in REASONING_MARKUPS:
        if markup.open == tag:
            return markup
    opening = tag.replace(" ", "")
    if not opening or "/" in opening or "end" in opening.lower():
        return None
    close = re.sub("begin|start", "end", opening)
    if close == opening:
        close = re.sub(r"\A.\|?", r"\g<0>/", opening)
    return ReasoningMarkup(tag, close, own_lines=opening[0] == "<")


def closing_sentence(architecture: str) -> str:
    for name, text in CLOSING_SENTENCES.items():
        if architecture.startswith(name):
            return text
    return ""


def mentions_markup(template: str, markup: ReasoningMarkup) -> bool:
    """Whether a chat template has the markup; the end alone suffices for tags: others may also end turns."""
    return markup.open in template or (markup.own_lines and markup.close in template)


# Where a reply is: in its reasoning, in markup or white space before its answer, or in its answer.
Stage = Literal["thinking", "undecided", "answer"]
# A piece of a channel; or without text, that markup was removed here, or that the answer so far was reasoning.
ReaderEvent = tuple[Literal["thinking", "answer", "markup", "was thinking"], str]
ReaderEvents: TypeAlias = Iterator[ReaderEvent]

# Patterns are compiled when they are first searched for: most replies have no tags.
FENCE = r"(?m)^\s*(?:```|~~~).*\n"
QUOTES = ("`", "'", '"', "\u201c", "\u2018", "\u00ab")  # before tags that are mentioned
MAX_PREAMBLE = 100  # characters before a tag that opens reasoning all the same
PREAMBLE_ENDS = ("\n", ".", "!", "?", ":", "\u2026")
TAG_STARTS = ("<", "[", "◁")
OPENINGS = [markup.open for markup in TAG_MARKUPS if markup.open.startswith(TAG_STARTS)]
CLOSINGS = [markup.close for markup in TAG_MARKUPS if markup.close not in ANSWER_TAGS]
# Of channels; a reader of these knows more headers.
OTHER_OPENINGS = [markup.open for markup in CHANNEL_MARKUPS]
OTHER_HEADERS = [text for markup in CHANNEL_MARKUPS for text in markup.texts[2:]]
CLOSE = rf"(?P<close>(?i:{any_of(CLOSINGS)}))"
KNOWN = rf"(?P<known>(?P<answer>{any_of(ANSWER_TAGS)})|{any_of(DROPPED_TAGS)})"
AT_START = (
    rf"(?P<open>{any_of([*OPENINGS, *OTHER_OPENINGS])})|{any_of(OTHER_HEADERS)}|{KNOWN}|{CLOSE}"
    rf"|(?P<wrapper>{WRAPPER})|(?P<other>{TAG})"
)
IN_ANSWER = rf"{KNOWN}|(?P<open>{any_of(OPENINGS)})|{CLOSE}|</\w+>"
PARTIAL = r"[<◁][/|]{0,2}(?:[\w.:|-]{1,40} ?)?\Z|\[/?[A-Z ]{0,22}\Z"  # a tag that begins, at the end


class PlainReader:
    """Reads a reply without markup: all of it is the answer, and so is what another reader has held."""

    markup = None
    stage: Stage = "answer"
    reasoning: Sequence[str] = ()

    def __init__(self, held: str = "") -> None:
        self.held = held

    def read(self, text: str, is_over: bool = False) -> ReaderEvents:  # noqa: ARG002
        text, self.held = self.held + text, ""
        yield "answer", text


class TagReader:
    """Reads reasoning before an answer: after a tag that opens it, or up to a closing tag without one.

    A few words may precede the reasoning. In the answer, opening tags are text, and so are tags in code or quotes, and
    those that are `mentioned_in` the question. Tags around an answer that follows reasoning are dropped.
    """

    def __init__(self, mentioned_in: Texts = (), opened: ReasoningMarkup | None = None) -> None:
        self.markup = opened
        self.held = ""
        self.reasoning: list[str] = []  # that the reply has opened, with its tag, until it is closed
        self._mentioned_in = mentioned_in
        self._is_answer = False
        self._has_reasoning = opened is not None
        self._answer: list[str] = []  # its pieces
        self._mentions_tags = False  # in the answer
        self._wrapper_end = ""

    @property
    def stage(self) -> Stage:
        if self.markup:
            return "thinking"
        return "answer" if self._is_answer else "undecided"

    def read(self, text: str, is_over: bool = False) -> ReaderEvents:
        self.held += text
        state = None
        while state != (self.stage, len(self.held)):
            state = (self.stage, len(self.held))
            if self.markup:
                yield from self._read_reasoning(self.markup, is_over)
            elif self._is_answer:
                yield from self._read_answer(is_over)
            else:
                yield from self._read_start(is_over)

    def _read_start(self, is_over: bool) -> ReaderEvents:
        """Read a tag before the answer; anything else begins the answer."""
        text = self.held.lstrip()
        found = re.match(AT_START, text) if text.startswith((*TAG_STARTS, "to=")) else None
        if found and not self._is_text_at_start(found):
            self.held = text[found.end() :]
            if found["wrapper"]:
                self._wrapper_end = f"</{found[0][1:].casefold()}"
            self.markup = markup_of(found["open"] or found["other"] or "")
            if self.markup and not self._has_reasoning:
                self.reasoning = [found[0]]
            self._has_reasoning = self._has_reasoning or bool(self.markup)
            yield "markup", ""
        elif text and (found or is_over or not may_become_tag(text)):
            self._is_answer = True

    def _is_text_at_start(self, found: Match) -> bool:
        """Whether a tag begins the answer: a question may have asked for it."""
        if found["wrapper"]:
            return not self._has_reasoning or self._is_mentioned(found[0])
        is_repeated = bool(found["open"]) and self._has_reasoning
        return (is_repeated or bool(found["other"])) and self._is_mentioned(found[0])

    def _is_mentioned(self, tag: str) -> bool:
        return any(tag in text for text in self._mentioned_in)

    def _read_reasoning(self, markup: ReasoningMarkup, is_over: bool) -> ReaderEvents:
        found = reasoning_end(markup).search(self.held)
        if found is None:
            yield from self._pass_on_certain("thinking", is_over, markup.texts[1:3])
            return
        yield from self._pass_on("thinking", found.start())
        self.held = self.held[len(found[0]) :]
        self.markup = None
        self.reasoning = []

    def _pass_on(self, channel: Literal["thinking", "answer"], length: int) -> ReaderEvents:
        """Yield the beginning of what is held as text of a channel."""
        text, self.held = self.held[:length], self.held[length:]
        if channel == "answer":
            self._answer.append(text)
        elif self.reasoning:
            self.reasoning.append(text)
        if text:
            yield channel, text

    def _pass_on_certain(
        self, channel: Literal["thinking", "answer"], is_over: bool, markers: Texts = ()
    ) -> ReaderEvents:
        """Yield what cannot be the beginning of a tag, or of one of the markers."""
        length = len(self.held)
        if not is_over:
            partial = re.search(PARTIAL, self.held) if has_tags(self.held) else None
            length = min(partial.start() if partial else length, length - partial_marker_length(self.held, markers))
        return self._pass_on(channel, length)

    def _read_answer(self, is_over: bool) -> ReaderEvents:
        if has_tags(self.held):
            for found in re.finditer(IN_ANSWER, self.held):
                if not self._is_text_in_answer(found):
                    yield from self._pass_on("answer", found.start())
                    yield from self._leave_text(found, is_over)
                    return
        yield from self._pass_on_certain("answer", is_over)

    def _is_text_in_answer(self, found: Match) -> bool:
        """Whether a tag in the answer is a part of it."""
        if not (found["open"] or found["close"] or found["known"]):
            return found[0].casefold() != self._wrapper_end
        before = "".join(self._answer) + self.held[: found.start()]
        is_text = is_quoted(before) or self._is_mentioned(found[0])
        if found["known"]:
            return is_text
        if found["open"]:
            is_text = is_text or self._has_reasoning or not is_preamble(before)
        self._mentions_tags = self._mentions_tags or is_text
        return self._mentions_tags or self._has_reasoning

    def _leave_text(self, found: Match, is_over: bool) -> ReaderEvents:
        """Read the tag that the held text begins with: it opens reasoning, ends it, or is dropped."""
        after = self.held[len(found[0]) :]
        ends_reasoning = (found["close"] or found["answer"]) and not self._has_reasoning
        if found["open"]:
            self._is_answer = False
        elif ends_reasoning and after.strip():
            self.held = after
            self._is_answer = False
            self._has_reasoning = True
            yield "was thinking", ""
        elif is_over or not ends_reasoning:  # without text behind it, there would be no answer
            self.held = after
            if not found["known"]:
                self._wrapper_end = ""


@cache
def reasoning_end(markup: ReasoningMarkup) -> Pattern:
    """What ends reasoning in tags: the closing tag, or what precedes the answer."""
    close = rf"(?i:{re.escape(markup.close[:-1])} ?{re.escape(markup.close[-1])})"
    return re.compile(rf"{close}|(?={re.escape(markup.header)})" if markup.header else close)


def is_quoted(before: str) -> bool:
    """Whether a text quotes what follows: in code, or behind a quotation mark."""
    line = before.rpartition("\n")[2]
    return line.count("`") % 2 == 1 or line.endswith(QUOTES) or len(re.findall(FENCE, before)) % 2 == 1


def is_preamble(answer: str) -> bool:
    """Whether reasoning may follow the answer so far: a few words, up to the end of a line or of a sentence."""
    return len(answer) <= MAX_PREAMBLE and answer.rstrip(" ").endswith(PREAMBLE_ENDS)


def has_tags(text: str) -> bool:
    """Whether a text may have tags."""
    return any(start in text for start in TAG_STARTS)


def may_become_tag(text: str) -> bool:
    """Whether further text may make a tag of a text."""
    is_begun = text.startswith(TAG_STARTS) and bool(re.match(PARTIAL, text))
    return is_begun or any(tag.startswith(text) for tag in (*OTHER_OPENINGS, *OTHER_HEADERS))


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
