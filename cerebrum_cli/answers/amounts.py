"""Read an amount: a number in digits or words, exactly, with whatever is counted behind it."""

from __future__ import annotations

import re
from fractions import Fraction

_LARGEST_EXPONENT = 300

_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: value for value, word in enumerate(f"{_SMALL} seventeen eighteen nineteen".split())}
_WORDS |= {word: 10 * tens for tens, word in enumerate(_TENS.split(), start=2)}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_COUNTS = {"dozen": 12, "gross": 144}
_ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_PARTS = {"half": 2, "halve": 2, "quarter": 4, "hundredth": 100, "thousandth": 1000}
_PARTS |= {word: under for under, word in enumerate(_ORDINALS.split(), start=3)}
_PART = "|".join(_PARTS)

NUMBER_WORD = "(?:" + "|".join(sorted([*_WORDS, *_SCALES], key=len, reverse=True)) + r")\b"
_IN_WORDS = re.compile(
    rf"(?:a\s(?=hundred|thousand|million))?({NUMBER_WORD}(?:(?:\s|-|\sand\s){NUMBER_WORD})*+)", re.IGNORECASE
)
_PART_IN_WORDS = re.compile(rf"(?:(?:an?|one)[ -])?({_PART})", re.IGNORECASE)
_DOLLARS_AND_CENTS = re.compile(
    r"(?:(.*\S)\s(?:dollars?|usd),?(?:\sand)?|(\d++)\sand)\s([\w-]++)\scents?", re.IGNORECASE
)

_UNSIGNED = r"(?:\d++(?:\.\d*+)?|\.\d++)"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[-+]?)\s?
    (?: (?P<whole>\d++)\s(?P<part>\d++/\d++)
      | 10\^(?P<power>[-+]?\d++)
      | (?P<over>{_UNSIGNED}) (?:e(?P<e>[-+]?\d++))? (?:\s?/\s?(?P<under>{_UNSIGNED}))?
        (?:\s?[*x]\s?10\^(?P<times>[-+]?\d++))?
    )
    (?P<percent>\s?(?:%|per\s?cent\b))?
    (?:\s?(?P<scale>{"|".join(_SCALES)})\b)?
    (?:\s?(?:(?P<count>dozen)s?|(?P<gross>gross)(?=\sof\b))\b)?  # not a gross income
    (?:[\s-](?:(?P<nths>{_PART})s|(?P<nth>half(?=\s)|(?:{_PART})(?=\sof\b|\Z)))\b)?
    (?P<unit>.*+)
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)

_UNIT = re.compile(r"(?:(?:\s?[/*-])?\s?(?:°|°?[^\W\d_]++(?:['.][^\W\d_]++)*+['.]?)(?:\^?-?[1-9](?!\d))?)*+")
# Units of one or two letters; all others are variables. A number may be joined to those of the second row: 12km, 12ab.
_SPACED_UNIT = r"[ACFJKLNVWaghlms]|an|as|at|by|in|of"
_JOINED_UNIT = (
    r"GB|Hz|KB|MB|cal|cm|dl|eur|ft|gb|ha|hr|hrs|kJ|kW|kb|kg|km|kph|lb|lbs|mL|mb|mg|mi|min|ml|mm|mph|ms|nm|oz|pt|sec"
    r"|usd|yd|\w{4,}"
)
_SPACED = re.compile(rf"{_SPACED_UNIT}|{_JOINED_UNIT}|.{{3,}}")
_JOINED = re.compile(_JOINED_UNIT)
# "10 squared" is not 10, while "10 feet squared" are; "3 right" is a move, "3 right angles" are three.
_NO_TAIL = re.compile(r"\s(?:squared|cubed)|.*\bright", re.IGNORECASE | re.DOTALL)
# Words that no unit holds: they change the amount, turn it into another, or make it a date.
_NO_UNIT = re.compile(
    r"and|but|except|if|is|minus|mod|nor|not|or|plus|times|to|with|cos|cot|csc|exp|lim|ln|log|sin|sqrt|tan"
    r"|above|below|decrease|east|fewer|gain|increase|less|loss|midnight|noon|north|o'clock|profit|south|west|younger"
    rf"|january|february|march|april|may|june|july|august|september|october|november|december|{NUMBER_WORD}",
    re.IGNORECASE,
)


