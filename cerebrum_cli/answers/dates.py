"""Dates with a day and a month: "20 July 1969", "July 20th, 1969", "1969-07-20", "14 juillet"."""

from __future__ import annotations

import re

_ENGLISH = "january february march april may june july august september october november december"
_OTHERS = """januar februar märz april mai juni juli august september oktober november dezember
janvier février mars avril mai juin juillet août septembre octobre novembre décembre
enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre
gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre
janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro"""
MONTHS = _ENGLISH.split()
_NUMBERS = {name: number for names in (_ENGLISH, *_OTHERS.split("\n")) for number, name in enumerate(names.split(), 1)}
_SHORT = {"sept": 9} | {name[:3]: number for number, name in enumerate(MONTHS, 1)}
_NAMES = sorted([*_NUMBERS, *_SHORT], key=len, reverse=True)
_PARTS = {
    "month": rf"(?:{'|'.join(_NAMES)})\.?",
    "number": r"(?:0[1-9]|1[0-2])",
    "day": r"(?:[12]\d|3[01]|0?[1-9])",
    "year": r"\d{4}",
}
_FORMS = (
    r"<day>(?:st|nd|rd|th|er|\.)?\s(?:of\s|de\s)?<month>,?\s(?:de\s|del\s)?<year>",
    r"<month>\s<day>(?:st|nd|rd|th)?,?\s<year>",
    r"<year>-<number>-<day>",
)
_IN_A_YEAR = (  # whose year is known
    r"<day>(?:st|nd|rd|th|er|\.)?\s(?:of\s|de\s)?(?=[A-Z]|\w{4})<month>(?=[\s.,;:)]|\Z)",
    r"(?=[A-Z]\w\w)<month>\s<day>(?:st|nd|rd|th)?(?=[.,;:)]|\Z)",
)


def _pattern(form: str, group: str) -> str:
    for name, part in _PARTS.items():
        form = form.replace(f"<{name}>", group.format(name=name, part=part))
    return form


DATE = (  # part of a longer pattern
    rf"(?<![\w-])(?:(?i:{'|'.join(_pattern(form, '{part}') for form in _FORMS)})(?![\w-])"
    rf"|{'|'.join(_pattern(form, '(?i:{part})') for form in _IN_A_YEAR)})"
)
_ALONE = [re.compile(_pattern(form, "(?P<{name}>(?i:{part}))")) for form in (*_FORMS, *_IN_A_YEAR)]


def iso_date(text: str) -> str | None:
    """A date as YYYY-MM-DD, or --MM-DD without a year; None if the text is anything else."""
    for form in _ALONE:
        if date := form.fullmatch(text):
            parts = date.groupdict()
            month = parts.get("number") or _month_number(parts["month"])
            return f"{parts.get('year', '-')}-{int(month):02}-{int(parts['day']):02}"
    return None


def _month_number(name: str) -> int:
    name = name.casefold().rstrip(".")
    return _NUMBERS.get(name) or _SHORT[name]
