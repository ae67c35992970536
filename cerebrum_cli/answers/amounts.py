"""Read the amount that an answer states, exactly, without its unit."""

from __future__ import annotations

import re
from fractions import Fraction

from cerebrum_cli.answers.number_words import SCALES, VALUES

_SCALES = SCALES | {
    "lakh": 10**5,
    "crore": 10**7,
    "k": 10**3,
    "mio.": 10**6,
    "millionen": 10**6,
    "万": 10**4,
    "亿": 10**8,
}

_UNSIGNED = r"(?:\d++(?:\.\d*+)?|\.\d++)"
_NOT_ZERO = r"(?=[0.]*[1-9])"
_EXPONENT = r"-?\d{1,2}(?!\d)"  # with a longer one, a number may be too long to write out
_NUMBER = re.compile(
    rf"""(?isx)
    (?P<sign>[-+]?)\s?
    (?: (?P<whole>\d++)\s(?P<part>\d++/{_NOT_ZERO}\d++)
      | 10\^(?P<power>{_EXPONENT})
      | (?P<over>{_UNSIGNED}(?:e[-+]?\d{{1,2}}(?!\d))?) (?:\s?/\s?(?P<under>-?{_NOT_ZERO}{_UNSIGNED}))?
        (?:\s?[*x]\s?10\^(?P<times>{_EXPONENT}))?
    )
    (?:\s?(?P<scale>{"|".join(map(re.escape, _SCALES))})(?![^\W\d_]))?
    (?P<unit>.*+)
    """,
)

_UNIT = re.compile(
    r"(?:\s?[/*-]?\s?(?:%|[^\W\d_]++(?:['.][^\W\d_]++)*+['.]?)(?:\^?-?[1-9](?!\w))?)*+"
    r"(?:\s\([^()]*?(?:[^\W\d_]{3}|%)[^()]*+\))?+"  # 25 (in total)
)
# Other words of one or two letters are variables; so are most that are joined to a number.
_SHORT = "cm|ft|hr|in|kg|km|lb|mg|mi|ml|mm|oz"
_EAST_ASIAN = "[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]+"
_SPACED = re.compile(rf"{_SHORT}|{_EAST_ASIAN}|[ACFJKLNVWaghlms]|an|as|at|by|of|.{{3,}}")
_JOINED = re.compile(rf"(?i){_SHORT}|{_EAST_ASIAN}|min|mph|.{{4,}}")
# Words that no unit holds: they change the amount, or make it another one.
_NO_UNIT = re.compile(
    r"(?i)and|but|except|if|is|minus|mod|nor|not|or|plus|times|to|with|(?:cos|cot|csc|exp|ln|log|sin|tan)[^\Ws]?|sec[^\Ws]"
    r"|am|pm|decrease|dozens?|loss|squared|cubed|hal(?:f|ves)|thirds?|(?:four|fif|six|seven|eigh|nin|ten|hundred)ths?"
    rf"|{'|'.join([*VALUES, *_SCALES])}",
)


def amount(text: str) -> Fraction | None:
    """Value of an amount as it is written ("18 apples", "3 1/2 cups", "80%" is 80), or None."""
    match = _NUMBER.match(text)
    if match is None or not is_unit(match["unit"]):
        return None
    value = Fraction(match["over"] or match["whole"] or 1) / Fraction(match["under"] or 1)
    part = Fraction(match["part"] or 0)
    if part >= 1:  # 3 5/2 is no mixed number
        return None
    value += part
    value *= Fraction(10) ** int(match["power"] or match["times"] or 0)
    if match["scale"]:
        value *= _SCALES[match["scale"].lower()]
    if match["sign"] == "-":
        return -value
    return value


def is_unit(tail: str) -> bool:
    """Whether words name what is counted ("km/h", "apples a day"), not a variable or a change of the amount."""
    if not _UNIT.fullmatch(tail):
        return False
    words = re.findall(r"[^\W\d_]++(?:['.][^\W\d_]++)*+", tail)
    if words and tail.startswith(words[0]) and not _JOINED.fullmatch(words[0]):
        return False
    return all(_SPACED.fullmatch(word) and not _NO_UNIT.fullmatch(word) for word in words)
