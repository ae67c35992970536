"""Reduce a reply to plain text: without markup, its numbers in digits, its sentences apart.

Every pattern runs in linear time; hence the possessive quantifiers (`++`), which never give back what they took.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# A full stop ends the sentence before a space, or before a capital when it follows a digit; not in 3.5 or foo.bar.
BREAK = re.compile(r"""[(\[{]|[)\]}]|(?<![.!?])[.!?]++(?=["'”’)]{0,3}(?:\s|\Z))|(?<=\d)\.(?=[A-Z])|。""")
_INITIALS = re.compile(r"\b[A-Za-z]{1,2}\.[A-Za-z]\Z")
_TITLE = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof|St|Mt|vs|approx|sq|cu)\Z")
_NEXT = re.compile(r"\S")
_OPENING, _CLOSING = ' ,;:*"“«', ' .,;:?"”»'

_UNSIGNED = r"(?:\d++(?:\.\d++)?|\.\d++)"
NUMBER_SOURCE = rf"""
    (?:(?<![\w)\]}}%])-)? (?<![A-Za-z\d_^])(?<!\d\.)(?<!\^\{{)
    (?: \d++(?::\d++)++ (?:\ ?[ap](?:m\b|\.m\.))?
      | (?:\d++\ (?=\d++/\d))? {_UNSIGNED} (?:\^(?:\{{-?\d++\}}|-?\d++))? (?:e[-+]?\d++)? (?:\ ?/\ ?{_UNSIGNED})?
        (?:\ ?(?:\\times|\\cdot|[×·*])\ ?10\ ?\^\ ?(?:\{{-?\d++\}}|-?\d++))?
        (?:\ ?%)?
    )
"""
NUMBER = re.compile(NUMBER_SOURCE, re.VERBOSE | re.IGNORECASE)

CALCULATOR_NOTE = re.compile(r"<<[^<>]*+>>")  # of GSM8K

Match = re.Match[str]
Replacement = str | Callable[[Match], str]
Rewriting = tuple[tuple[re.Pattern[str], Replacement], ...]


def rewriting(*rows: tuple[str, Replacement], flags: int = 0) -> Rewriting:
    return tuple((re.compile(pattern, flags), replacement) for pattern, replacement in rows)


def rewritten(text: str, rows: Rewriting) -> str:
    for pattern, replacement in rows:
        text = pattern.sub(replacement, text)
    return text


