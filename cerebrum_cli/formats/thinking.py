"""Markup of reasoning and answers: the families of models that have it, and how it is found in a reply.

A tag whose name speaks of thinking opens reasoning up to its closing tag. Everything else is in two tables: of the
families, as their templates write it, and of what each marker does in a reply. Between a marker that begins a header
and the next one is the header's text, such as `analysis` or `assistant to=user`, which says what follows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cerebrum_cli.core.events import Channel


@dataclass(frozen=True, slots=True)
class ReasoningMarkup:
    """The markup of a model's reasoning: `open` before it, `close` after it, `header` before the answer, if any.

    With `own_lines`, the reasoning is on lines of its own, and a blank line precedes the answer. `final` is the header
    behind this reasoning, where that is another one.
    """

    open: str
    close: str
    header: str = ""
    own_lines: bool = False
    final: str = ""

    def wrap(self, reasoning: str) -> str:
        """The reasoning with its markup, as it precedes an answer."""
        text = self.open + reasoning
        if self.own_lines:
            text = f"{self.open}\n{reasoning}"
        return text + self.ending(text)

    @property
    def end_pattern(self) -> str:
        """A regular expression of what ends the reasoning: of a block, any end and any other header."""
        if self.close in BLOCK_ENDS:
            return BLOCK_END
        if self.header:
            return any_of((self.close, self.header))
        return rf"(?i:{re.escape(self.close[:-1])} ?{re.escape(self.close[-1])})"

    def ending(self, text: str = "", sentence: str = "") -> str:
        """Markup that ends the reasoning after a text, which may include `open`, and begins the answer.

        A closing `sentence` is a paragraph of its own before it.
        """
        if sentence:
            return missing_breaks(text, 2) + sentence + self.ending(sentence)
        if not self.own_lines:
            return self.close + (self.final or self.header)
        if text.rstrip("\n").endswith(self.open):  # no reasoning leaves a blank line
            return missing_breaks(text, 2) + self.close + "\n\n"
        return missing_breaks(text, 1) + self.close + "\n\n"


def missing_breaks(text: str, wanted: int) -> str:
    """The line breaks to add to a text that is to end with this many."""
    breaks = len(text) - len(text.rstrip("\n"))
    return "\n" * (wanted - breaks)


HARMONY_FINAL = "<|start|>assistant<|channel|>final<|message|>"
SOLAR_FINAL = "<|begin|>assistant<|content|>"
BEGIN_RESPONSE = "[BEGIN FINAL RESPONSE]"
TAGS = ("think", "thinking", "seed:think", "mm:think", "think:opensource", "thought", "thoughts", "reasoning")
HARMONY = ReasoningMarkup(
    "<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>", final=HARMONY_FINAL
)
GEMMA = ReasoningMarkup("<|channel>thought", "<channel|>")
MEDGEMMA = ReasoningMarkup("<unused94>thought", "<unused95>")
KIMI = ReasoningMarkup("<|open|>think<|sep|>", "<|close|>think<|sep|>", "<|open|>response<|sep|>")
MUSE = ReasoningMarkup("to=self<|message|>", "<|eom|>", "<|start|>assistant to=user<|message|>")
REASONING_MARKUPS = (
    *(ReasoningMarkup(f"<{name}>", f"</{name}>", own_lines=True) for name in TAGS),
    *(ReasoningMarkup(f"[{name}]", f"[/{name}]") for name in ("THINK", "THINKING", "REASONING")),
    ReasoningMarkup("◁think▷", "◁/think▷"),
    GEMMA,
    MEDGEMMA,
    ReasoningMarkup("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
    ReasoningMarkup("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>"),
    HARMONY,
    ReasoningMarkup("<|start|>assistant<|channel|>analysis<|message|>", "<|end|>", HARMONY_FINAL),
    ReasoningMarkup("<|inner_prefix|>", "<|inner_suffix|>"),  # of Apertus
    ReasoningMarkup("<|think|>", "<|end|>", SOLAR_FINAL),  # of Solar Open
    ReasoningMarkup("<|begin|>assistant<|think|>", "<|end|>", "<|content|>", final=SOLAR_FINAL),
    KIMI,
    MUSE,
    ReasoningMarkup("<|start|>assistant to=self<|message|>", "<|eom|>", "to=user<|message|>", final=MUSE.header),
    ReasoningMarkup("Here are my reasoning steps:", BEGIN_RESPONSE),  # of Apriel
)

# The last sentence of reasoning that is ended early, by how names of architectures begin.
CLOSING_SENTENCES = {
    "qwen3": "Considering the limited time by the user, I have to give the solution based on the thinking directly"
    " now.",  # arXiv:2505.09388, section 4.4
}


def closing_sentence(architecture: str) -> str:
    for name, text in CLOSING_SENTENCES.items():
        if architecture.startswith(name):
            return text
    return ""


def open_markup(prompt_end: str, markups: tuple[ReasoningMarkup, ...]) -> ReasoningMarkup | None:
    """The markup of reasoning that a prompt leaves open, as some templates do; None if there is none."""
    end = prompt_end.rstrip()
    for markup in markups:
        if end.endswith(markup.open):
            return markup
    return None


# How a reply is read.

Effect = Literal["open", "close", "header", "end", "answer", "wrapper", "dropped"]
HEADERS = {  # what begins a header, with the markup of the reasoning that may follow
    "<|channel|>": HARMONY,
    "<|start|>": HARMONY,
    "<|begin|>": HARMONY,
    "<|channel>": GEMMA,
    "<unused94>": MEDGEMMA,
    "<|open|>": KIMI,
}
BLOCK_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|eom|>", "<|/think|>", KIMI.close, "<channel|>", "<unused95>")
ENDS = ("<|eot|>", "<|flush|>", "<|END_RESPONSE|>", "<|END_TEXT|>", "<|end_of_solution|>", "[END FINAL RESPONSE]")
ANSWER_STARTS = ("<|content|>", "<|START_RESPONSE|>", "<|START_TEXT|>", "<|begin_of_solution|>", BEGIN_RESPONSE)
OPENINGS = {
    markup.open: markup
    for markup in REASONING_MARKUPS
    if not (markup.own_lines or markup.open.startswith((*HEADERS, "assistant", "analysis", "to=")))
}
MARKERS: Mapping[str, Effect] = {
    **dict.fromkeys(HEADERS, "header"),
    **dict.fromkeys((*BLOCK_ENDS, *ENDS), "end"),
    **dict.fromkeys(OPENINGS, "open"),
    **{markup.close: "close" for markup in OPENINGS.values() if markup.close not in BLOCK_ENDS},
    "<|close|>response<|sep|>": "end",
    **dict.fromkeys((GEMMA.close, MEDGEMMA.close, KIMI.close), "close"),
    **dict.fromkeys(ANSWER_STARTS, "answer"),
    **dict.fromkeys(("<|begin_of_box|>", "<|end_of_box|>"), "dropped"),
}
MESSAGES: Mapping[str, Channel | None] = {  # what ends a header; None if its text decides what follows
    "<|message|>": None,
    "<|sep|>": None,
    "<|content|>": "answer",
    "<|think|>": "thinking",
}
ANSWERS = ("final", "answer", "response", "assistant", "user", "commentary", "to", "")  # first words of headers
THOUGHTS = ("analysis", "thought", "thoughts", "think", "thinking", "reasoning", "reflection")
MAX_HEADER = 120  # characters

NAME = (
    r"(?i:(?:[\w.-]+[:_])?(?:think|thinking|thoughts?|reason(?:ing)?|reflection|analysis|rationale|scratchpad"
    r"|monologue|cot)(?:[:_][\w.-]+)?)"
)
TAG = rf"[<◁]\|?/?{NAME} ?\|?[>▷]"
WRAPPER = r"(?i:<(?:(?:final_)?(?:answer|response|reply|result|output|solution)|final)>)"


def any_of(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))


MARKER = f"(?P<known>{any_of(MARKERS)})|(?P<wrapper>{WRAPPER})|{TAG}"
BLOCK_END = any_of((*HEADERS, *BLOCK_ENDS, "<|content|>"))
# A line break ends a header unless something follows that may still end it.
HEADER_END = rf"\s*(?P<message>{any_of(MESSAGES)})|(?<=[\w.])\n(?=\s*(?:[^\s<]|<[^|cu]))|{BLOCK_END}"
PARTIAL_MARKER = r"<\|close\|>\w*(?:<\|?\w*\|?)?\Z|[<◁][/|]{0,2}(?:[\w.:|-]{1,40} ?)?\Z|\[/?[A-Z ]{0,22}\Z"
WORDS = ("assistant", "analysis", "commentary", "final", "user")
HEADLESS = rf"(?:{any_of(WORDS)})?(?:\s?to=[\w.]+)?\s?(?=<\|(?:channel|message)\|>)"  # a header without its beginning
PARTIAL_HEADLESS = rf"(?:{any_of(WORDS)})?(?:\s?t(?:o(?:=[\w.]*)?)?)?(?:\s?(?:<(?:\|\w*\|?)?)?)?"


class Marker(NamedTuple):
    """A marker in a text: its place, what it does, and the markup of reasoning that begins there, or may begin.

    `footer` ends the answer that it begins.
    """

    start: int
    end: int
    effect: Effect
    markup: ReasoningMarkup = HARMONY
    footer: str = ""


def is_markup(token: str) -> bool:
    """Whether the text of a token is a marker of a reply, or a part of one."""
    known = (text for markup in REASONING_MARKUPS for text in (markup.open, markup.close, markup.header, markup.final))
    return any(token in text for text in (*known, *MESSAGES)) or bool(re.fullmatch(MARKER, token))


def may_have_marker(text: str) -> bool:
    """Whether a text has a character that a marker inside it begins with."""
    return "<" in text or "[" in text or "◁" in text


def find_markers(text: str) -> Iterator[Marker]:
    return map(_describe, re.finditer(MARKER, text))


def _describe(found: re.Match[str]) -> Marker:
    text = found[0]
    start, end = found.span()
    if found["known"]:
        return Marker(start, end, MARKERS[text], HEADERS.get(text) or OPENINGS.get(text, HARMONY))
    if found["wrapper"]:
        return Marker(start, end, "wrapper", footer=f"</{text[1:].casefold()}")
    if re.search("/|end_|_end", text):
        return Marker(start, end, "close")
    close = text.replace(" ", "").replace("begin_", "end_").replace("_start", "_end")
    if close == text.replace(" ", ""):
        close = re.sub(r"\A.\|?", r"\g<0>/", close)
    return Marker(start, end, "open", ReasoningMarkup(text, close, own_lines=text[0] == "<"))


def marker_at_start(text: str) -> Marker | None:
    """The marker that a text starts with, or a header that lacks its beginning."""
    if found := re.match(MARKER, text):
        return _describe(found)
    return Marker(0, 0, "header") if re.match(HEADLESS, text) else None


def may_start_marker(text: str, headless: bool) -> bool:
    """Whether further text may make a marker of this one, or a header without its beginning."""
    if any(marker.startswith(text) for marker in MARKERS) or re.fullmatch(PARTIAL_MARKER, text):
        return True
    is_word = any(word.startswith(text) for word in WORDS)
    return headless and (is_word or bool(re.fullmatch(PARTIAL_HEADLESS, text)))


def read_header(text: str, marker: Marker, is_over: bool) -> tuple[int, Channel] | None:
    """Where the block begins whose header a marker begins, and its channel; None before its end is known.

    Without a message, it begins behind the name of the channel, or at the marker, which is text then.
    """
    start, ending = find_header_end(text, marker.end)
    if not (ending or is_over or len(text) > MAX_HEADER):
        return None
    first = re.compile(r"\s*(\w*)(?:\s*<\|constrain\|>\w*)?").match(text, start)
    assert first
    name = first[1].casefold().removeprefix("assistant").partition("_")[0]
    if ending and ending["message"]:
        header = text[marker.start : ending.start()]
        return ending.end(), MESSAGES[ending["message"]] or channel_of(name, header)
    is_line = ending is not None and ending[0] == "\n" and ending.start() == first.end()
    if is_line or names_channel(name, text[first.end() :]):
        return first.end(), channel_of(name, text[marker.start : first.end()])
    if marker.markup in (GEMMA, MEDGEMMA):
        return start, "thinking"
    return marker.start, "answer"


def find_header_end(text: str, start: int) -> tuple[int, re.Match[str] | None]:
    """Where the last of several headers in a row begins, from a place in a text, and what ends it."""
    pattern = re.compile(HEADER_END)
    ending = pattern.search(text, start)
    while ending and ending[0] in HEADERS:
        start = ending.end()
        ending = pattern.search(text, start)
    return start, ending


def names_channel(name: str, rest: str) -> bool:
    """Whether the first word of a header, before the rest of the text, is the name of a channel."""
    is_word = name == "thought" or not rest.strip() or rest[0].isspace()
    return is_word and name in (*ANSWERS, *THOUGHTS)


def channel_of(name: str, header: str) -> Channel:
    """The channel of a block by the first word of its header: what is addressed to someone else is no answer."""
    recipient = re.search(r"to=(\w+)", header)
    is_for_user = recipient is None or recipient[1] in ("user", "assistant")
    return "answer" if name in ANSWERS and is_for_user else "thinking"
