"""The markup of reasoning, a row for each way in which a family of models writes it, and patterns of all of it.

Tags stand before and after the reasoning. In channels, a reply is a sequence of blocks: each has a header, such as
`<|channel|>analysis<|message|>`, whose text names the channel of the block, and most have a marker at their end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cerebrum_cli.core.events import Channel
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
