"""Compare an extracted answer with the gold answer of a question."""

from __future__ import annotations

import re
from fractions import Fraction

from cerebrum_cli.answers.amounts import amount
from cerebrum_cli.answers.canonical import canonical
from cerebrum_cli.answers.spelling import normalize_spelling

_BARE = re.compile(r"[-+]?(?:\d[\d,]*+(?:\.\d*+)?|\.\d++)")
_PERCENT = re.compile(r"\s?(?:%|\bper\s?cent\b)", re.IGNORECASE)
# Units that change the normal form of an amount: the hour of a time, and words that repeat what was asked.
_UNIT = re.compile(
    r"(?<=\d)(?::00)?\s[ap]m\Z|(?<=\d):00\Z|\s(?:fewer|gain|increase|less|profit|younger)\b", re.IGNORECASE
)


def matches_gold(answer: str | None, gold: str) -> bool:
    """Whether an answer is the gold one: in normal form, or, where one of them is a bare number, without its unit.

    The question names the unit that a gold of `60` lacks, so `60%` is right, as are "8 p.m." for 8 and "7 fewer" for 7,
    which votes keep apart. A number counts as it is written: 0.6 is not 60, and "50 cents" are not 0.50. Up to 1, a
    percentage may be meant as a share (0.6), so it counts only as its value. Words that may contradict the sign of the
    gold ("a $20 loss") are no units.
    """
    if answer is None:
        return False
    if canonical(answer) == canonical(gold):
        return True
    if not any(_BARE.fullmatch(text.strip()) for text in (answer, gold)):
        return False
    number, wanted = _bare_number(answer), _bare_number(gold)
    return number is not None and number == wanted


def _bare_number(text: str) -> Fraction | None:
    """Number of an amount as it is written, without its unit; None if there is none, or if it may be a share."""
    text = _UNIT.sub("", normalize_spelling(text))
    without_percent = _PERCENT.sub("", text)
    number = amount(canonical(without_percent))
    return None if number is None or (without_percent != text and abs(number) <= 1) else number
