"""Read how an answer is written: plain characters for LaTeX and Unicode, and the amount it states, exactly."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from cerebrum_cli.answers.number_words import PARTS, SCALES, VALUES, with_digits
from cerebrum_cli.answers.plain_text import plain, rewriting, rewritten
from cerebrum_cli.core.text import Match, one_line

_CHARACTERS = str.maketrans(
    dict(zip("−–—‐‑﹣×·∙⋅÷⁄∕’‘“”º", "------****///''\"\"°", strict=True))
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff")
)
_SCRIPTS = rewriting(
    ("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]++", r"^{\g<0>}"),
    ("[₀₁₂₃₄₅₆₇₈₉]++", r"_{\g<0>}"),
    (r"(?<=\d)(?=[¼-¾⅐-⅞])", " "),  # 2½ is no 21/2
)
_NAMED = (
    "times:* cdot:* ast:* div:/ pm:± infty:∞ circ:° degree:° le:≤ leq:≤ ge:≥ geq:≥ ne:≠ neq:≠ lt:< gt:> approx:≈ in:∈"
    " cup:∪ cap:∩ emptyset:∅ varnothing:∅ sqrt:√ pi:π alpha:α beta:β gamma:γ theta:θ lambda:λ mu:μ phi:φ omega:ω"
)
_COMMANDS = dict(pair.split(":") for pair in _NAMED.split())
_SCRIPT = re.compile(r"([\^_])\s?(?:\{([^{}]*+)\}|\((-?\w*+)\))(?=(\d)?)")
_ROOT = re.compile(r"(?:√|\bsqrt)\s?(\[\w*+\])?\s?(?:\{([^{}]*+)\}|\(([^()]*+)\)|(?<=t)\s?(?=\d|\w\b))(?=(\d)?)")
_OPERATORS = {"<=": "≤", ">=": "≥", "!=": "≠", "==": "=", "===": "=", "**": "^"}
_BRACES = 3  # how deep braces may stand in one another

_SCALES = SCALES | {
    "lakh": 10**5,
    "crore": 10**7,
    "k": 10**3,
    "mio.": 10**6,
    "millionen": 10**6,
    "万": 10**4,
    "亿": 10**8,
}

_ROWS = rewriting(
    (r"(?:[(\[](?=\s?\\begin\{array))?\s?\\begin\{(?:[bpv]?matrix|array)\}(?:\{[clr|]*+\})?\s?", "["),
    (r"\s?\\end\{(?:[bpv]?matrix|array\}\s?[)\]]?|array)\}?", "]"),
    (r"\s?\\\\\s?", ";"),
    (r"\\(?:boxed|fbox|math[a-z]++)(?:\s?\{([^{}]*+)\}|(?![a-z]))", r"\1"),
    (r"\\([a-z]++)", lambda name: _COMMANDS.get(name[1], name[1])),
    (r"(?<![^\W\d_])pi(?![^\W\d_])", "π"),
    (r"\+?(?:∞|\binfinity\b)", "∞"),
    (r"[<>!]=|={2,3}|\*\*", lambda sign: _OPERATORS[sign[0]]),
    (r"(?<=\d)\s?x\s?(?=\d)", "*"),
    (r"\s?(?:\^\s?(?:\{\s?°\s?\}|°)|°|\bdegrees?\b)", " "),
    (r"(?<=[(\[{&;])\s|\s(?=[)\]}&;])|(?<=\d)\s(?=[π√%])|(?<=\d):00\b|[€£¥₹¢]", ""),
    (r"(?<=\d)\s?([ap])\.?\s?m\b\.?", r" \1m"),
    (r"^(?:(?:exactly|only|just|about|around|roughly|approximately)\s|[~≈]\s?)(?=\S)", ""),
    (r"^(?:minus|negative)\s(?=\S)", "-"),
    (r"(?<=\d)\s(?:and\s)?(?:a|one)\s(half|third|quarter)\b", lambda part: f" 1/{PARTS[part[1].lower()]}"),
    (r"(?<=\d)\sand\s(?=\d/\d)", " "),
    (r"(\d++)\s(?:dollars?|euros?)(?:\sand|,)?\s(\d++)\s(?:cents?)\b", lambda money: f"{money[1]}.{money[2]:0>2}"),
    (r"(?<=\d)(\s[a-z]+?)s?(?:\sand|,|,\sand)(?=\s\d++(?:\.\d++)?\s[a-z]++$)", r"\1"),
    (r"(?<=\d)\s(hour|minute|second|day|week|foot|inch)e?s\b", r" \1"),
    (r"_\{?\((\d++)\)\}?", r"_\1"),
    (r"(\d++/\d++)\s(?=π)", r"(\1)"),
    (r"(?:^|(?<==)|(?<==\s))±\s?([\w./√]++)$", r"-\1 or \1"),
    flags=re.IGNORECASE,
)

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
_SPACED = re.compile(rf"{_SHORT}|[ACFJKLNVWaghlms]|an|as|at|by|of|.{{3,}}")
_JOINED = re.compile(rf"(?i){_SHORT}|min|mph|.{{4,}}")
# Words that no unit holds: they change the amount, or make it another one.
_NO_UNIT = re.compile(
    r"(?i)and|but|except|if|is|minus|mod|nor|not|or|plus|times|to|with|(?:cos|cot|csc|exp|ln|log|sin|tan)[^\Ws]?|sec[^\Ws]"
    r"|am|pm|decrease|dozens?|loss|squared|cubed|hal(?:f|ves)|thirds?|(?:four|fif|six|seven|eigh|nin|ten|hundred)ths?"
    rf"|{'|'.join([*VALUES, *_SCALES])}",
)


def normalize_spelling(text: str) -> str:
    """Normalize the spelling of an answer; words, case and order stay."""
    text = rewritten(text, _SCRIPTS).translate(_CHARACTERS)
    text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
    text = one_line(plain(text).replace('"', " "))  # LaTeX and thousands as extraction reads them
    text = with_digits(rewritten(text, _ROWS).strip())
    for _ in range(_BRACES):
        text = _ROOT.sub(_root, _SCRIPT.sub(_script, text))
    return text


def _script(script: Match) -> str:
    return script[1] + _group(script[2] or script[3] or "", script[4])


def _root(root: Match) -> str:
    start = "√" + (root[1] or "")
    inside = root[2]
    if inside is None:
        inside = root[3]
    if inside is None:
        return start
    return start + _group(inside, root[4])


def _group(inside: str, digit_behind: str | None) -> str:
    """Contents of a brace as one term: in parentheses, unless it is a number or a letter that ends there."""
    inside = inside.strip()
    is_term = re.fullmatch(r"-?\d++|[^\W\d_]", inside) and not (digit_behind and inside[-1:].isdigit())
    if is_term:
        return inside
    return f"({inside})"


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
