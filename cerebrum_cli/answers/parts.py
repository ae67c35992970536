"""The values of a reply to a question for several: 26, 40 of "Perimeter: 26. Area: 40."."""

from __future__ import annotations

import re

from cerebrum_cli.answers.plain_text import plain, sentences
from cerebrum_cli.answers.sentence import last_result, values_in
from cerebrum_cli.answers.subject import asked_in
from cerebrum_cli.answers.values import solved
from cerebrum_cli.core.text import Texts

_TASK = re.compile(
    r"(?i)\b(?:calculate|compute|determine|find|give|solve\sfor|state|what(?:\sis|\sare|['’]s)|how\s(?:many|much)(?:\s\w+\sd(?:id|oes|o))?)\s"
    r"(?P<items>.{1,200}?)(?=\s(?:are|be|between|by|did|do|does|each|for|from|get|given|has|have|if|in|is|of|that|were|when|which|will|with)\b"
    r"|[.?!;:]|\Z)"
)
_TOGETHER = re.compile(
    r"(?i)\b(?:altogether|average|combined|difference|in\s(?:all|total)|product|sum|together|total)\b"
)
_AND = re.compile(r",\s(?:and\s)?|\sand\s")
_LABEL = re.compile(r"\A\(?([a-h])\)\s")
_ARTICLE = re.compile(r"(?i)\A(?:an?|both|its|the|their)\s")
_LETTER = re.compile(r"[A-Za-zα-ω]")
_OF_NAME = re.compile(r"\s(?:(?!(?:and|for|in|of|or)\b)\w+\s)?")  # between "34" and "tickets": "adult"
_LONGEST_NAME = 3  # words
_NEAR = 40  # characters between a name and its value


def asks_for_parts(question: str) -> bool:
    """Whether a question asks for several values."""
    return bool(_parts(question))


def values_of_parts(question: str, text: str) -> str | None:
    """The values of all that a question asks for, in its order; None if it asks for one, or one is missing."""
    names = _parts(question)
    if not names:
        return None
    lines = [sentence for line in text.split("\n") for sentence in sentences(plain(line))]
    found = [_value(lines, name, names) for name in names]
    if None in found or _last_value(lines) not in found:  # a total of the parts, say
        return None
    are_letters = all(map(_LETTER.fullmatch, names))
    return ", ".join(
        f"{name} = {value}" if are_letters else str(value) for name, value in zip(names, found, strict=True)
    )


def _parts(question: str) -> Texts:
    """The names of what a question asks for: several, or none."""
    task = _TASK.search(asked_in(question))
    if task is None or _TOGETHER.search(question):
        return ()
    items = _AND.split(task["items"])
    labels = [label[1] if (label := _LABEL.match(item)) else "" for item in items]
    if all(labels) and len(labels) > 1:
        return tuple(f"({label})" for label in labels)
    names = [_ARTICLE.sub("", item.strip(" $*")) for item in items]
    if len(names) < 2 or any(not 0 < len(name.split()) <= _LONGEST_NAME or re.search(r"\d", name) for name in names):
        return ()
    words = [[word for word in name.split() if sum(word in other.split() for other in names) == 1] for name in names]
    return tuple(own[0] for own in words) if all(words) else ()


def _value(lines: list[str], name: str, names: Texts) -> str | None:
    """The last value that a line gives to a name: behind it, or right before it."""
    others = "|".join(re.escape(other) for other in names if other != name)
    named = re.compile(rf"(?i)(?<!\w){re.escape(name)}(?:e?s)?(?!\w)(?P<rest>(?:(?!(?<!\w)(?:{others})(?!\w)).)*)")
    for line in reversed(lines):
        for mention in reversed(list(named.finditer(line))):
            if name.startswith("("):
                return last_result(mention["rest"].strip())
            before = values_in(line[max(0, mention.start() - _NEAR) : mention.start()])
            if before and _OF_NAME.fullmatch(before[-1].behind) and not _LETTER.fullmatch(name):
                return before[-1].text
            behind = values_in(mention["rest"][: 2 * _NEAR].removeprefix(" = "))
            if behind and behind[0].start <= _NEAR:
                return solved(behind[0].text)
    return None


def _last_value(lines: list[str]) -> str | None:
    return next(filter(None, map(last_result, reversed(lines))), None)
