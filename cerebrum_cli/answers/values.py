r"""Find the values in a sentence: amounts, expressions, relations, and what is in brackets.

A value is taken whole: x^2+1, 2π, [2, 5), {1, 2}, 51_8, 3 + 4i, 3 < x < 5, f(x) = 2x + 3, 2:30 pm and 4/5 are one each.
"""

from __future__ import annotations

import re

from cerebrum_cli.answers.chemistry import FORMULA
from cerebrum_cli.answers.dates import DATE

_FUNCTIONS = r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|exp"
_FUNCTION = rf"{_FUNCTIONS}|sqrt|pi|theta|infty"
_LETTER = r"[A-Za-z\u03b1-\u03c9ΔΣΩ]"
_SIGNS = r"(?:geq?|leq?|neq?|approx|in|cup|cap|times|cdot|pm|div|end|boxed)(?![A-Za-z])"
_BEGINS = r"(?:(?<![^\W\d_])|(?<=π))"
_ENDS = r"(?!(?![⁰-⁹⁺⁻ⁿ²³¹₀-₉])[^\W\d_'’])"
_NAME = rf"(?:\\(?!{_SIGNS})[A-Za-z]++|{_BEGINS}(?:{_FUNCTION}|{_LETTER}){_ENDS}|{_LETTER}['′](?=\()|[π∞∅])"
_UNSIGNED = r"(?:0x[0-9A-Fa-f]++\b|\d++(?:[.,]\d++(?!,\d))?+(?:[eE][-+]?\d++\b)?+[¼-¾⅐-⅞]?+|\.\d++|[¼-¾⅐-⅞])"
_TIME = r"\d++(?:(?::\d++)++|(?:\ :\ \d++)++)(?:\ ?[AaPp](?:[Mm]\b|\.[Mm]\.))?+"
_MIXED = r"\d++\ (?:\d++/\d++|[¼-¾⅐-⅞])"
_SCALE = r"(?:\ ?(?:(?i:hundred|thousand|[mb]illion(?:en)?|mio\.|lakhs?|crores?)|万|亿|[kKM](?![^\W\d_])))"
_ERA = r"\ (?:BCE?|CE|AD)\b"
_NUMBER = rf"(?<![A-Za-z\d_])(?<!\d\.)(?:{_TIME}|{_MIXED}|{_UNSIGNED})(?:{_ERA}|{_SCALE}?+)"


def _bracketed(inside: str) -> str:
    """Pattern of brackets around what `inside` matches, up to three in one another."""
    pattern = rf"[(\[{{](?:{inside})*+[)\]}}]"
    for _ in range(2):
        pattern = rf"[(\[{{](?:{inside}|{pattern})*+[)\]}}]"
    return pattern


