"""What a reply states as its answer: in a box, behind a mark or a lead-in, as a key of JSON, or in a bold last line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from cerebrum_cli.answers.passages import LONGEST, lines, sentences

STATED = ("box", "key", "mark", "tag", "lead-in", "bold line", "first letter", "first word")  # rules
# What leads in an answer, by language; a colon or a verb of being follows, or a line break.
LEAD_INS = {
    "en": r"[Aa]nswers?|ANSWER|[Oo]ption|[Cc]hoice",
    "de": r"[Aa]ntwort|[Ll]ösung",
    "fr": r"[Rr]éponse(?:\s(?:finale|correcte))?",
    "es": r"[Rr]espuesta(?:\s(?:final|correcta))?",
    "it": r"[Rr]isposta(?:\s(?:finale|corretta))?",
    "pt": r"[Rr]esposta(?:\s(?:final|correta))?",
    "ru": r"[Оо]твет",
    "zh": r"答案|正确选项",
    "ja": r"答え|正解",
}
_BEING = r"is|are|was|would\sbe|will\sbe|must\sbe|should\sbe|ist|lautet|sind|est|es|è|é|是|は|为|это"
_TO_WHAT = r"\s(?:(?:to|of|for)\s(?:the|this|your)|in)\s\w+(?:\s\w+)?"  # "to the question", "in meters"
_RULES = (  # the name of a rule, what precedes an answer, and what ends it
    (
        "mark",
        re.compile(
            r"(?m)^[ \t]*####\s+(?!#)(?:\**(?:Final\s)?Answer:?\**\s*)?(?=\S[^\n]*\s*\Z|[-$€£]*\d[\d,.]*[^\w\n]*\n)"
        ),
        "\n",
    ),
    ("tag", re.compile(r"<answer>\s*(?=\S)"), "<"),
    (
        "lead-in",
        re.compile(
            rf"(?:{'|'.join(LEAD_INS.values())})(?:{_TO_WHAT})?[*_)]*\s?"
            rf"(?:(?:\s?(?:{_BEING}|IS)(?!\w)(?:\s?:)?|[:：=]|\((?=\"))[*\s]*|\n+(?:[=-]+\n+)?)(?=\S)(?!(?:not(?!.{{0,80}}\bbut\b)|as\sfollows|yours)\b)"
        ),
        "\n",
    ),
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*)\}")
_BETWEEN_BOXES = re.compile(r"[\s,$]*(?:and|or)?[\s,$]*")
_KEY = re.compile(r"""["']answer["']\s*:\s*(?=\S)""")
_NOT_ASSERTED = re.compile(
    r"(?i)(?:\b(?:wrong|incorrect|false|whether|if|can(?:no|')t|another|other)\s(?:the\s|a\s)?[*_]*|\w)\Z"
)
_BOLD = re.compile(r"[#>•\s-]*\*\*((?!\*\*).{1,200}?)(?<!:)\*\*[.!]?")


class Answer(NamedTuple):
    """An answer as the reply has it, and the rule that found it."""

    text: str
    rule: str

    @property
    def is_stated(self) -> bool:
        return self.rule in STATED


def statements(reply: str) -> Iterator[Answer]:
    """What a reply states, the strongest kind first, and of each kind the last first."""
    boxes = list(_BOX.finditer(reply))
    if boxes:
        first = len(boxes) - 1
        while first and _BETWEEN_BOXES.fullmatch(reply, boxes[first - 1].end(), boxes[first].start()):
            first -= 1
        yield Answer(", ".join(box[1] for box in boxes[first:]), "box")
    for key in reversed(list(_KEY.finditer(reply))):
        with suppress(ValueError):
            value, _ = json.JSONDecoder().raw_decode(reply[key.end() :])
            yield Answer(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), "key")
    for rule, pattern, end in _RULES:
        for match in reversed(list(pattern.finditer(reply))):
            if not _NOT_ASSERTED.search(reply, max(0, match.start() - 40), match.start()):
                rest = reply[match.end() : match.end() + LONGEST]
                end = "\n\n" if rest.startswith(("\\[\n", "$$\n")) else end
                text = rest.partition(end)[0].strip()
                if text.count("**") % 2:  # it begins in the lead-in
                    text = text.replace("**", "", 1)
                if "\n" not in match[0] or len(sentences(text)) == 1:  # not a heading over an explanation
                    yield Answer(text, rule)
    last = lines(reply)[-1:] or [""]
    if bold := _BOLD.fullmatch(last[0]):
        yield Answer(bold[1], "bold line")
