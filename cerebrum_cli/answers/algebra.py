"""Normal forms of algebra: sums and products in one order, inequalities as intervals."""

from __future__ import annotations

import re

from cerebrum_cli.answers.brackets import split_outside
from cerebrum_cli.answers.rewriting import rewriting

LETTER = r"[^\W\d_]"
FUNCTION = r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|exp|mod|det|max|min|lim"
_tidy = rewriting(
    (r"(?<!\d)\s|\s(?!\d)", ""),
    (rf"({FUNCTION})\((\w)\)", r"\1\2"),
    (rf"(?<=[\w)])\*(?={LETTER}|[(√])", ""),  # 2*x
    (rf"(?<![\w)^*/√])\((\d++/\d++)\)(?={FUNCTION})", r"\1"),  # (1/2)ln7
    (  # (3/2)x
        rf"(?<![\w)^*/√])\((\d++)/(\d++)\)(?=[√π]|{LETTER})((?:√\d++)?(?:{LETTER}(?:\^\d++)?)*+)(?![\w(^/*√!])",
        lambda term: f"{'' if term[1] == '1' else term[1]}{term[3]}/{term[2]}",
    ),
    (r"(?<![\w)^*/√-])\((-?\d++/\d++)\)(?=&|\Z)", r"\1"),  # in a matrix
    (r"(?<![\w)^*/√])\(([\w√.]++)\)(?=/)|(?<=/)\((\d++|√?\w|√\d++)\)(?![\w(^√!])", r"\1\2"),  # (2π)/3
)
_BEFORE_SIGN = re.compile(r"[(\[{]|[)\]}]|(?<![-+*/^(\[{_])(?<!\A)(?=[-+])")
_BOUND = r"[^<>≤≥=,;A-Za-z]*\d[^<>≤≥=,;A-Za-z]*|-?[√π∞]"
_CHAIN = re.compile(rf"({_BOUND})\s?([<≤])\s?{LETTER}\s?([<≤])\s?({_BOUND})")  # 2 < x ≤ 5
_HALF_LINE = re.compile(rf"{LETTER}\s?([<>≤≥])\s?({_BOUND})|({_BOUND})\s?([<>≤≥])\s?{LETTER}")  # x > 3
_TURNED = str.maketrans("<>≤≥", "><≥≤")
_FACTORS = re.compile(r"(-?\d*)((?:\([^()]+\)(?:\^\w+)?){2,})")
_FACTOR = re.compile(r"\(([^()]+)\)((?:\^\w+)?)")


def interval(text: str) -> str | None:
    """What an inequality leaves open for its one variable: (2, 5] of 2 < x ≤ 5, (3, ∞) of x > 3."""
    descending = re.split("([>≥])", text)
    if len(descending) == 5:  # 5 ≥ x > 2
        text = "".join(reversed(descending)).translate(_TURNED)
    if chain := _CHAIN.fullmatch(text.strip()):
        low, left, right, high = chain.groups()
        return f"{'[' if left == '≤' else '('}{low}, {high}{']' if right == '≤' else ')'}"
    half = _HALF_LINE.fullmatch(text.strip())
    if half is None:
        return None
    sign, bound = (half[1], half[2]) if half[1] else (half[4].translate(_TURNED), half[3])
    if sign in "<≤":
        return f"(-∞, {bound}{']' if sign == '≤' else ')'}"
    return f"{'[' if sign == '≥' else '('}{bound}, ∞)"


def algebraic(text: str) -> str | None:
    operands = re.sub(FUNCTION, "·", text, flags=re.IGNORECASE)
    if re.search(LETTER + "{3}", operands) or not re.search(r"[^\w\s'.,!?]|\d", operands):
        return None
    tidy = _tidy(text.casefold())
    if factors := _FACTORS.fullmatch(tidy):
        return factors[1] + "".join(sorted(f"({_sum(sum_)}){power}" for sum_, power in _FACTOR.findall(factors[2])))
    return _sum(tidy)


def _sum(text: str) -> str:
    """Sort the terms of a sum: powers, other letters, numbers."""
    if re.search(r"[^\w\s.()√π^*/!+-]", text) or not re.search(f"{LETTER}|√", text):
        return text
    if not text.startswith(("+", "-")):
        text = f"+{text}"
    terms, _ = split_outside(_BEFORE_SIGN, text)
    return "".join(sorted(terms, key=_order_of_term)).removeprefix("+")


def _order_of_term(term: str) -> tuple[bool, bool, str, str]:
    is_number = not re.search(f"{LETTER}|√", term)
    return is_number, "^" not in term, term[1:], term[0]