BRACKETED = _bracketed(r"[^()\[\]{}]++")
_GROUP = _bracketed(rf"[^()\[\]{{}}\n?A-Za-z\u00c0-\u00ff]|{_NAME}|(?:and|or)\b")  # mathematics; a longer word is prose
_ABSOLUTE = rf"\|(?:{_NAME}|[\d .,+*/^-])++\|"
_MATRIX = r"\\begin\{[a-z]++\}.*?\\end\{[a-z]++\}"
_APPLIED = (  # a function before its argument: ln 5, \cos 30^\circ, \log_2 3
    rf"(?:(?<![^\W\d_])(?:ln|sin|cos|tan|exp|log(?=_))|\\(?:{_FUNCTIONS}))(?![A-Za-z])(?:[_^](?:\w|\{{\w+\}}))?\ ?"
    r"(?=[\d.(\[{√π\\]|[A-Za-z](?![A-Za-z]))"
)
_FACTOR = rf"(?:{_MATRIX}|{_ABSOLUTE}|(?:{_APPLIED})?+(?:√\ ?)?+(?:{_NUMBER}|{_NAME}|{_GROUP}))"
_POST = rf"(?:[!′°]|[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]++|[₀-₉]++|\ ?%|[\^_](?:-?{_UNSIGNED}|[-+]?{_NAME}|{_GROUP}))"
_TERM = rf"{_FACTOR}{_POST}*+"
_SIGN = r"(?:\*\*|[-+*/⁄×÷·±∪∩x]|\\(?:cup|cap|times|cdot|pm|div)(?![A-Za-z]))"
_OPERATOR = rf"(?:\ {_SIGN}\ -?|(?!x){_SIGN}-?|\ (?=[π√\\]|pi\b)|(?<=\\pi)\ (?=[A-Za-z](?![A-Za-z])))"
_PREFIX = r"(?:(?<![\w)\]}%])(?:[-+±]|\\pm|[<>≤≥]\ ?(?=\d))\ ?)?+"
_RELATION = r"\ ?(?:[<>!]=|[=<>≤≥≠≈∈]{1,3}+|\\(?:geq?|leq?|neq?|approx|in)(?![A-Za-z]))\ ?"
_LINK = rf"(?:{_RELATION}{_PREFIX}|{_OPERATOR})"
_EXPRESSION = rf"{_PREFIX}(?!{_LINK})(?:{_LINK}?{_TERM})++"  # each part stands once: compiling them is slow
_VECTOR = rf"<(?=[^<>\n]*,)(?:[^<>\n?A-Za-z\u00c0-\u00ff]|{_NAME})++>"
_UNIT_POWER = r"(?:(?<=\d)\ {1,2}(?:k?g/)?(?:[ckm]?m|ft|in|yd|mi)(?:\^\{?[23]\}?|[²³]))?+"
_UNIT = r"(?:(?:week|day|hour|hr|minute|min|second|sec|dollar|cent|pound|ounce)s?|h|feet|foot|ft|inch(?:es)?)\b"
_COMPOUND = rf"(?=\d)(?:(?:,?\ (?:and\ )?)?+{_NUMBER}\ {_UNIT}){{2,}}+|(?<=between\ )\d[\d.,]*+\ and\ \d(?:[\d.,]*\d)?"
VALUE = re.compile(rf"({DATE}|{FORMULA}|{_COMPOUND}|{_VECTOR}|{_EXPRESSION}){_UNIT_POWER}")
MAY_HOLD_VALUE = re.compile(r"[\d₀-₉√π∞∅^(\[{\\¼-¾⅐-⅞]|\w\s?[-+*/×÷=<>≤≥]\s?\w")
_SYMBOL = "(?:[kcm]?m|[km]?g|[km]?s|min|h|mol|[kM]?[JWNV]|k?cal|e?V|[kM]?Pa|A|C|F|K|T|L|lb|ft|mi)"
# A lone letter, empty brackets, a lone command, a unit such as J·s.
_LONE = re.compile(
    rf"[A-Za-z]|[(\[{{]\W*+[)\]}}]|\\(?!infty|emptyset|varnothing|pi)[A-Za-z]+|{_SYMBOL}(?:[/·*]{_SYMBOL}(?:\^?-?[\d²³])?)+"
)
_NUMBER_ALONE = re.compile(
    rf"[-±]?\ ?{_NUMBER}(?:/{_UNSIGNED})?(?:\ ?[×*]\ ?10\^-?\d++)?(?:\ ?%)?(?=\Z|\s?[^\W\d_]{{2}})"
)
_EQUAL = re.compile(r"\s?=\s?")
_VARIABLE = re.compile(  # C(5, 2) is a number, and kg a unit
    rf"(?<![^\W\d_])(?:{_LETTER}|(?<=\d)(?!{_FUNCTION})[a-z]{{2}})(?![^\W\d_])(?!\([\d\s,]*\))"
)
_NO_NAMES = re.compile(rf"\\?(?<![A-Za-z])(?:{_FUNCTIONS}|sqrt|pi|circ|cdot|times|div)(?![A-Za-z])")
_TIMES = re.compile(r"(?<=\d)\s?x\s?(?=\d)")
_NAME_ALONE = re.compile(rf"\|?(?:\\?[A-Za-z]+|{_LETTER})(?:_\w+)?[′'’]?\|?(?:\([^()=]*\))?")


def is_value(text: str) -> bool:
    return not _LONE.fullmatch(text)


def starts_with_value(text: str) -> bool:
    found = VALUE.match(text)
    return found is not None and is_value(found[1])


def solved(value: str) -> str:
    """The amount that a calculation comes to, or an equation for one name: its last side, or its first.

    Other values, and equations of variables such as x + y = 7, are answers as they are.
    """
    sides = [side.strip() for side in _EQUAL.split(value)]
    first, last = sides[0], sides[-1]
    if len(sides) == 1 or last == "0" or re.search("[<>≤≥≠∈]|!=|\\\\(?:[lgn]eq?|in)\\b", value):
        return value.strip()
    if len(sides) == 2 and any(map(_has_variables, sides)):
        return value.strip()
    for side in (last, first):
        if _NUMBER_ALONE.match(side):
            return side
    has_names = re.search("[A-Za-z]", _NO_NAMES.sub(" ", value))
    return value.strip() if has_names else last


def _has_variables(side: str) -> bool:
    """Whether a side of an equation is an expression with variables, rather than a name or a number."""
    if re.fullmatch("[xyz]{2,3}", side):
        return True
    return not _NAME_ALONE.fullmatch(side) and _VARIABLE.search(_TIMES.sub("*", side)) is not None
