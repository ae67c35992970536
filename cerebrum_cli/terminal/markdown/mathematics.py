r"""Mathematics in LaTeX as Unicode text: between \( \), \[ \], $$ and, by Pandoc's rule, $.

What does not read as a formula, or has a macro that is not known, stays as it was written.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from cerebrum_cli.core.text import Match, Pattern

# Scripts without spaces between words, and their punctuation.
IDEOGRAPHIC = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
_BEFORE = rf"(?<![^\s(\[{{\"“‘«—–:,;>|=*_~{IDEOGRAPHIC}-])(?<![\w.)\]]\*)"
_AFTER = rf"(?!\.[a-z]|\*[^\s*.,;:)])(?=\Z|[\s)\]}}\"'”’»—–:,;.!?<|*_~{IDEOGRAPHIC}-]|(?:th|st|nd|rd)\b)"
INLINE_MATH = re.compile(
    rf"{_BEFORE}\\\((?P<round>(?:(?!\\[()])[^`]){{1,999}}?)\\\){_AFTER}"
    rf"|{_BEFORE}\\\[(?P<square>(?:(?!\\[\[\]])[^`]){{1,999}}?)\\\]{_AFTER}"
    r"|\$\$(?P<double>[^$`]{1,999})\$\$"
    rf"|{_BEFORE}\$(?P<single>(?!\s)(?:[^$`\\]|\\.){{1,500}}(?<!\s))\$(?!\d)"
    # behind a word, as in CO$_2$, m$^{-1}$ and 3$\times$4
    r"|(?<![\\$])\$(?P<part>[\^_](?:\{[^{}$`]{1,20}\}|\d|\\circ|[a-z+-](?=\$(?!\w)))|\\[a-zA-Z]{2,})\$(?!\$)"
)
_MARKUP, _MACRO = re.compile(r"[\\^_]"), re.compile(r"\\[a-zA-Z]{2}")
_SIGN = re.compile(r"[\\^_=<>+*/|×÷±·√≤≥≠≈∈→°²³-]|\d")
_NAME = re.compile(r"\s*(?:\w{1,2}'?|[A-Z]{2,4}|\w'*\([\w, ]*\))\s*")
_WORDS = re.compile(r"[^\W\d_]{3,} [^\W\d_]{2,}")
# A string, a comment, operators and variables of a shell, and parts of regular expressions.
_CODE = re.compile(r"[\"`#@]|'\*|\*'|&&|::|=~|(?<!\\)\$|\(\?|\.\*|/\^|\[\^|\A\s*(?:[,;/]|\^[^{\\]|\|(?:\^|[^|]*\Z))")
_OPTION = re.compile(r"-[a-z]{3}|\A\s*-[a-zA-Z]\s")

# Private-use characters: braces and script marks that are text, and the ends of a fraction or a root.
_LITERAL = "\ue100\ue101\ue102\ue103"
_TO_LITERAL, _FROM_LITERAL = str.maketrans("{}^_", _LITERAL), str.maketrans(_LITERAL, "{}^_")
_UNIT = re.compile("([\\w)]?)\ue104([^\ue104\ue105]*)\ue105(?=([\\w(√^_!∑∏∫\ue104]?))")
_SCRIPT = re.compile(r"([\^_])(?:\{([^{}^_]*)\}|([^\s{}^_]))")
_SCRIPTS = {
    "^": str.maketrans("0123456789+-=()nixyab′∘", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣʸᵃᵇ′°"),
    "_": str.maketrans("0123456789+-=()aeijkmnprtx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑᵢⱼₖₘₙₚᵣₜₓ"),
}
_WORD_MARK = re.compile(r"[\^_](?=[^\W\d_]{2}|\d{2})")
_RELATION = re.compile(r"\s*([=×±≤≥≠≈≡→⟹⟺⇒∈∉⊂⊆∪∩∧∨·])\s*")
_NUMERATOR = re.compile(r"[\w.,]+|\([^()]*\)|√\w")
_RADICAND = re.compile(r"[\d.,]+|[^\W\d]|\([^()]*\)")
_DENOMINATOR = re.compile(r"[\d.,]+|d?[^\W\d][²³⁰-⁹₀-₉ⁿ]*|\([^()]*\)|√\w")  # "ab" may be a product

# What pylatexenc does not know, or writes otherwise. Text may have underscores; others show only their argument.
_TEXTS = "text textrm textbf textit texttt mathrm mathbf mathit mathsf mathtt operatorname mbox boldsymbol bm"
_INVISIBLE = "left right middle big Big bigl bigr Bigl Bigr bigg Bigg displaystyle limits nonumber ! hline"
_SYMBOLS = """implies ⟹, iff ⟺, dots …, cdots ⋯, mid |, lvert |, rvert |, ne ≠, checkmark ✓, lt <, gt >, | ‖,
land ∧, lor ∨, neg ¬, lnot ¬, triangle △, square □, degree °, gets ←, gcd gcd, det det, dim dim, ker ker, deg deg,
arg arg, bmod mod, { \ue100, } \ue101, boxed %s, pmod (mod %s), tag (%s), binom (%s choose %s)"""
_ACCENTS = {
    "vec": "\u20d7",
    "hat": "\u0302",
    "bar": "\u0304",
    "overline": "\u0305",
    "dot": "\u0307",
    "ddot": "\u0308",
    "tilde": "\u0303",
}
_FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac")
_ROWS = ("aligned", "align", "gather", "gathered", "split", "multline", "equation", "eqnarray")


def is_mathematics(found: Match) -> bool:
    """Whether what a match of INLINE_MATH has between its delimiters reads as mathematics."""
    if found["part"]:
        return True
    content = found["round"] or found["square"] or found["double"] or found["single"]
    if found["single"] and not _MARKUP.search(content):  # prices
        return False
    if found["square"] and not (
        content[0].isspace() or _MARKUP.search(content)
    ):  # brackets that Markdown must not read
        return False
    return reads_as_mathematics(content)


def reads_as_mathematics(content: str) -> bool:
    """Whether a text has a sign of a formula or is a short name, and has nothing that only code and sentences have."""
    if _CODE.search(content) or not re.search(r"[^\W_]", content):
        return False
    if not _MACRO.search(content) and (_OPTION.search(content) or _WORDS.search(content)):
        return False
    return _SIGN.search(content) is not None or _NAME.fullmatch(content) is not None


def formula(source: str, separator: str = "; ") -> str:
    """Mathematics with its delimiters as Unicode, its rows joined by a separator; as it is if it is not understood."""
    width = 1 if source.startswith("$") and not source.startswith("$$") else 2
    text = to_unicode(source[width:-width])
    return source if text is None else separator.join(text)


def to_unicode(latex: str) -> list[str] | None:
    """The rows of LaTeX as Unicode; None if it is not valid, or has a macro or an environment that is not known."""
    from pylatexenc.latex2text import LatexNodes2Text
    from pylatexenc.latexwalker import LatexWalker, LatexWalkerError

    writer = LatexNodes2Text(
        _writing_context(),
        keep_braced_groups=True,
        keep_braced_groups_minlen=0,
        strict_latex_spaces={"between-macro-and-chars": False, "between-latex-constructs": True},
    )
    source = re.sub(r"\n|\\(?:left|right)\.|(?<!\\)~", " ", latex)
    source = re.sub(r"(?<!\\)%", r"\\%", source)  # it would begin a comment
    try:
        nodes, _, _ = LatexWalker(source, _parsing_context(), tolerant_parsing=False).get_latex_nodes()
        text = writer.nodelist_to_text(nodes)
    except (LatexWalkerError, RecursionError, ValueError):
        return None
    return [row for line in text.strip().split("\n") if (row := _with_spaces(line))]


@cache
def _parsing_context() -> Any:
    """What pylatexenc parses: its own macros, and below them ours with their arguments."""
    from pylatexenc.latexwalker import get_default_latex_context_db
    from pylatexenc.macrospec import std_macro

    arguments = {name: text.count("%s") for name, text in _symbols().items() if "%s" in text}
    arguments |= dict.fromkeys((*_ACCENTS, *_TEXTS.split()), 1) | dict.fromkeys(_FRACTIONS, 2)
    context = get_default_latex_context_db().filter_context(exclude_categories=["nonascii-specials"])
    macros = [std_macro(name, False, count) for name, count in arguments.items()]
    context.add_context_category("ours", macros, prepend=True)
    return context


@cache
def _writing_context() -> Any:
    """How pylatexenc writes that."""
    from pylatexenc.latex2text import EnvironmentTextSpec, MacroTextSpec, get_default_latex_context_db

    macros = [MacroTextSpec(name, text) for name, text in _symbols().items()]
    macros += [MacroTextSpec(name, discard=True) for name in _INVISIBLE.split()]
    macros += [MacroTextSpec(name, _plain) for name in _TEXTS.split()]
    macros += [MacroTextSpec(name, _fraction) for name in _FRACTIONS]
    macros += [MacroTextSpec(name, _accented) for name in _ACCENTS]
    macros.append(MacroTextSpec("sqrt", _root))
    rows = [EnvironmentTextSpec(f"{name}{star}", "%(body)s") for name in _ROWS for star in ("", "*")]
    context = get_default_latex_context_db().filter_context(exclude_categories=["nonascii-specials"])
    context.add_context_category("ours", macros, rows, prepend=True)
    context.set_unknown_macro_spec(MacroTextSpec("", _refuse))
    context.set_unknown_environment_spec(EnvironmentTextSpec("", _refuse))
    return context


@cache
def _symbols() -> dict[str, str]:
    return dict(pair.strip().split(" ", 1) for pair in _SYMBOLS.split(","))


def _refuse(node: Any, **_: Any) -> str:
    raise ValueError(f"unknown: {node}")


def _plain(node: Any, l2tobj: Any) -> str:
    text: str = l2tobj.node_arg_to_text(node, 0)
    return _WORD_MARK.sub(lambda mark: mark[0].translate(_TO_LITERAL), text)


def _accented(node: Any, l2tobj: Any) -> str:
    letters = l2tobj.node_arg_to_text(node, 0)
    if not letters.isalnum():  # no accent of Unicode spans more
        _refuse(node)
    return "".join(letter + _ACCENTS[node.macroname] for letter in letters)


def _fraction(node: Any, l2tobj: Any) -> str:
    over, under = (l2tobj.node_arg_to_text(node, place) for place in (0, 1))
    return f"\ue104{_factor(over, _NUMERATOR)}/{_factor(under, _DENOMINATOR)}\ue105"


def _root(node: Any, l2tobj: Any) -> str:
    degree, radicand = (l2tobj.node_arg_to_text(node, place) for place in (0, 1))
    return f"\ue104{degree.translate(_SCRIPTS['^'])}√{_factor(radicand, _RADICAND)}\ue105"


def _factor(text: str, atom: Pattern) -> str:
    """A part of a fraction or a root, in parentheses unless it is a number, a word or a bracket."""
    text = _built_up(text).strip()
    return text if atom.fullmatch(text) else f"({text})"


def _built_up(text: str) -> str:
    """A text with its fractions, and then with its superscripts and subscripts, from the innermost ones."""
    for pattern, replace in ((_UNIT, _unit), (_SCRIPT, _script)):
        before = ""
        while before != text:
            before, text = text, pattern.sub(replace, text)
    return text


def _unit(found: Match) -> str:
    """A fraction or a root, in parentheses where it stands beside another factor."""
    before, inside, after = found.groups()
    if before.isdigit() and re.fullmatch(r"\d+/\d+", inside):  # a mixed number
        return f"{before} {inside}"
    follows_factor = before or found.string[: found.start()].endswith("\ue105")
    if "√" in inside[:2]:
        is_divided = after and not inside.endswith(")")
    else:
        is_divided = follows_factor or after
    return f"{before}({inside})" if is_divided else before + inside


def _script(found: Match) -> str:
    """A superscript or subscript; the mark and the text, if Unicode lacks one of the characters."""
    mark, text = found[1], found[2] if found[3] is None else found[3]
    table = _SCRIPTS[mark]
    if all(ord(character) in table for character in text):
        return text.translate(table)
    return (mark + (text if len(text) == 1 else f"({text})")).translate(_TO_LITERAL)


def _with_spaces(text: str) -> str:
    """A row with its scripts, and with spaces around its relations."""
    text = re.sub("[{}]", "", _built_up(text))
    return " ".join(_RELATION.sub(r" \1 ", text).split()).translate(_FROM_LITERAL)