def amount(text: str) -> Fraction | None:
    """Value of an amount ("18 apples", "3 1/2 cups", "80%", "two thirds"), or None."""
    if part := _PART_IN_WORDS.fullmatch(text):
        return Fraction(1, _PARTS[part[1].lower()])
    if money := _DOLLARS_AND_CENTS.fullmatch(text):
        return _money(money[1] or money[2], money[3])
    match = _NUMBER.match(_with_digits(text))
    return _value(match) if match and is_unit(match["unit"]) else None


def is_unit(tail: str) -> bool:
    """Whether words name what is counted ("km/h", "apples a day"), not a variable or a change of the amount."""
    if not _UNIT.fullmatch(tail) or _NO_TAIL.fullmatch(tail):
        return False
    words = re.findall(r"[^\W\d_]++(?:['.][^\W\d_]++)*+", tail)
    if words and tail.startswith(words[0]) and not _JOINED.fullmatch(words[0]):
        return False
    return all(_SPACED.fullmatch(word) and not _NO_UNIT.fullmatch(word) for word in words)


def _value(match: re.Match[str]) -> Fraction | None:
    """Value of a number; None if it divides by zero or is too long to write out."""
    exponents = [match[name] or "0" for name in ("e", "times", "power")]
    if any(len(digits) > 4 or abs(int(digits)) > _LARGEST_EXPONENT for digits in exponents):
        return None
    try:
        value = Fraction(match["over"] or match["whole"] or 1) / Fraction(match["under"] or 1)
        part = Fraction(match["part"] or 0)
    except ZeroDivisionError:
        return None
    if part >= 1:  # 3 5/2 is no mixed number
        return None
    value = (value + part) * Fraction(10) ** sum(map(int, exponents)) * _SCALES.get((match["scale"] or "").lower(), 1)
    value *= _COUNTS.get((match["count"] or match["gross"] or "").lower(), 1)
    value /= _parts_of_one(value, (match["nths"] or "").lower(), (match["nth"] or "").lower())
    return value * (-1 if match["sign"] == "-" else 1) / (100 if match["percent"] else 1)


def _parts_of_one(value: Fraction, plural: str, singular: str) -> int:
    """How many of the counted parts make a whole; 1 if things are counted (5 quarters are coins)."""
    if plural == "quarter" and value > 3:
        return 1
    return _PARTS[plural] if plural else _PARTS[singular] if singular and value == 1 else 1


def _money(dollars: str, cents: str) -> Fraction | None:
    whole, hundredths = amount(dollars), amount(cents)
    if whole is None or hundredths is None or whole < 0 or hundredths not in range(100) or whole.denominator > 1:
        return None
    return whole + hundredths / 100


def _with_digits(text: str) -> str:
    """Replace number words at the start of a text with digits; unchanged if they form no number."""
    sign = "-" if text.startswith("-") else ""
    match = _IN_WORDS.match(text, len(sign))
    value = _value_of_words(re.findall(r"\w++", match[1].lower())) if match else None
    return f"{sign}{value}{text[match.end() :]}" if match and value is not None else text


def _value_of_words(words: list[str]) -> int | None:
    """Number that the words form together; None if they form several, or none."""
    total = group = 0
    limit, scale, last = 100, 10**15, ""  # what the next word must be less than, by itself and as a scale
    for word in words:
        if word == "and":
            if last not in _SCALES:
                return None
        elif word in _WORDS:
            value = _WORDS[word]
            if value >= limit or (value == 0 and len(words) > 1):
                return None
            group, limit = group + value, 10 if value >= 20 else 0
        elif word == "hundred":
            if group >= 100 or (last and not group):
                return None
            group, limit = (group or 1) * 100, 100
        else:
            if _SCALES[word] >= scale or (last and not group):
                return None
            total, group, limit, scale = total + (group or 1) * _SCALES[word], 0, 100, _SCALES[word]
        last = word
    return total + group
