"""Spell an answer one way: plain characters for LaTeX and Unicode, digits for words; words, case and order stay."""

from __future__ import annotations

import re
import unicodedata

from cerebrum_cli.answers.number_words import PARTS, with_digits
from cerebrum_cli.answers.plain_text import plain
from cerebrum_cli.answers.rewriting import in_order, rewriting
from cerebrum_cli.core.text import Match, one_line

_CHARACTERS = str.maketrans(
    dict(zip("−–—‐‑﹣×·∙⋅÷⁄∕’‘“”º", "------****///''\"\"°", strict=True))
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff")
)
_NAMED = (
    "times:* cdot:* ast:* div:/ pm:± infty:∞ circ:° degree:° le:≤ leq:≤ ge:≥ geq:≥ ne:≠ neq:≠ lt:< gt:> approx:≈ in:∈"
    " cup:∪ cap:∩ emptyset:∅ varnothing:∅ sqrt:√ pi:π alpha:α beta:β gamma:γ theta:θ lambda:λ mu:μ phi:φ omega:ω"
)
_COMMANDS = dict(pair.split(":") for pair in _NAMED.split())
_OPERATORS = {"<=": "≤", ">=": "≥", "!=": "≠", "==": "=", "===": "=", "**": "^"}


def _in_plain_characters(text: str) -> str:
    return unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).translate(_CHARACTERS)


def _without_quotes(text: str) -> str:
    return one_line(text.replace('"', " "))


def _term(group: Match) -> str:
    """Contents of a brace as one term: in parentheses, unless it is a number or a letter that ends there."""
    inside = group.expand(r"\2\3").strip()
    is_term = re.fullmatch(r"-?\d++|[^\W\d_]", inside) and not (group[4] and inside[-1:].isdigit())
    if is_term:
        return inside
    return f"({inside})"


_raised_with_braces = rewriting(
    ("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]++", r"^{\g<0>}"),
    ("[₀₁₂₃₄₅₆₇₈₉]++", r"_{\g<0>}"),
    (r"(?<=\d)(?=[¼-¾⅐-⅞])", " "),  # 2½ is no 21/2
)
_with_symbols = rewriting(
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
    (r"^(\d++)\sto\s(\d++)$", r"\1:\2"),
    (r"(\d++)\s(?:dollars?|euros?)(?:\sand|,)?\s(\d++)\s(?:cents?)\b", lambda money: f"{money[1]}.{money[2]:0>2}"),
    (r"(?<=\d)(\s[a-z]+?)s?(?:\sand|,|,\sand)(?=\s\d++(?:\.\d++)?\s[a-z]++$)", r"\1"),
    (r"(?<=\d)\s(hour|minute|second|day|week|foot|inch)e?s\b", r" \1"),
    (r"_\{?\((\d++)\)\}?", r"_\1"),
    (r"(?:^|(?<==)|(?<==\s))±\s?([\w./√]++)$", r"-\1 or \1"),
    flags=re.IGNORECASE,
)
_without_braces = rewriting(
    (r"([\^_])\s?(?:\{([^{}]*+)\}|\((-?\w*+)\))(?=(\d)?)", lambda script: script[1] + _term(script)),
    (
        r"(?:√|\bsqrt)\s?(\[\w*+\])?\s?(?:\{([^{}]*+)\}|\(([^()]*+)\))(?=(\d)?)",
        lambda root: root.expand(r"√\1") + _term(root),
    ),
    (r"\bsqrt\s?(?=\d|\w\b)", "√"),
)

spelled = in_order(
    _raised_with_braces,
    _in_plain_characters,
    plain,  # LaTeX and thousands as extraction reads them
    _without_quotes,
    _with_symbols,
    str.strip,
    with_digits,
    *[_without_braces] * 3,  # as deep as braces may stand in one another
)