_TEXT_COMMAND = r"\\(?:text\w*+|mathrm|mathbf|mbox|operatorname)\s*+\{([^{}]*+)\}"
_PLAIN = rewriting(
    (CALCULATOR_NOTE.pattern, ""),
    (r"(?<=[\w}%])" + _TEXT_COMMAND, r" \1"),
    (_TEXT_COMMAND, r"\1"),
    (r"\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
    (r"(?<=\d)(?:\{,\}|,\\!\s|,?\\[,!;:])(?=\d{3}(?!\d))", ","),
    (r"(?<!\\)\\!", ""),
    (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|(?<=\d)~", " "),
    (r"(?<!\\)\\[()\[\]]", ""),
    (r"(?:\bUS)?\\?\$|`", ""),  # a dollar sign opens money or a formula; the answer is what stands behind it
    (r"\\([%{}#&_])", r"\1"),
    (r"(?<![\w)\]}^*])\*{1,3}(?=[^\s*])|(?<=[^\s^*])\*{1,3}(?![\w(\[{\\*])|\s\*++\Z", ""),  # bold, but not 2**3
)
_MARKED = re.compile(r"[\\$`*<~{]")  # what all of these patterns need
_THOUSANDS = re.compile(r"(?<![\w.,(\[{])[1-9]\d{0,2}(?:,\d{3})++(?![\d,]*\d)")

_SPACED_THOUSANDS = re.compile(
    r"(?<![\w.,/])(?<!\d\s)[1-9]\d{0,2}([ \u00a0\u2009\u202f])\d{3}(?:\1\d{3})*+(?![\w/-]|[ ,]\d)"
)

_ARGUMENT = r"\s*+(?:\{((?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+)\}|([0-9A-Za-z]))"
_FRACTION = re.compile(r"\\(?:[dtcs]|nice)?frac" + _ARGUMENT + _ARGUMENT + r"(?=([\w\\(^])?)")
_BEFORE_FRACTION = re.compile(r"(?<=\w)\s*+(?=\\(?:[dtcs]|nice)?frac)")
_TERM = re.compile(r"-?(?:\d[\d.,]*+|[A-Za-z]|\\[A-Za-z]++(?:\{[^{}]*+\})?)")
_FRACTION_DEPTH = 3


def plain(text: str) -> str:
    """Remove markup from a text: fractions as "4/5", numbers without thousands separators, no delimiters."""
    if _MARKED.search(text):
        text = _BEFORE_FRACTION.sub(" ", rewritten(text, _PLAIN))  # 3\frac{1}{2} is three and a half, not 31/2
        for _ in range(_FRACTION_DEPTH):
            text = _FRACTION.sub(_slashed, text)
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    return _SPACED_THOUSANDS.sub(lambda number: number[0].replace(number[1], ""), text)


def _slashed(fraction: Match) -> str:
    r"""Write a LaTeX fraction with a slash, and with the parentheses its value needs."""
    over = _term(fraction[1] or fraction[2])
    under = _term(fraction[3] or fraction[4])
    if fraction[5]:
        return f"({over}/{under})"
    return f"{over}/{under}"


def _term(text: str | None) -> str:
    term = (text or "").strip()
    if _TERM.fullmatch(term):
        return term
    return f"({term})"


def trimmed(text: str) -> str:
    """Strip closing punctuation and the quotes around a text, but not the marks of a factorial and of "p.m."."""
    stripped = re.sub(r"(?<=[.,!?])['’]\Z", "", text.strip()).lstrip(_OPENING).rstrip(_CLOSING)
    if not stripped.rstrip("!")[-1:].isdigit():
        stripped = stripped.rstrip("!").rstrip(_CLOSING)
    end = text.rfind(stripped) + len(stripped)
    if _INITIALS.search(stripped[-4:]) and text[end : end + 1] == ".":
        stripped += "."
    if len(stripped) > 1 and stripped[0] in "'‘" and stripped[-1] in "'’":
        return stripped[1:-1].rstrip(_CLOSING)
    return stripped


def sentences(line: str) -> list[str]:
    found = []
    start = 0
    for mark in BREAK.finditer(line):
        if mark[0] not in "([{)]}" and sentence_stop(line, mark) is not None and not _after(line, mark).islower():
            found.append(line[start : mark.end()])
            start = mark.end()
    found.append(line[start:])
    return found


def sentence_stop(line: str, mark: Match) -> int | None:
    """End of the sentence at this mark; None if the mark is part of it ("6 p.m. sharp", "5! = 120")."""
    before = line[max(0, mark.start() - 8) : mark.start()]
    after = _after(line, mark)
    starts_new = not after or after.isupper()
    if mark[0].startswith("!") and before[-1:].isdigit():  # a factorial
        return mark.start() + 1 if starts_new else None
    if _INITIALS.search(before):
        ends = not after or (starts_new and before[-1:].islower())
        return mark.start() + 1 if ends else None
    if _TITLE.search(before) and after:
        return None
    if mark[0].startswith("..") and not starts_new:
        return None
    if line[mark.end() : mark.end() + 1] in tuple("\"'”’»"):
        return mark.end() + 1
    return mark.start()


def _after(line: str, mark: Match) -> str:
    character = _NEXT.search(line, mark.end())
    if character is None:
        return ""
    return character[0]


def has_content(text: str) -> bool:
    return re.search(r"[^\W_]", text) is not None
