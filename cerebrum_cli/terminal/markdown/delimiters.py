"""Mathematics in a line: text between delimiters that reads as mathematics. In doubt, the text stays as it is."""

from __future__ import annotations

import re

from cerebrum_cli.core.text import Match
from cerebrum_cli.terminal.markdown.mathematics import known_macros

# Scripts without spaces between words, and their punctuation.
IDEOGRAPHIC = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
# What may precede an opening "$", and "\(": a shell's groups follow quotes, brackets and stars.
_BEFORE_DOLLAR = rf"(?<![^\s(\[{{\"'“‘«—–:,;.!?>|=/*_~{IDEOGRAPHIC}-])"
_BEFORE_BACKSLASH = rf"(?<![^\W{IDEOGRAPHIC}])(?<![\\/)\]}}'\"^.+$])(?<![.)\]]\*)(?<!\\[(|?+])"
_AFTER_BACKSLASH = rf"(?![\\/{{\[$]|\*[^\s*.,;:)]| ?\\[*+]|(?!(?:th|st|nd|rd|s)\b)[^\W{IDEOGRAPHIC}])"
_AFTER_DOLLAR = rf"(?![^\W{IDEOGRAPHIC}]|[${{(]|<<)"
INLINE_MATH = re.compile(
    rf"{_BEFORE_BACKSLASH}\\\((?P<round>(?:(?!\\\()[^`]){{1,999}}?)\\\){_AFTER_BACKSLASH}"
    rf"|(?<!\\)\\\[(?!\d+\\\])(?P<square>(?:(?!\\\[)[^`]){{1,999}}?)\\\]"
    r"|\$\$(?P<double>[^$`]{1,999})\$\$"
    rf"|{_BEFORE_DOLLAR}\$(?P<single>(?:[^$`\\]|\\.){{1,500}})(?<![-=+])\${_AFTER_DOLLAR}"
    rf"|{_BEFORE_DOLLAR}\$(?P<ordinal>\w)\$(?=th\b|s\b)"
)

# The text in a formula, which may be anything, and macros.
_TEXT = re.compile(
    r"\\(?:text[a-z]*|mathrm|mathbf|mathit|mathsf|mathtt|operatorname|mbox|tag)\*?\s*\{(?:[^{}]|\{[^{}]*\})*\}"
)
_MACRO = re.compile(r"\\([a-zA-Z]{2,})")
# What programs, shells and regular expressions contain, and formulas do not.
_CODE = re.compile(
    r"""["`@]|(?<!\\)\#  # quotes, comments
    |'(?!['(\s,;.:!?|)\]}^_+=*/<>-]|\Z)|(?<![\w)}\]'])'  # an apostrophe that is no prime
    |\\(?:[a-zA-Z](?![a-zA-Z])|[.*+?()\[\]/^<-])  # \d, \.
    |[=!]~|&&|\w->\w|::|[ ]\|\|[ ]|\+\+|\(\?|//  # operators
    |(?<![\d\\])\.[*+?]|[\])][*+?]{1,2}(?![\w\s(§\\{\[.,;])|[\])]\?(?!\s|\Z)  # quantifiers
    |[A-Za-z0-9.)]\\?\{\d+,?\d*\\?\}|\](?:\\\{\d|\{\d+,)|[A-Za-z]{3}\{
    |\[\^|\[[aA01]-\w  # classes of characters
    |\A\s*[/*,;]|\|/|(?:\A\|?|[\s(/])\^(?![{§])|\A\[[^],;=]*\]\Z  # anchors
    |(?:\A|\s)(?:--\w|-[a-z]{3,})|(?:\A|\s)-[a-zA-Z]\s.*\s-[a-zA-Z]\s  # options
    |\$[A-Za-z_{(]|\A\{\w{2,}\}  # variables
    |(?<![A-Za-z\\])[A-Za-z]{2,}_[A-Za-z]{2}  # names
    |\w{2,}\\\||\w\*\Z|[\s\w)][-=+/:]\s*\Z""",
    re.VERBOSE,
)
_PLACE = "§"
_NESTED = re.compile(r"(?s)\A\\[(\[](.*)\\[)\]]\Z")
_SIGN = re.compile(r"[\\^_=<>+*/|×÷±·√≤≥≠≈≡∈∑∏∫∂∞π→⇒°²³]")
_RELATION = re.compile(r"\w\^|[=<>≤≥≈≠]")
_WORDS = re.compile(r"(?<![\w\\])[^\W\d_]{2,}[ ,]+[^\W\d_]{2,}")
_WORD = re.compile(r"[^\W\d_]{3}")
_LONG_WORD = re.compile(r"(?<![\\\w])[^\W\d_]{4}")
# An amount of money, and something else: "5/kg or 10", "1,299.00 + 5", "20k | 500".
_PRICES = re.compile(
    r"\d(?:[\d,.]*(?:\+(?!\w)|(?:.*\s)?[a-z]{2}|(?<=,\d{3})|(?<=\.\d\d))(?!.*[=^])|.*/[a-z]{2}|(?:.*\d)?[kM]\b)"
)
# A number, one or two letters, a function, a point, an interval, several letters.
_TERM = re.compile(
    r"-?[\d.,]+[!%]?|-?\d*\w\w?'*!?|-?\w'*\([^()\s]{1,20}\)|\(-?\w{1,3}(?:, ?-?\w{1,3})+\)"
    r"|[(\[]-?\w{1,3}, ?-?\w{1,3}[\])]|[A-Z]{2,4}|[a-z]+_\d|[A-Za-z]+ = [-\d.,+*/() ]+|\w(?:, ?\w|:\w)+"
)


def is_mathematics(found: Match) -> bool:
    """Whether what a match of INLINE_MATH has between its delimiters reads as mathematics."""
    content = next(filter(None, found.groups()))
    if not reads_as_mathematics(content):
        return False
    bare = _without_macros(content)
    is_latex = bare != content
    has_sign = is_latex or _SIGN.search(content) is not None
    if found["single"]:  # prices, or variables of a shell
        if content[0].isspace() != content[-1].isspace() or _WORDS.search(bare):
            return False
        if is_latex or _TERM.fullmatch(content):
            return True
        return has_sign and not _LONG_WORD.search(bare) and not _PRICES.match(content)
    if found["square"]:  # brackets that Markdown must not read
        return is_latex or content[0].isspace() or bool(_RELATION.search(bare) and not _WORD.search(bare))
    return True


def reads_as_mathematics(content: str) -> bool:
    """Whether a text has what formulas have, and nothing that only code and sentences have."""
    content = _NESTED.sub(r"\1", content.strip())
    bare = _without_macros(content)
    if not re.search(r"[^\W_]|§", bare) or _CODE.search(bare) or not _is_balanced(bare):
        return False
    macros = _MACRO.findall(_TEXT.sub("", content))
    if macros:
        return not known_macros().isdisjoint(macros)
    if bare != content or _SIGN.search(content):
        return _WORDS.search(bare) is None
    return _TERM.fullmatch(content) is not None or _WORD.search(content) is None


def _without_macros(content: str) -> str:
    return _MACRO.sub(_PLACE, _TEXT.sub(_PLACE, content))


def _is_balanced(text: str) -> bool:
    """Whether each bracket is closed, that of a half-open interval by one of another kind, and each bar."""
    depth = 0
    if text.count(r"\|") % 2 or (text.startswith("|") and text.count("|") % 2):
        return False
    for bracket in re.findall(r"[()\[\]{}]", text):
        depth += 1 if bracket in "([{" else -1
        if depth < 0:
            return False
    return depth == 0
