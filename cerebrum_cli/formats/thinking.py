"""Markup of reasoning and answers: the families of models that have it, and how it is found in a reply.

A tag whose name speaks of thinking opens reasoning up to its twin. Everything else is in two tables: of the families,
as their templates write it, and of what each marker does in a reply. Between a marker that begins a header and the next
one is the header's text, such as `analysis` or `assistant to=user`, which says what follows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
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
        if self.close.startswith((*BLOCK_ENDS, "<|close|>")):
            return BLOCK_END
        return f"(?i:{re.escape(self.close)})"

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
    ReasoningMarkup("[THINK]", "[/THINK]"),
    ReasoningMarkup("◁think▷", "◁/think▷"),
    GEMMA,
    MEDGEMMA,
    ReasoningMarkup("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
    ReasoningMarkup("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>"),
    HARMONY,
    ReasoningMarkup("<|start|>assistant<|channel|>analysis<|message|>", "<|end|>", HARMONY_FINAL),
    *(  # without its beginning
        ReasoningMarkup(f"{start}analysis<|message|>", "<|end|>", f"{start}final<|message|>", final=HARMONY_FINAL)
        for start in ("", "assistant<|channel|>")
    ),
    ReasoningMarkup("<|inner_prefix|>", "<|inner_suffix|>"),  # of Apertus
    ReasoningMarkup("<|think|>", "<|end|>", SOLAR_FINAL),  # of Solar Open
    ReasoningMarkup("<|begin|>assistant<|think|>", "<|end|>", "<|content|>", final=SOLAR_FINAL),
    KIMI,
    MUSE,
    ReasoningMarkup("<|start|>assistant to=self<|message|>", "<|eom|>", "to=user<|message|>", final=MUSE.header),
    ReasoningMarkup("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),  # of Apriel
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
    "<|close|>": KIMI,
}
BLOCK_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|eom|>", "<channel|>", "<unused95>")
MARKERS: Mapping[str, Effect] = {
    **dict.fromkeys(HEADERS, "header"),
    **dict.fromkeys((*BLOCK_ENDS, "<|END_RESPONSE|>", "<|end_of_solution|>", "[END FINAL RESPONSE]"), "end"),
    **dict.fromkeys(("<|content|>", "<|START_RESPONSE|>", "<|begin_of_solution|>", "[BEGIN FINAL RESPONSE]"), "answer"),
    **dict.fromkeys(("<channel|>", "<unused95>", "[/THINK]", "<|END_THINKING|>"), "close"),
    **dict.fromkeys(("<|inner_suffix|>", "<|end_of_thought|>"), "close"),
    **dict.fromkeys(("<|begin_of_box|>", "<|end_of_box|>"), "dropped"),
}
MESSAGES: Mapping[str, Channel | None] = {  # what ends a header; None if its text decides what follows
    "<|message|>": None,
    "<|sep|>": None,
    "\n": None,
    "<|content|>": "answer",
    "<|think|>": "thinking",
}
ANSWERS = ("final", "response", "assistant", "user", "commentary", "to")  # first words of headers
NAME = r"(?i:(?:[\w.-]+[:_])?(?:think|thinking|thoughts?|reasoning|reflection|scratchpad|cot)(?:[:_][\w.-]+)?)"
WRAPPER = r"(?i:<(?:(?:final_)?(?:answer|response|output|solution)|final)>)"


def any_of(texts: Iterable[str]) -> str:
    return "|".join(re.escape(text) for text in texts)


MARKER = rf"{any_of(MARKERS)}|<(?P<slash>/?){NAME}>|◁(?P<other>/?){NAME}▷|(?P<wrapper>{WRAPPER})"
BLOCK_END = any_of((*HEADERS, *BLOCK_ENDS))
HEADER_END = f"{any_of(MESSAGES)}|{BLOCK_END}"
BEGUN = r"[<◁][/|]?[\w.:|-]{0,40}\Z|\[/?[A-Z ]{0,22}\Z"  # where a marker may have begun that the text does not end


class Marker(NamedTuple):
    """A marker in a text: its place, what it does, and the markup of reasoning that begins there, or may begin.

    `footer` ends the answer that it begins.
    """

    start: int
    end: int
    effect: Effect
    markup: ReasoningMarkup = REASONING_MARKUPS[0]
    footer: str = ""


@cache
def is_markup(token: str) -> bool:
    """Whether the text of a token is a marker of a reply, or a part of one."""
    known = (text for markup in REASONING_MARKUPS for text in (markup.open, markup.close, markup.header, markup.final))
    return any(token in text for text in (*known, *MESSAGES)) or bool(re.fullmatch(MARKER, token))


def find_markers(text: str) -> Iterator[Marker]:
    return map(_describe, re.finditer(MARKER, text))


def _describe(found: re.Match[str]) -> Marker:
    text = found[0]
    start, end = found.span()
    if text in MARKERS:
        return Marker(start, end, MARKERS[text], HEADERS.get(text, HARMONY))
    if found["wrapper"]:
        return Marker(start, end, "wrapper", footer=f"</{text[1:]}")
    if found["slash"] or found["other"]:
        return Marker(start, end, "close")
    return Marker(start, end, "open", ReasoningMarkup(text, f"{text[0]}/{text[1:]}", own_lines=text[0] == "<"))


def marker_at_start(text: str, markups: Iterable[ReasoningMarkup]) -> Marker | None:
    """The longest marker that a text starts with: of one of these families, or any other."""
    found = re.match(MARKER, text)
    candidates = [_describe(found)] if found else []
    for markup in markups:
        if markup.header and text.startswith(markup.header):
            candidates.append(Marker(0, len(markup.header), "answer"))
        if text.startswith(markup.open):
            candidates.append(Marker(0, len(markup.open), "open", markup))
    return max(reversed(candidates), key=lambda marker: marker.end, default=None)


def may_start_marker(text: str, markups: Iterable[ReasoningMarkup]) -> bool:
    """Whether further text may make a marker of this one."""
    known = [text for markup in markups for text in (markup.open, markup.header)]
    return any(marker.startswith(text) for marker in (*known, *MARKERS)) or bool(re.fullmatch(BEGUN, text))


def read_header(text: str, marker: Marker) -> tuple[int, Channel | None] | None:
    """Where the header that a marker begins has ended, and the channel of what follows; None before its end.

    A block without a message begins behind the first word. The channel is None behind the end of a block.
    """
    found = re.compile(HEADER_END).search(text, marker.end)
    if found is None:
        return None
    if found[0] in HEADERS:
        return read_header(text, Marker(*found.span(), "header"))
    if text.startswith("<|close|>", marker.start):
        return found.end(), None
    first = re.compile(r"\s*(\w*)").match(text, marker.end)
    assert first
    if found[0] not in MESSAGES:
        return first.end(), channel_of(first[1], "")
    header = text[marker.end : found.start()]
    return found.end(), MESSAGES[found[0]] or channel_of(first[1], header)


def channel_of(name: str, header: str) -> Channel:
    """The channel of a block by the first word of its header: what is addressed to someone else is no answer."""
    recipient = re.search(r"to=(\w+)", header)
    is_for_user = recipient is None or recipient[1] == "user"
    return "answer" if name.casefold() in ANSWERS and is_for_user else "thinking"
