"""The markup of reasoning of each family of models, and markers of reasoning and answers: what each does in a reply.

A reasoning tag, such as `<think>`, opens reasoning up to its closing tag; the other markers are in a table. Between a
marker that begins a header and the next one is the header's text, such as `analysis` or `assistant to=user`, which
determines what follows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from cerebrum_cli.core.events import Channel
from cerebrum_cli.core.text import Match, Texts
from cerebrum_cli.formats.prompt_format import THINK, ReasoningMarkup

HARMONY_FINAL = "<|start|>assistant<|channel|>final<|message|>"
SOLAR_FINAL = "<|begin|>assistant<|content|>"
BEGIN_RESPONSE = "[BEGIN FINAL RESPONSE]"
TAGS = ("thinking", "seed:think", "mm:think", "think:opensource", "thought", "thoughts", "reasoning")
HARMONY = ReasoningMarkup(
    "<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>", final=HARMONY_FINAL
)
GEMMA = ReasoningMarkup("<|channel>thought", "<channel|>")
MEDGEMMA = ReasoningMarkup("<unused94>thought", "<unused95>")
KIMI = ReasoningMarkup("<|open|>think<|sep|>", "<|close|>think<|sep|>", "<|open|>response<|sep|>")
MUSE = ReasoningMarkup("to=self<|message|>", "<|eom|>", "<|start|>assistant to=user<|message|>")
REASONING_MARKUPS = (  # of the families that have it, as their templates write it
    THINK,
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

Effect = Literal["open", "close", "header", "end", "answer", "wrapper", "dropped"]
HEADERS = {  # what begins a header, with the markup of the reasoning that mostly follows
    "<|channel|>": HARMONY,
    "<|start|>": HARMONY,
    "<|begin|>": HARMONY,
    "<|channel>": GEMMA,
    "<unused94>": MEDGEMMA,
    "<|open|>": KIMI,
}
BLOCK_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|eom|>", "<|/think|>")
BLOCK_CLOSES = (KIMI.close, GEMMA.close, MEDGEMMA.close)
EFFECTS: Mapping[Effect, Texts] = {
    "header": tuple(HEADERS),
    "open": ("<|think|>", "<|inner_prefix|>", "Here are my reasoning steps:"),
    "close": (*BLOCK_CLOSES, "<|inner_suffix|>"),
    "end": (
        *(*BLOCK_ENDS, "<|eot|>", "<|flush|>", "<|END_RESPONSE|>", "<|END_TEXT|>", "<|end_of_solution|>"),
        *("[END FINAL RESPONSE]", "<|close|>response<|sep|>"),
    ),
    "answer": ("<|content|>", "<|START_RESPONSE|>", "<|START_TEXT|>", "<|begin_of_solution|>", BEGIN_RESPONSE),
    "dropped": ("<|begin_of_box|>", "<|end_of_box|>"),
}
MARKERS = {text: effect for effect, texts in EFFECTS.items() for text in texts}
MESSAGES: Mapping[str, Channel | None] = {  # what ends a header; None if its text decides what follows
    "<|message|>": None,
    "<|sep|>": None,
    "<|content|>": "answer",
    "<|think|>": "thinking",
}
ANSWERS = ("final", "answer", "response", "assistant", "user", "commentary", "to", "")  # first words of headers
THOUGHTS = ("analysis", "thought", "thoughts", "think", "thinking", "reasoning", "reflection")
UNNAMED = ("<|channel>", "<unused94>")  # what begins a block of reasoning even without a name
MAX_HEADER = 120  # characters
MARKER_START = r"[<\[◁]"  # a character that a marker inside a text begins with
MARKER_BEGINNING = rf"{MARKER_START}|Here are my "  # of any marker: most texts have none, which is found faster

NAME = (
    r"(?i:(?:[\w.-]+[:_])?(?:think|thinking|thoughts?|reason(?:ing)?|reflection|analysis|rationale|scratchpad"
    r"|monologue|cot)(?:[:_][\w.-]+)?)"
)
TAG = rf"[<◁]\|?/?{NAME} ?\|?[>▷]|\[/?(?:THINK(?:ING)?|REASONING)\]"
WRAPPER = r"(?i:<(?:(?:final_)?(?:answer|response|reply|result|output|solution)|final)>)"

# What follows a tag that a sentence is about: no reasoning begins with these.
VERBS = """
is are was were isn't means marks denotes indicates signals represents refers stands serves opens starts
begins closes ends wraps encloses delimits has can may should will must and or tag tags token tokens marker markers
element elements ist sind bedeutet markiert kennzeichnet und oder est sont signifie indique marque et ou es son
significa indica marca y è sono é são e это является и
"""
PARTICLES = r"是(?![的不否])|标签|標籤|表示|は(?![いじ])|タグ|[는은]\s|태그"


def any_of(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))


MARKER = f"{any_of(MARKERS)}|(?P<wrapper>{WRAPPER})|{TAG}"
BLOCK_END = any_of((*HEADERS, *BLOCK_ENDS, *BLOCK_CLOSES, "<|content|>"))
# A line break ends a header unless something follows that may still end it.
HEADER_END = rf"\s*(?P<message>{any_of(MESSAGES)})|(?<=[\w.])\n(?=\s*(?:[^\s<]|<[^|cu]))|{BLOCK_END}"
PUNCTUATION = r"[,;:!?)\]*\u2014\u2013/]|\.(?!\.)|-\w|[ \t]*(?:\.{3}|\u2026)[ \t]*[<\[\u25c1]"
MENTION = re.compile(rf"(?i:{PUNCTUATION}|[ \t]+(?:{any_of(VERBS.split())})\b|[ \t]*(?:{PARTICLES}))")
PARTIAL_MENTION = re.compile(r"[ \t]*(?:\.{0,3}|[-\u2026是は는은标標表タ태])[ \t]*|[ \t]+[\w']{1,14}")
PARTIAL_MARKER = r"<\|close\|>\w*(?:<\|?\w*\|?)?\Z|[<◁][/|]{0,2}(?:[\w.:|-]{1,40} ?)?\Z|\[/?[A-Z ]{0,22}\Z"
FIRST_WORD = r"\s*(\w*)(?:\s*<\|constrain\|>\w*)?"
WORDS = ("assistant", "analysis", "commentary", "final", "user")
HEADLESS = rf"(?:{any_of(WORDS)})?(?:\s?to=[\w.]+)?\s?(?=<\|(?:channel|message)\|>)"  # a header without its beginning
PARTIAL_HEADLESS = rf"(?:{any_of(WORDS)})?(?:\s?t(?:o(?:=[\w.]*)?)?)?(?:\s?(?:<(?:\|\w*\|?)?)?)?"


class Marker(NamedTuple):
    """A marker in a text: its place, what it does, and the markup of the reasoning that it opens.

    `footer` ends the answer that it begins.
    """

    start: int
    end: int
    effect: Effect
    markup: ReasoningMarkup = HARMONY
    footer: str = ""


def is_markup(token: str) -> bool:
    """Whether the text of a token is a marker of a reply, or a part of one."""
    known = (text for markup in REASONING_MARKUPS for text in markup.texts)
    return any(token in text for text in (*known, *MESSAGES)) or bool(re.fullmatch(MARKER, token))


def find_markers(text: str) -> Iterator[Marker]:
    if not re.search(MARKER_BEGINNING, text):
        return iter(())
    return map(_describe, re.finditer(MARKER, text))


def _describe(found: Match) -> Marker:
    text = found[0]
    start, end = found.span()
    if found["wrapper"]:
        return Marker(start, end, "wrapper", footer=f"</{text[1:].casefold()}")
    effect = MARKERS.get(text)
    if effect is None:
        effect = "close" if re.search("/|(?i:end)_|_end", text) else "open"
    if effect == "open":
        return Marker(start, end, effect, markup_of(text))
    return Marker(start, end, effect)


def markup_of(opening: str) -> ReasoningMarkup:
    """The markup of reasoning that a marker opens; a tag that is in no family has a similar tag at the end."""
    for markup in REASONING_MARKUPS:
        if markup.open == opening:
            return markup
    tag = opening.replace(" ", "")
    close = re.sub("begin|start", "end", tag)
    if close == tag:
        close = re.sub(r"\A.\|?", r"\g<0>/", tag)
    return ReasoningMarkup(opening, close, own_lines=tag[0] == "<")


def end_pattern(markup: ReasoningMarkup) -> str:
    """A regular expression of what ends the reasoning: of a block, any end and any other header."""
    if re.fullmatch(BLOCK_END, markup.close):
        return BLOCK_END
    if markup.header:
        return any_of((markup.close, markup.header))
    return rf"(?i:{re.escape(markup.close[:-1])} ?{re.escape(markup.close[-1])})"


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


def read_header(text: str, start: int, is_over: bool) -> tuple[int, Channel] | None:
    """Find the start and channel of the block after a header; None while the header is incomplete.

    `start` is the end of the header's first marker. Without a message, the block begins behind the name of the channel,
    or at the marker, which is text then.
    """
    start, ending = find_header_end(text, start)
    if not (ending or is_over or len(text) > MAX_HEADER):
        return None
    first = re.compile(FIRST_WORD).match(text, start)
    assert first
    name = first[1].casefold().removeprefix("assistant").partition("_")[0]
    if ending and ending["message"]:
        return ending.end(), MESSAGES[ending["message"]] or channel_of(name, text[: ending.start()])
    is_line = ending is not None and ending[0] == "\n" and ending.start() == first.end()
    if is_line or names_channel(name, text[first.end() :]):
        return first.end(), channel_of(name, text[: first.end()])
    if text.startswith(UNNAMED):
        return start, "thinking"
    return 0, "answer"


def markup_after(header: str) -> ReasoningMarkup:
    """The markup of the reasoning after a header: of a known one, or of those that begin with the same marker."""
    for markup in REASONING_MARKUPS:
        if markup.open in header:
            return markup
    marker = header[: header.find(">") + 1]
    return HEADERS.get(marker, HARMONY)


def find_header_end(text: str, start: int) -> tuple[int, Match | None]:
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


def closing_sentence(architecture: str) -> str:
    for name, text in CLOSING_SENTENCES.items():
        if architecture.startswith(name):
            return text
    return ""


def mentions_markup(template: str, markup: ReasoningMarkup) -> bool:
    """Whether a chat template has the markup; the end alone suffices for tags: others may also end turns."""
    return markup.open in template or (markup.own_lines and markup.close in template)


class SpelledReasoning(NamedTuple):
    """A reply's text that begins with reasoning in markup: the parts of the text, with all white space."""

    opening: str
    reasoning: str
    closing: str
    answer: str

    def around(self, reasoning: str) -> str:
        """Other reasoning in this markup."""
        return self.opening + reasoning + self.closing


def split_reasoning(text: str, markups: Iterable[ReasoningMarkup]) -> SpelledReasoning | None:
    """Split a reply that begins with reasoning in one of the markups, which may be unfinished; None for any other."""
    for markup in markups:
        before, opening, rest = text.partition(markup.open)
        if opening and not before.strip() and not MENTION.match(rest):
            return SpelledReasoning(before + opening, *rest.partition(markup.close))
    return None
