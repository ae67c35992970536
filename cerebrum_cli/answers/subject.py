"""The value that a reply gives to what its question asks for, if it then checks, explains, contrasts or supposes.

"Tom has 54 apples in all; he started with 12" has the words of "How many apples does Tom have?" in its first clause:
so 54 counts, not the last number. What concludes something behind it ("so 5 are left", "60 + 42 = 102") is looked at
as ever, and a number of the question itself is no answer to it.
"""

from __future__ import annotations

import re

from cerebrum_cli.answers.plain_text import plain, sentences, trimmed
from cerebrum_cli.answers.sentence import result, values_in
from cerebrum_cli.answers.words import stems

_EXPLAINS = (
    r"that\sis|i\.e\.,?|in\sother\swords,?|das\sheißt|as|because|including|of\swh(?:ich|om)|since|(?:even\s|al)?though|weil|obwohl|denn|darunter|dont|parce\sque|porque"
    r"|aunque"
)
_CLAUSE = re.compile(
    rf"(?i)(?:;\s|:\s|\s(?:[–—]|-(?=\s[^\W\d_]{{2}}))\s|\s\((?=[^\W\d_]{{2}})|,?\s(?:({_EXPLAINS})|while|whereas|but|not|rather\sthan"
    r"|davon|aber|mais|pero)\s)"
)
_CONCLUDES = re.compile(
    r"(?i)[=≈]|\b(?:so|thus|hence|therefore|then|now|finally|after|adding|subtracting|multiplying|dividing|combined|plus|minus|times|gives\s\d+|altogether|total|giving|leaving"
    r"|which\s(?:gives|leaves|makes)"
    r"|daher|also|folglich|insgesamt|donc|alors|entonces)\b"
)
# Words of a question that no answer repeats.
_NOT_REPEATED = re.compile(
    r"(?i)\b(?:combien|cuánt\w+|fast|far|find|give|heavy|high|how|long|many|much|old|tall|viele|when|why|wie|in\s[a-z]+(?:/[a-z]+)?(?=\W*\Z))\b"
)
# Of several amounts, these words of a question say which counts.
_WHICH = (
    re.compile(r"(?i)\b(?:after|end|finally|left|now|over|remain\w*|still)\b"),
    re.compile(r"(?i)\b(?:apiece|average|each|every|per)\b"),
)
_HEADLINE = re.compile(
    r"\s*(?:\*\*(?P<bold>[^*\n]+(?<![.:)]))\*\*(?:[.:!]?\s*\n|[.!]\s(?!.*\*\*\d))|(?P<plain>[^\n]{1,60})\n\s*\n)"
)
_ADDS_UP = re.compile(r"(?i)[=≈]|\b(?:altogether|hence|therefore|thus|total)\b")
_NUMBER = re.compile(r"\d[\d.,]*(?<![.,])")
_HEADLINE_WORDS = 4


def value_of_subject(question: str, text: str) -> str | None:
    """The value that a headline or a clause about the question gives; None if the last value counts, as ever."""
    asked = stems(_NOT_REPEATED.sub(" ", asked_in(question)))
    if not asked:
        return None
    return _headline(question, text) or _in_clause(question, asked, text)


def asked_in(question: str) -> str:
    """The last question of a text, or its last sentence."""
    found = sentences(question.strip().replace("\n", " "))
    return next((sentence for sentence in reversed(found) if sentence.rstrip().endswith("?")), found[-1])


def _headline(question: str, text: str) -> str | None:
    """The value of a first line that is bold, or has a word of the question besides: "4 buses"."""
    headline = _HEADLINE.match(text)
    if headline is None or not text[headline.end() :].strip():
        return None
    if headline["plain"] and _ADDS_UP.search(text[headline.end() :]):
        return None
    line = trimmed(plain(headline["bold"] or headline["plain"]))
    values = values_in(line)
    if len(values) != 1 or values[0].start or len(line.split()) > _HEADLINE_WORDS:
        return None
    unit = stems(values[0].behind)
    is_asked = bool(unit & stems(question)) or (not unit and headline["bold"] is not None)
    return values[0].text if is_asked else None


def _in_clause(question: str, asked: set[str], text: str) -> str | None:
    """The value of the last clause that has most words of a question, at least half of them."""
    clauses, reasons = _clauses(text)
    shared = [
        0 if is_reason else len(asked & stems(clause)) for clause, is_reason in zip(clauses, reasons, strict=True)
    ]
    most = max(shared)
    place = len(shared) - 1 - shared[::-1].index(most)
    clause, behind = clauses[place], clauses[place + 1 :]
    if (
        most * 2 < len(asked)
        or any(words.search(question) and not words.search(clause) for words in _WHICH)
        or clause.rstrip().endswith("?")
    ):
        return None
    said = [other for other, is_reason in zip(behind, reasons[place + 1 :], strict=True) if not is_reason]
    if not re.search(r"\d", " ".join(behind)) or _CONCLUDES.search(" ".join(said)):
        return None
    value = result(trimmed(clause))
    given = _NUMBER.findall(question)
    return None if value is None or set(_NUMBER.findall(value)) & set(given) else value


def _clauses(text: str) -> tuple[list[str], list[bool]]:
    """The clauses of a text, and which of them only explain another."""
    clauses, reasons = list[str](), list[bool]()
    for line in text.split("\n"):
        for sentence in sentences(plain(line)):
            first, *others = _CLAUSE.split(sentence)
            clauses += [first, *others[1::2]]
            reasons += [False, *(joint is not None for joint in others[::2])]
    return clauses, reasons
