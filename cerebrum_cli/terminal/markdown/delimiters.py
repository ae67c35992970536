"""Mathematics in a line: text between delimiters that reads as mathematics. In doubt, the text stays as it is."""

from __future__ import annotations

import re

from cerebrum_cli.core.text import Match
from cerebrum_cli.terminal.markdown.mathematics import known_macros

# Scripts without spaces between words, and their punctuation.
IDEOGRAPHIC = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
# What may precede an opening "$", and "\(": a shell's groups follow quotes, brackets and stars.
_BEFORE_DOLLAR = rf"(?<![^\s(\[{{\"'“‘«—–:,;.!?>|=/*_~{IDEOGRAPHIC}-])"
_BEFORE_BACKSLASH = rf"(?<![^\W{IDEOGRAPHIC}])(?<![\\/)\]}}'\"^.+$])(?<![.)\]]\*)(?<!\\[(|?+ ])"
_AFTER_BACKSLASH = rf"(?![\\/{{\[$]|\.[a-z]{{2,4}}\b|\*[^\s*.,;:)]| ?\\[*+]|(?!(?:th|st|nd|rd|s)\b)[^\W{IDEOGRAPHIC}])"
_AFTER_DOLLAR = rf"(?![^\W{IDEOGRAPHIC}]|[${{(]|<<)"
INLINE_MATH = re.compile(
    rf"{_BEFORE_BACKSLASH}\\\((?P<round>(?:(?!\\\()[^`]){{1,999}}?)\\\){_AFTER_BACKSLASH}"
    rf"|(?<!\\)\\\[(?!\d+\\\])(?P<square>(?:(?!\\\[)[^`]){{1,999}}?)\\\]"
    r"|\$\$(?P<double>[^$`]{1,999})\$\$"
    rf"|{_BEFORE_DOLLAR}\$(?P<single>(?:[^$`\\]|\\.){{1,500}})(?<![-=+])\${_AFTER_DOLLAR}"
    rf"|{_BEFORE_DOLLAR}\$(?P<ordinal>\w)\$(?=th\b|s\b)"
    r"|(?<![\\$])\$(?P<part>[\^_](?:\{[^{}$`]{1,20}\}|\d|\\circ|[a-z+-](?=\$(?!\w)))|\\[a-zA-Z]{2,})\$(?!\$)"
)

