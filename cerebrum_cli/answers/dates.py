"""Dates with a day, a month and a year, however they are written: "20 July 1969", "July 20th, 1969", "1969-07-20"."""

from __future__ import annotations

import re

_NAMES = "january february march april may june july august september october november december"
MONTHS = _NAMES.split()
_PARTS = {
    "month": rf"(?:{'|'.join([*MONTHS, *(f'{month[:3]}' for month in MONTHS), 'sept'])})\.?",
    "number": r"(?:0[1-9]|1[0-2])",
    "day": r"(?:[12]\d|3[01]|0?[1-9])",
    "year": r"\d{4}",
}
_FORMS = (
    r"<day>(?:st|nd|rd|th)?\s(?:of\s)?<month>,?\s<year>",
    r"<month>\s<day>(?:st|nd|rd|th)?,?\s<year>",
    r"<year>-<number>-<day>",
)


def _pattern(form: str, group: str) -> str:
    for name, part in _PARTS.items():
        form = form.replace(f"<{name}>", group.format(name=name, part=part))
    return form


DATE = rf"(?<![\w-])(?i:{'|'.join(_pattern(form, '{part}') for form in _FORMS)})(?![\w-])"  # part of a longer pattern
_ALONE = [re.compile(_pattern(form, "(?P<{name}>{part})"), re.IGNORECASE) for form in _FORMS]


def iso_date(text: str) -> str | None:
    """A date as YYYY-MM-DD; None if the text is anything else."""
    for form in _ALONE:
        if date := form.fullmatch(text):
            parts = date.groupdict()
            month = parts.get("number") or _month_number(parts["month"])
            return f"{parts['year']}-{int(month):02}-{int(parts['day']):02}"
    return None


def _month_number(name: str) -> int:
    return 1 + next(place for place, month in enumerate(MONTHS) if month.startswith(name[:3].casefold()))
