"""An amount in the unit that its question asks for: 12500 of "The fence is 12.5 km long", if it asks for metres."""

from __future__ import annotations

import re
from fractions import Fraction

from cerebrum_cli.answers.subject import asked_in

# Each row has units of one kind: their names, and how many of the first one they are.
_KINDS = (
    {
        "mm|millimet(?:er|re)s?|millimètres?|milímetros?": "1",
        "cm|centimet(?:er|re)s?|zentimetern?|centimètres?|centímetros?": "10",
        "m|met(?:er|re)s?|metern?|mètres?|metros?": "1000",
        "km|kilomet(?:er|re)s?|kilometern?|kilomètres?|kilómetros?": "1000000",
        "inch(?:es)?": "25.4",
        "ft|foot|feet": "304.8",
        "yd|yards?": "914.4",
        "mi|miles?|meilen?": "1609344",
    },
    {
        "mg|milligrams?|milligramm|milligrammes?|miligramos?": "1",
        "g|grams?|gramm|grammes?|gramos?": "1000",
        "kg|kilos?|kilograms?|kilogramm|kilogrammes?|kilogramos?": "1000000",
        "tonn?es?|tonnen?|toneladas?": "1000000000",
    },
    {
        "ml|millilit(?:er|re)s?|millilitern?": "1",
        "cl|centilit(?:er|re)s?": "10",
        "l|lit(?:er|re)s?|litern?|litros?": "1000",
    },
    {
        "s|secs?|seconds?|sekunden?|secondes?|segundos?": "1",
        "mins?|minutes?|minuten?|minutos?": "60",
        "h|hrs?|hours?|stunden?|heures?|horas?": "3600",
        "days?|tagen?|jours?|días?": "86400",
        "weeks?|wochen?|semaines?|semanas?": "604800",
    },
)
_ANY = "|".join(names for kind in _KINDS for names in kind)
_END = r"(?![\w/²³^*·'’-]|\s(?:per|pro|par|por)\b)"
_ASKED = re.compile(rf"(?i)\b(?:how\smany|wie\sviele|combien\sde|cuánt[ao]s|in|en)\s({_ANY}){_END}")
_PART = re.compile(rf"(?i)(\d+(?:\.\d+)?(?:/\d+)?)\s?({_ANY}){_END}")


def in_asked_unit(question: str, answer: str, text: str) -> str:
    """An answer in the unit that a question fixes, if the text gives it in another of the same kind."""
    asked = _ASKED.findall(asked_in(question))
    return _in_unit(asked[0], answer, text) if len(asked) == 1 else answer


def in_unit_of(reference: str, answer: str | None, text: str) -> str | None:
    """An answer in the unit of a reference answer, if the text gives it in another of the same kind."""
    unit = _PART.fullmatch(reference.strip())
    return _in_unit(unit[2], answer, text) if answer and unit else answer


def _in_unit(name: str, answer: str, text: str) -> str:
    if not answer[0].isdigit():
        return answer
    found = re.findall(rf"(?i)(?<![\w.,]){re.escape(answer)}(?![\d.,]\d)\s?(?:{_ANY})?{_END}", text)
    parts = _PART.findall(found[-1]) if found else []
    units = [_unit(name) for _, name in parts]
    kind, size = _unit(name)
    if not parts or any(other != kind for other, _ in units) or all(factor == size for _, factor in units):
        return answer
    total = sum(Fraction(number) * factor for (number, _), (_, factor) in zip(parts, units, strict=True)) / size
    return str(total) if total.denominator == 1 else f"{float(total):.10g}"


def _unit(name: str) -> tuple[int, Fraction]:
    """The kind of a unit, and how many of the first unit of its kind it is."""
    return next(
        (place, Fraction(size))
        for place, kind in enumerate(_KINDS)
        for names, size in kind.items()
        if re.fullmatch(names, name, re.IGNORECASE)
    )
