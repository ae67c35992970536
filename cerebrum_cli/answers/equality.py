"""When two answers are equal: one normal form, made in one pass, is the key of votes; and equality with a reference.

a number, without its unit      $1,234.50  1/2  \\frac12  2 1/2  6e23  12.5 million  18 apples  80%
a tuple, a set, a list          (1, 2)  {1, 2}  [0, 1/2)  1, 2 and 3: part by part, a set in order
equations                       x = 5: its value; of several names x=3, y=-2, in order
an expression                   2x+3  √3  π/4: without spaces
text                            without case, articles, quotes, and punctuation at its end
"""

from __future__ import annotations

import re
from functools import lru_cache

from cerebrum_cli.answers.numbers import Number, numbers
from cerebrum_cli.answers.passages import LONGEST, plain, unwrapped

YES_NO = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_DEPTH = 3
_NO_UNIT = (  # words that make something else of a number than an amount
    "in|of|to|out|or|and|dozen|remainder|r|times|am|pm|bce?|ce|ad|by|x|y|z|n|more|less|left|right|north|south|east|west|"
    "(?:jan|feb|mar|apr|may|ju[nl]|aug|sep|oct|nov|dec)[a-z]*"
)
_UNIT = re.compile(
    rf"""(?ix)\s?[€£¥₹$]?\.? | \s?°\s?[CFK]?
    | \s?(?-i:[kcmMGµn]?(?:m|g|s|h|l|L|J|W|N|V|A|K|Hz|eV|Pa|mol|min|ft|in|mph|lb))(?:\^-?\d)?(?:[/·\s][A-Za-z][\w^-]*)?
    | (?:\s(?!(?:{_NO_UNIT})\b)[^\W\d_][\w/%^'’-]+(?:\^\d)?){{1,4}}"""
)
_CURRENCY = re.compile(r"(?:US)?[$€£¥₹]\s?|(?:EUR|USD|CHF|GBP|Rs\.?|INR)\s")
_NAME = r"[A-Za-zα-ωΔθ](?:_\w{1,3}|\d|\([a-z]\))?"
_EQUATION = re.compile(rf"({_NAME}|\({_NAME}(?:,\s?{_NAME})+\))\s?[=≈∈]\s?([^=<>≤≥]+)")
_SEPARATOR = re.compile(
    r"(?:\s?[,;]\s(?:and\s|or\s)?|(?<!\d),(?=\S)|,(?!\d{3}\b|\s)|\s(?:and|or|und|oder|y|et|e)\s)(?![^(\[{]*[)\]}])"
)
_BRACKETS = re.compile(r"([(\[{<])([^()\[\]{}]+)([)\]}>])")
_EXPRESSION = re.compile(
    r"(?!.*[A-Za-z]{4})(?=.*(?:[\d=^√π<>≤≥±∞]|\b\w\s?[-+*/]\s?\w\b))[\w\s+\-*/^()=<>≤≥≠√π.,:|∞∪∩±×·°!\[\]{};%∈→]*"
)
_REMARK = re.compile(r"(?<=\w)\s\([^()]*\)\Z")
_AND = re.compile(r",?\s(?:and|&)\s")
_ARTICLE = re.compile(r"\b(?:the|a|an)\s(?=\S)|[\"“”'’]|(?<!\d)\.(?!\w)|[\s.,;:!?]+\Z")


@lru_cache(10_000)  # samples that vote have few different answers
def canonical(answer: str) -> str:
    """Normal form of an answer."""
    if len(answer) > 2 * LONGEST:
        return " ".join(answer.casefold().split())
    return _form(unwrapped(plain(unwrapped(answer))), _DEPTH) or answer.strip()


def equals_reference(answer: str | None, reference: str) -> bool:
    """Whether an answer equals a reference answer: its normal form, as a percentage, as a set, or with a remark."""
    if answer is None:
        return False
    ours, theirs = whole_number(answer), whole_number(reference)
    if ours and theirs and ours.is_percent != theirs.is_percent:
        percentage, number = (ours, theirs) if ours.is_percent else (theirs, ours)
        return number.value * (100 if 0 < number.value < 1 else 1) == percentage.value
    form, wanted = canonical(answer), canonical(reference)
    return wanted in (form, _REMARK.sub("", form)) or _as_set(form) == _as_set(wanted)


def whole_number(answer: str) -> Number | None:
    """The number that an answer is, with or without a unit."""
    text = _CURRENCY.sub("", unwrapped(plain(answer)))
    found = next(numbers(text), None)
    if found is None or text[: found.start].strip(" ~≈+") or not _UNIT.fullmatch(text, found.end):
        return None
    return found


def _form(text: str, depth: int) -> str:
    if yes_no := YES_NO.get(text.casefold()):
        return yes_no
    if number := whole_number(text):
        return str(number.value)
    if depth and (nested := _nested(text, depth - 1)):
        return nested
    if _EXPRESSION.fullmatch(text) or "begin{" in text:
        return re.sub(r"(?<=\d)\s?[*·×]\s?(?=[A-Za-zπ√(])|\s|°", "", text)
    return " ".join(_AND.sub(", ", _ARTICLE.sub("", text.casefold())).split()) or text


def _nested(text: str, depth: int) -> str | None:
    """Form of equations, of a list and of what is in brackets, part by part."""
    parts = [part for part in _SEPARATOR.split(text) if part.strip()]
    equations = [equation for part in parts if (equation := _EQUATION.fullmatch(part.strip()))]
    names = [equation[1] for equation in equations]
    if equations and len(equations) == len(parts):
        forms = [_form(equation[2].strip(), depth) for equation in equations]
        if len(set(names)) > 1:
            return ", ".join(sorted(map("=".join, zip(names, forms, strict=True))))
        return _set(forms) if len(forms) > 1 else forms[0]
    if text[:1] == "±":
        return _set([_form(f"-{text[1:]}", depth), _form(text[1:], depth)])
    if len(parts) > 1 and all(re.search(r"\d|[√π∞]|\A\w\Z", part) for part in parts):
        forms = [_form(part.strip(), depth) for part in parts]
        return _set(forms) if " or " in text else ", ".join(forms)
    if brackets := _BRACKETS.fullmatch(text):
        opening, inside, closing = brackets.groups()
        form = _form(re.sub(r"\s*,\s*", ", ", inside.strip()), depth)
        if opening == "{":
            return _set(form.split(", "))
        return form if opening == "(" and ", " not in form else f"{opening}{form}{closing}"
    return None


def _set(forms: list[str]) -> str:
    return "{" + ", ".join(sorted(set(forms))) + "}"


def _as_set(form: str) -> str:
    """A list of numbers as their set."""
    return _set(form.split(", ")) if re.fullmatch(r"[^(\[{=]+(?:, [^(\[{=]+)+", form) else form
