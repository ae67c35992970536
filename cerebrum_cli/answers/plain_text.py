"""Reduce a reply to plain text: without markup, its numbers in digits, its sentences apart.

Every pattern runs in linear time; hence the possessive quantifiers (`++`), which never give back what they took.
"""

from __future__ import annotations

import re

from cerebrum_cli.answers.rewriting import in_order, rewriting
from cerebrum_cli.core.text import Match

_ABBREVIATIONS = "Dr Mr Mrs Ms Prof St Mt vs approx sq cu No"
_NO_ABBREVIATION = "".join(rf"(?<!\b{title}\.)" for title in _ABBREVIATIONS.split())
# Where one sentence ends and another begins: not in 3.5, "6 p.m. sharp", "Dr. Lee" or "5! = 120".
_BOUNDARY = re.compile(
    rf"""(?x) (?<=[.!?])(?<!\d!)(?<!\b[A-Za-z]\.[A-Za-z]\.)(?<!\.\.){_NO_ABBREVIATION} ["'”’)*_]{{0,3}}\s++(?=[^\sa-z])
      | (?:(?<=\d!)|(?<=[a-z]\.[a-z]\.)|(?<=\.\.))\s++(?=[A-Z]) | (?<=\d\.)(?=[A-Z]) | (?<=。)(?=.)"""
)
_OPENING, _CLOSING = r"\s,;:*\"“«「『《〈【_~→⇒←†‡=¡", r"\s.,;:?\"”»」』》〉】_~→⇒←↵†‡=\\/、。…"

CALCULATOR_NOTE = re.compile(r"<<[^<>]*+>>")  # of GSM8K

# Symbols that decorate: ticks, stars, emoji, and their modifiers; not mathematical ones.
_DECORATION = (
    "[\u2300-\u2307\u230c-\u23ff\u25a0-\u27bf\u2b00-\u2bff\u3000-\u3007\U0001f000-\U0001faff\ufe0e\ufe0f\u20e3]"
)


def _joined_boxes(boxes: Match) -> str:
    return "\\boxed{" + ", ".join(re.findall(r"\{([^{}]*+)\}", boxes[0])) + "}"


_NOT_ASCII = r"[^\x00-\x7f]"
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
# Without HTML tags, footnotes and the bars of tables; listed boxes are one, and characters of full width are ASCII.
without_markup = in_order(
    lambda text: text.translate(_FULL_WIDTH),
    rewriting(
        (r"(?i)<br\s?/?>|</?p>", "\n"),
        (r"<sup>\s?\d+\s?</sup>|(?<=\S)\s?(?:\^\[\d+\]|\[\^\d+\])", ""),  # footnotes
        (r"(?i)</?(?:ans|b|center|code|div|em|font|i|mark|span|strong|u)(?:\s[^<>\n]*)?>", ""),
        (r"(?m)^\|[-:|]++$|^[ \t]*\|\s|\s\|[ \t]*$|&nbsp;", " "),  # a row of a table
        ("[\u200b-\u200d\u2060\ufeff]", ""),
        (r"\\boxed\{([^{}]*+)\}(?:\$?(?:,|,?\s(?:and|or))\s\$?\\boxed\{([^{}]*+)\})++", _joined_boxes),
        where=rf"[<\[&|]|boxed|{_NOT_ASCII}",
    ),
)

_TEXT_COMMAND = r"\\(?:text\w*+|mathrm|mathbf|mbox|operatorname|ce)\s*+\{((?:[^{}]++|\{[^{}]*+\})*+)\}"


def _without_separators(number: Match) -> str:
    return re.sub("[.,]", "", number[0])


_ARGUMENT = r"\s*+(?:\{((?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+)\}|([0-9A-Za-z]))"
_COMMAND = r"\\(?:[dtcs]|nice)?frac"
_TERM = re.compile(r"-?(?:\d[\d.,]*+|[A-Za-z]|\\[A-Za-z]++(?:\{[^{}]*+\})?)")
_FRACTION_DEPTH = 3


def _slashed(fraction: Match) -> str:
    r"""Write a LaTeX fraction with a slash, and with the parentheses its value needs."""
    over, under = _term(fraction.expand(r"\1\2")), _term(fraction.expand(r"\3\4"))
    if fraction[5]:
        return f"({over}/{under})"
    return f"{over}/{under}"


def _term(text: str) -> str:
    term = text.strip()
    if _TERM.fullmatch(term):
        return term
    return f"({term})"