# The text in a formula, which may be anything, and macros.
_TEXT = re.compile(
    r"\\(?:text[a-z]*|mathrm|mathbf|mathit|mathsf|mathtt|operatorname|mbox|tag)\*?\s*\{(?:[^{}]|\{[^{}]*\})*\}"
)
_MACRO = re.compile(r"\\([a-zA-Z]{2,})")
_PLACE = "§"  # of a macro, with its argument if that is text
# What programs, shells and regular expressions contain, and formulas do not.
_CODE_SIGNS = {
    "a quote, or a user": r'["`@]',
    "a comment": r"(?<!\\)#",
    "an apostrophe after which no formula goes on, as after f'": r"'(?!['(\s,;.:!?|)\]}^_+=*/<>-]|\Z)",
    "an apostrophe that follows no name, number or bracket": r"(?<![\w)}\]'])'",
    r"an escaped letter, such as \d": r"\\[a-zA-Z](?![a-zA-Z])",
    r"an escaped sign, such as \.": r"\\[.*+?()\[\]/^<-]",
    "an operator of a program: =~ && a->b :: a || b ++ //": r"[=!]~|&&|\w->\w|::| \|\| |\+\+|//",
    "an option of a group: (?:": r"\(\?",
    "any character, repeated: .*": r"(?<![\d\\])\.[*+?]",
    "a group or class, repeated: (a)+ [a]*": r"[\])][*+?]{1,2}(?![\w\s(§\\{\[.,;])|[\])]\?(?!\s|\Z)",
    r"a count: a{3} \d{2,} ]\{3": r"[A-Za-z0-9.)]\\?\{\d+,?\d*\\?\}|\](?:\\\{\d|\{\d+,)",
    "a block after a word: for{": r"[A-Za-z]{3}\{",
    "a class of characters: [^a] [a-z] [0-9]": r"\[\^|\[[aA01]-\w",
    "a beginning that no formula has: /a *a ,a ;a": r"\A\s*[/*,;]",
    "alternatives with a path: |/": r"\|/",
    "the beginning of a line: ^a |^a (^a": r"(?:\A\|?|[\s(/])\^(?![{§])",
    "nothing but a class or a list of names: [abc]": r"\A\[[^],;=]*\]\Z",
    "an option: --all -name, or two: -n 1 -r": r"(?:\A|\s)(?:--\w|-[a-z]{3,})|(?:\A|\s)-[a-zA-Z]\s.*\s-[a-zA-Z]\s",
    "an abbreviation: e.g.": r"\b[a-z]\.[a-z]\.",
    "an option before its value: -f x": r"\A\s*-[a-zA-Z] [\w/.]",
    "a variable: $x ${x} {{x}}": r"\$[A-Za-z_{(]|\A\{\w{2,}\}",
    "a name of several words: file_name": r"(?<![A-Za-z\\])[A-Za-z]{2,}_[A-Za-z]{2}",
    r"alternatives of words: ab\|": r"\w{2,}\\\|",
    "a product or a sum without its end: a* a-": r"\w\*\Z|[\s\w)][-=+/:]\s*\Z",
}
_CODE = re.compile("|".join(_CODE_SIGNS.values()))
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
# Money in other currencies, and "= 5" after an amount.
_CURRENCY = re.compile(r"[€£¥₹₩]|\A\s=")
# A number, one or two letters, a function, a point, an interval, several letters.
_TERM = re.compile(
    r"-?(?:[\d.,]|\{,\})+[!%]?|-?\d*\w\w?'*!?|-?\w'*\([^()\s]{1,20}\)|\(-?\w{1,3}(?:, ?-?\w{1,3})+\)"
    r"|[(\[]-?\w{1,3}, ?-?\w{1,3}[\])]|[A-Z]{2,4}|[a-z]+_\d|[A-Za-z]+ = [-\d.,+*/() ]+|\w(?:, ?\w|:\w)+"
)


def is_mathematics(found: Match) -> bool:
    r"""Whether what a match of INLINE_MATH has between its delimiters reads as mathematics."""
    content = next(filter(None, found.groups()))
    if found["part"]:  # as in CO$_2$, m$^{-1}$ and $\mu$m
        return content[0] != "\\" or content[1:] in known_macros()
    bare = _without_macros(content)
    if not _reads_so(content, bare):
        return False
    is_latex = bare != content
    has_sign = is_latex or _SIGN.search(content) is not None
    if found["single"]:  # prices, or variables of a shell
        if content[0].isspace() != content[-1].isspace() or _WORDS.search(bare):
            return False
        if is_latex or _TERM.fullmatch(content):
            return True
        return has_sign and not (_LONG_WORD.search(bare) or _PRICES.match(content) or _CURRENCY.search(content))
    if found["square"]:  # brackets that Markdown must not read
        return is_latex or content[0].isspace() or bool(_RELATION.search(bare) and not _WORD.search(bare))
    return has_sign or not _is_repeated(found)


def _is_repeated(found: Match) -> bool:
    r"""Whether a star follows that repeats a group, as in \(ab\)*, and does not end emphasis."""
    after = found.string[found.end() :]
    return after[:1] == "*" and after[1:2] != "*" and "*" not in found.string[: found.start()]


def reads_as_mathematics(content: str) -> bool:
    """Whether a text has what formulas have, and nothing that only code and sentences have."""
    return _reads_so(content, _without_macros(content))


def _reads_so(content: str, bare: str) -> bool:
    """The same for a text that is also given without its macros."""
    content, bare = (_NESTED.sub(r"\1", text.strip()) for text in (content, bare))
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
