"""Numbers in plain text, exactly: `1,234.50`, `2 1/2`, `6.02 × 10^23`, `12.5 million`, `35%`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

SCALES = {"thousand": 3, "k": 3, "million": 6, "billion": 9, "trillion": 12, "mio": 6, "millionen": 6}
_NUMBER = re.compile(
    rf"""(?x)(?<![\w.^_,/√])
    (?P<sign>-\s?|(?:minus|negative)\s)? (?:US)?[€£¥₹$]?\s?
    (?P<whole>1(?=0\s?\^) | \d{{1,3}}(?:[,\u00a0\u202f'’_\s]\d{{3}})+(?!\d) | \d{{1,3}}(?:\.\d{{3}})+(?=,\d\d\b) | \d+)?
    (?P<decimals>\.\d+ | (?<=\d),\d{{1,2}}(?![\d,]))?
    (?:\s(?:and\s)?(?P<mixed>\d+/\d+)|/(?P<over>-?0*[1-9]\d*)(?![\d/]))?
    (?:(?:\s?(?:×|x|\*|·)\s?1|(?<=\b1))0\s?\^\s?\(?(?P<power>-?\d{{1,3}})(?!\d)\)?|[eE](?P<exponent>[+-]?\d{{1,3}})(?!\d))?
    (?:\s?(?P<scale>{"|".join(SCALES)})\b)?
    (?P<percent>\s?(?:%|percent\b|per\scent\b|Prozent\b))?"""
)


class Number(NamedTuple):
    """A number and its place in a text."""

    value: Fraction
    is_percent: bool
    start: int
    end: int


def numbers(text: str) -> Iterator[Number]:
    """The numbers in a text, in order."""
    for match in _NUMBER.finditer(text):
        if match["whole"] or match["decimals"]:
            yield Number(_value(match), match["percent"] is not None, match.start(), match.end())


def _value(match: re.Match[str]) -> Fraction:
    digits = re.sub(r"\D", "", match["whole"] or "0") + (match["decimals"] or "").replace(",", ".")
    over, _, under = (match["mixed"] or "0/1").partition("/")
    value = (Fraction(digits) + Fraction(int(over), int(under) or 1)) / int(match["over"] or 1)
    power = int(match["power"] or match["exponent"] or 0) + SCALES.get(match["scale"] or "", 0)
    return value * Fraction(10) ** power * (-1 if match["sign"] else 1)
