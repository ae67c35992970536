"""Normalize the spelling of an extracted answer: plain characters for LaTeX and for Unicode variants of ASCII.

Pure rewriting: rows of a pattern and its replacement, applied in order.
"""

from __future__ import annotations

import re
import unicodedata

from cerebrum_cli.answers.amounts import NUMBER_WORD
from cerebrum_cli.answers.plain_text import plain, rewriting, rewritten

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
    " cup:∪ cap:∩ emptyset:∅ varnothing:∅ lambda:λ sqrt:√"
)
_COMMANDS = dict(pair.split(":") for pair in _NAMED.split())
_COMMAND = re.compile(r"\\([A-Za-z]++)")
_SCRIPT = re.compile(r"([\^_])\s?(?:\{([^{}]*+)\}|\((-?\w*+)\))(?=(\d)?)")
_ROOT = re.compile(r"(?:√|\bsqrt)\s?(\[\w*+\])?\s?(?:\{([^{}]*+)\}|\(([^()]*+)\)|(?<=t)\s?(?=\d|\w\b))(?=(\d)?)")
_BRACES = 3  # how deep braces may stand in one another

_NUMBER = rf"(?=[-+.\d√π]|{NUMBER_WORD})"
_PROSE = (
    r"(?:i|he|she|it|they|we|you|there)\s(?:(?:will|would)\s)?(?:has|have|had|is|are|was|were|be|needs?|gets?|pays?|earns?"
    r"|makes?|spends?|costs?)"
)
_MIXED_UNITS = "hours?|hrs?|h|minutes?|mins?|days?|weeks?|months?|years?|feet|foot|ft|pounds?|lbs?|dollars?|euros?"
_ROWS = rewriting(
    (r"\s?\\begin\{[bp]?matrix\}\s?", "["),
    (r"\s?\\end\{[bp]?matrix\}", "]"),
    (r"\s?\\\\\s?", ";"),
    (r"\\(?:boxed|fbox|math[a-z]++)(?:\s?\{([^{}]*+)\}|(?![a-z]))", r"\1"),
    flags=re.IGNORECASE,
)


_LATER_ROWS = rewriting(
    (r"(?<![^\W\d_])pi(?![^\W\d_])", "π"),
    (r"\binfinity\b", "∞"),
    (r"<=", "≤"),
    (r">=", "≥"),
    (r"!=", "≠"),
    (r"={2,3}", "="),
    (r"\+\s?/?\s?-(?=\s?\d)", "±"),
    (r"\*\*", "^"),
    (r"(?<=\d)\s?x\s?(?=\d)", "*"),
    (r"\^\s?(?:\{\s?°\s?\}|°)|\s?\bdegrees?\b", "°"),
    (r"(?<=[(\[{&;])\s|\s(?=[)\]}&;])", ""),
    (r"(?<=\d)\s?¢", " cents"),
    (r"[€£¥₹₩₽¢]", ""),
    (r"^([-+]?)\s?(?:usd|eur|gbp|inr|rs\.?|cad|aud|jpy|cny|chf)\s?(?=[-+]?\.?\d)", r"\1"),
    (r"(?<=\d)\s(?=[π√%])", ""),
    (r"(?<=\d)(?:st|nd|rd|th)\b", ""),
    (r"(?<=\d)\so'?\s?clock\b", ":00"),
    (r"\b0?(\d{1,2})(?::00|(:\d\d))?\s?([ap])\.?\s?m\b\.?", r"\1\2 \3m"),
    (rf"^{_PROSE}\s(?:(?:exactly|only|just|about|a\stotal\sof)\s)?{_NUMBER}", ""),
    (rf"^(?:exactly|only|just|about|around|roughly|approximately|approx\.?|a total of)\s{_NUMBER}", ""),
    (r"^[~≈]\s?", ""),
    (r"\b(?:minus|negative)\s(?=\w)", "-"),
    (r"(?<=\w) and a half\b", " 1/2"),
    (r"\b(?:a\s)?half\s(?:an?\s)?(?=(?:dozen|hundred|thousand|million|billion)\b)", "1/2 "),
    (r"^an?\s(?=(?:dozen|gross)\b)", "1 "),
    (r"^([-+]?\d++(?:\.\d++)?)k(?=$|\s[a-z]{3})", r"\1 thousand"),
    (r"^([-+]?\d++(?:\.\d++)?)(?-i:M)(?=$|\s[a-z]{3})", r"\1 million"),  # but 2m is a variable's
    (r"(?:(?<=[\d)])|(?<=\b[a-z]))\ssquared\b(?!\s\w)", "^2"),  # 10 squared feet are 10
    (r"(?:(?<=[\d)])|(?<=\b[a-z]))\scubed\b(?!\s\w)", "^3"),
    (
        r"^(\d++(?:\.\d++)?)\sto\s(\d++(?:\.\d++)?)(?:\sto\s(\d++))?$",
        lambda found: ":".join(filter(None, found.groups())),
    ),
    (rf"(\d\s?(?:{_MIXED_UNITS}))\s(?=\d)", r"\1, "),  # 5 feet 6 inches
    (r"(?:^|(?<==)|(?<==\s))±\s?([\w./√]++)$", r"-\1 or \1"),
    flags=re.IGNORECASE,
)
_THOUSANDS = re.compile(r"(?<![\w.,/])(?<!\d\s)[1-9]\d{0,2}([ _'])\d{3}(?:\1\d{3})*+(?![\w/]|[ ,_]\d)")


def normalize_spelling(text: str) -> str:
    """Normalize the spelling of an answer; words, case and order stay."""
    text = rewritten(text, _SCRIPTS).translate(_CHARACTERS)
    text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
    text = " ".join(plain(text).replace('"', " ").split())  # LaTeX and thousands as extraction reads them
    text = rewritten(_COMMAND.sub(_character, rewritten(text, _ROWS)), _LATER_ROWS)
    for _ in range(_BRACES):
        text = _ROOT.sub(_root, _SCRIPT.sub(_script, text))
    return _THOUSANDS.sub(lambda digits: re.sub(r"\D", "", digits[0]), text)


def _character(command: re.Match[str]) -> str:
    name = command[1]
    try:
        return _COMMANDS.get(name) or unicodedata.lookup(
            f"GREEK {'CAPITAL' if name[0].isupper() else 'SMALL'} LETTER {name}"
        )
    except KeyError:
        return name


def _script(script: re.Match[str]) -> str:
    return script[1] + _group(script[2] if script[2] is not None else script[3], script[4])


def _root(root: re.Match[str]) -> str:
    inside = root[2] if root[2] is not None else root[3]
    return "√" + (root[1] or "") + ("" if inside is None else _group(inside, root[4]))


def _group(inside: str, digit_behind: str | None) -> str:
    """Contents of a brace as one term: in parentheses, unless it is a number or a letter that ends there."""
    inside = inside.strip()
    is_term = re.fullmatch(r"-?\d++|[^\W\d_]", inside) and not (digit_behind and inside[-1:].isdigit())
    return inside if is_term else f"({inside})"