# Without markup: fractions as "4/5", numbers without thousands separators, no delimiters.
plain = in_order(
    rewriting(
        (CALCULATOR_NOTE.pattern, ""),
        (r"(?<=[\w}%])" + _TEXT_COMMAND, r" \1"),
        (_TEXT_COMMAND, r"\1"),
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\(?:begin|end)\{(?:align|equation|gather)\w*\*?\}", ""),
        (r"(?<=\d)(?:\{,\}|,\\!\s|,?\\[,!;:])(?=\d{3}(?!\d))", ","),
        (r"(?<!\\)\\!", ""),
        (r"\s?\\(times|cdot|div|pm)(?=\d)", r" \\\1 "),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|(?<=\d)~", " "),
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"(?:\bUS)?\\?\$|`", ""),  # a dollar sign opens money or a formula; the answer is what stands behind it
        (r"\\([%{}#&_])", r"\1"),
        (r"(?<![\w)\]}^*])\*{1,3}(?=[^\s*])|(?<=[^\s^*])\*{1,3}(?![\w(\[{\\*])|\s\*++\Z", ""),  # bold, but not 2**3
        (rf"(?<=\w)\s*+(?={_COMMAND})", " "),  # 3\frac{1}{2} is three and a half, not 31/2
        (r"\\sqrt\s*+(?=[0-9A-Za-z\\])(\[\w*+\])?([0-9]|[A-Za-z]|\\[A-Za-z]++)", r"\\sqrt\1{\2}"),
        *[(_COMMAND + _ARGUMENT + _ARGUMENT + r"(?=([^\W_]|[\\(^])?)", _slashed)] * _FRACTION_DEPTH,
        where=r"[\\$`*<~{]",
    ),
    rewriting(
        (rf"\s?[(\[]\s?{_DECORATION}++\s?[)\]]|{_DECORATION}++|(?<!\S)[:;]-?[)(D](?!\S)", " "),
        (r"(?i)(?<![\d)]\s)\b(?:minus|negative)\s(?=[$€£]?\d)|(?<!\S)–(?=\d)", "-"),
        where=rf"(?i)\)|{_NOT_ASCII}|minus|negative",
    ),
    rewriting((r"(?<![\w.,/^*+-])(\d++)-(\d{1,2}/\d{1,3})(?=\s[^\W\d_]{3})", r"\1 \2"), where=r"\d-\d"),  # 5-1/4 cups
    rewriting(  # numbers grouped as in other countries, and with a decimal comma
        (r"(?<![\d.,])\d{1,2}(?:,\d\d(?=,))++,\d{3}(?![\d,])", _without_separators),
        (r"(?<=\d)['’_](?=\d{3}(?!\d))", ""),
        (
            r"(?<![\d.,])(\d{1,3})((?:[. \u00a0\u202f]\d{3})++),(\d{1,2})(?![\d,])",
            lambda number: f"{number[1]}{re.sub('[^0-9]', '', number[2])}.{number[3]}",
        ),
        (r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}+(?![\d.,]\d)", _without_separators),
        (r"(€\s?\d++),(\d\d)(?!\d)", r"\1.\2"),
        (r"(?<![\d.,])(\d++),(\d\d)(?=\s?(?:€|EUR|[Ee]uros?\b))", r"\1.\2"),
        (
            r"(?<![\d.,])\d{1,3}(?:\.\d{3})++(?=\s?(?:€|EUR|[Ee]uros?\b))|(?<=€)\s?\d{1,3}(?:\.\d{3})++(?![.\d])",
            _without_separators,
        ),
        (r"(?<![\w.,(\[{])[1-9]\d{0,2}(?:,\d{3})++(?![\d,]*\d)", _without_separators),
        (
            r"(?<![\w.,/])(?<!\d\s)[1-9]\d{0,2}([ \u00a0\u2009\u202f])\d{3}(?:\1\d{3})*+(?![\w/-]|[ ,]\d)",
            lambda number: number[0].replace(number[1], ""),
        ),
        where=r"\d[.,'’_ \u00a0\u2009\u202f]\d",
    ),
)

_CLOSED = rf"(?<![{_CLOSING}])((?<=[A-Za-z]\.[A-Za-z])\.)?[{_CLOSING}]*+\Z"  # the stop of "p.m." stays
# Without closing punctuation and the quotes around a text, but with the marks of a factorial and of "p.m.".
trimmed = rewriting(
    (r"(?<=[.,!?])['’]\s*\Z", ""),
    (rf"\A[{_OPENING}]++", ""),
    (_CLOSED, r"\1"),
    (  # "Done!", but not "5!"
        r"\A(?!(?![^!]*[^\W\d_]{2})(?:1?\d|20|[^\W\d]|[^!,]*\)|[^!]*[*·×]\s?\d{1,2}|[^!]+!.*[^!])!\Z)([^!]*+(?:!++[^!]++)*+)!++\Z",
        r"\1",
    ),
    (_CLOSED, r"\1"),
    (r"\A[\[{](?=[^)\]}]*+\Z)", ""),
    (r"\A['‘](.+)['’]\Z|\A['‘](\d[\w.]*+)\Z|\A(\d[\w.]*+)['’]\Z", r"\1\2\3"),
    (r"\A(?:\(([A-Z])\)|[\[<|⟨]{1,2}\$?(-?[\d./]++)[\]>|⟩]{1,2})\Z", r"\1\2"),
)


def sentences(line: str) -> list[str]:
    return _BOUNDARY.split(line)


def has_content(text: str) -> bool:
    return re.search(r"[^\W_]", text) is not None
