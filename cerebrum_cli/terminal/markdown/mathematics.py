r"""Mathematics in LaTeX as Unicode text: between \( \), \[ \], $$ and, by Pandoc's rule, $.

A single $ needs a \, ^ or _ before the next; what cannot be shown stays as it was written.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from cerebrum_cli.core.text import Match, Pattern

# Scripts without spaces between words, and their punctuation.
IDEOGRAPHIC = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
# Brackets of a formula stand at the edges of words; those of sed 's/\(a\)/\1/' do not.
_BEFORE = rf"(?<![^\s(\[{{\"“‘«—–:,;>|=*_~{IDEOGRAPHIC}-])(?<![\w.)\]]\*|\\[(|])"
_AFTER = rf"(?!\.[a-z]|\*[^\s*.,;:)])(?=\Z|[\s)\]}}\"'”’»—–:,;.!?<|*_~{IDEOGRAPHIC}-]|(?:th|st|nd|rd)\b)"
INLINE_MATH = re.compile(
    rf"{_BEFORE}\\\((?:(?!\\[()])[^`]){{1,999}}?\\\){_AFTER}"
    # \[1\] and \[a-z\] are brackets that Markdown must not read
    rf"|{_BEFORE}\\\[(?=\s|[^\]]*(?:\\[a-zA-Z]|\w[\^_]))(?:(?!\\[\[\]])[^`]){{1,999}}?\\\]{_AFTER}"
    r"|(?<!\\)\$\$[^$`]{1,999}(?<!\\)\$\$"
    # neither beside an end of a regular expression, as in ^a*$|^b*$, nor before the variable of a path
    r"|(?<![\\$)}\]+?])(?<![\w.)\]]\*)\$(?!\s|[,;]|\|\^)(?=[^$]*[\\^_])"
    r"(?:[^$`\\]|\\.){1,500}(?<![\s/:=(,])\$(?![\d$])"
)
# Quotes, comments, variables of a shell, groups of regular expressions; and options and sentences without a macro.
_NO_MATHEMATICS = re.compile(
    r"[\"`#@]|'\*|=~|(?<!\\)\$|\A[\s_]*\Z"
    r"|(?s:\A(?!.*\\[a-zA-Z]{2}).*?(?:[^\W\d_]{3,} [^\W\d_]{2,}|-[a-z]{3}|-[a-z] \w|\A\s*[a-z]{3,}\s*\Z))"
)

# Private-use characters: braces and script marks that are text, and the ends of a fraction.
_LITERAL = "\ue100\ue101\ue102\ue103"
_TO_LITERAL, _FROM_LITERAL = str.maketrans("{}^_", _LITERAL), str.maketrans(_LITERAL, "{}^_")
_PARENTHESES = str.maketrans("\ue104\ue105", "()")
_MIXED_NUMBER = re.compile("(?<=\\d)\ue104(\\d+/\\d+)\ue105")
_LONE_FRACTION = re.compile("(?<![\\w)\ue105])\ue104([^\ue104\ue105]*)\ue105(?![\\w(√^_!∑∏∫\ue104])")
_LONE_ROOT = re.compile(r"√\(([\d.,]+|\w)\)(?![\w(√^_!])")
_SCRIPT = re.compile(r"([\^_])(?:\{([^{}^_]*)\}|(\d|[^\s{}^_](?![^\W\d_])))")  # not that of a name such as unit_price
_SCRIPTS = {
    "^": str.maketrans("0123456789+-=()nixyab′∘", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣʸᵃᵇ′°"),
    "_": str.maketrans("0123456789+-=()aeijkmnprtx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑᵢⱼₖₘₙₚᵣₜₓ"),
}
_RELATION = re.compile(r"\s*([=×±≤≥≠≈≡→⟹⟺⇒∈∉⊂⊆∪∩∧∨·])\s*")
_NUMERATOR = re.compile(r"[\w.,]+|\([^()]*\)|√\w")
_DENOMINATOR = re.compile(r"[\d.,]+|d?[^\W\d][²³⁰-⁹₀-₉ⁿ]*|\([^()]*\)|√\w")  # "ab" may be a product

# What pylatexenc does not know, or writes otherwise.
_UNSEEN = re.compile(
    r"\\(?:left|right)\.|\\(?:left|right|middle|[bB]igg?[lr]?|displaystyle|limits|nonumber|hline)(?![a-zA-Z])"
)
_MACROS = """implies ⟹, iff ⟺, ne ≠, checkmark ✓, lt <, gt >, | ‖, land ∧, lor ∨, neg ¬, triangle △, degree °,
gets ←, gcd gcd, det det, dim dim, ker ker, deg deg, arg arg, bmod mod, { \ue100, } \ue101, boxed %s, pmod (mod %s),
tag (%s), binom (%s choose %s), texttt %s, mathbf %s, mathit %s, mathsf %s, mathtt %s, mbox %s, operatorname %s,
boldsymbol %s, bm %s"""
_FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac")
_ACCENTS = {
    "vec": "\u20d7",
    "hat": "\u0302",
    "bar": "\u0304",
    "overline": "\u0305",
    "dot": "\u0307",
    "ddot": "\u0308",
    "tilde": "\u0303",
}


def is_mathematics(source: str) -> bool:
    """Whether what is between a text's delimiters has nothing that only code and sentences have."""
    return _NO_MATHEMATICS.search(_content(source)) is None


def formula(source: str, separator: str = "; ") -> str:
    """Mathematics with its delimiters as Unicode, its rows joined by a separator; as it is if it is not understood."""
    rows = _rows(_content(source))
    return source if rows is None else separator.join(rows)


def _content(source: str) -> str:
    width = 1 if re.match(r"\$(?!\$)", source) else 2
    return source[width:-width]


def _rows(latex: str) -> list[str] | None:
    """The rows of LaTeX as Unicode; None if it is not valid, or has a macro or an environment that is not known."""
    from pylatexenc.latexwalker import LatexWalker, LatexWalkerError

    parsing, writer = _parsing_and_writing()
    source = re.sub(r"\n|(?<!\\)~", " ", _UNSEEN.sub("", latex))
    source = re.sub(r"(?<!\\)%", r"\\%", source)  # it would begin a comment
    try:
        nodes, _, _ = LatexWalker(source, parsing, tolerant_parsing=False).get_latex_nodes()
        text = writer.nodelist_to_text(nodes)
    except (LatexWalkerError, RecursionError, ValueError):
        return None
    return [row for line in text.strip().split("\n") if (row := _with_spaces(line))]


@cache
def _parsing_and_writing() -> tuple[Any, Any]:
    """What pylatexenc parses, and what writes that."""
    from pylatexenc import latex2text, latexwalker
    from pylatexenc.latex2text import EnvironmentTextSpec, MacroTextSpec
    from pylatexenc.macrospec import std_macro

    texts: dict[str, Any] = dict(pair.split(maxsplit=1) for pair in _MACROS.split(","))
    macros = [std_macro(name, False, text.count("%s")) for name, text in texts.items()]
    macros += [std_macro(name, False, 2) for name in _FRACTIONS]
    texts |= dict.fromkeys(_FRACTIONS, _fraction) | dict.fromkeys(_ACCENTS, _accented) | {"sqrt": _root}
    parsing = latexwalker.get_default_latex_context_db().filter_context(exclude_categories=["nonascii-specials"])
    parsing.add_context_category("ours", macros, prepend=True)
    writing = latex2text.get_default_latex_context_db()
    rows = [EnvironmentTextSpec(name, "%(body)s") for name in ("aligned", "gathered", "split")]
    writing.add_context_category("ours", [MacroTextSpec(*item) for item in texts.items()], rows, prepend=True)
    writing.set_unknown_macro_spec(MacroTextSpec("", _refuse))
    writing.set_unknown_environment_spec(EnvironmentTextSpec("", _refuse))
    spaces = {"between-macro-and-chars": False, "between-latex-constructs": True}
    writer = latex2text.LatexNodes2Text(
        writing, keep_braced_groups=True, keep_braced_groups_minlen=0, strict_latex_spaces=spaces
    )
    return parsing, writer


def _refuse(node: Any, **_: Any) -> str:
    raise ValueError(f"unknown: {node}")


def _accented(node: Any, l2tobj: Any) -> str:
    letters = l2tobj.node_arg_to_text(node, 0)
    if not letters.isalnum():  # no accent of Unicode spans more
        _refuse(node)
    return "".join(letter + _ACCENTS[node.macroname] for letter in letters)


def _fraction(node: Any, l2tobj: Any) -> str:
    over, under = (_built_up(l2tobj.node_arg_to_text(node, place)).strip() for place in (0, 1))
    return f"\ue104{_factor(over, _NUMERATOR)}/{_factor(under, _DENOMINATOR)}\ue105"


def _factor(text: str, atom: Pattern) -> str:
    """A part of a fraction, in parentheses unless it is a number, a word or a bracket."""
    return text if atom.fullmatch(text) else f"({text})"


def _root(node: Any, l2tobj: Any) -> str:
    degree, radicand = (_built_up(l2tobj.node_arg_to_text(node, place)) for place in (0, 1))
    return f"{degree.translate(_SCRIPTS['^'])}√({radicand})"


def _built_up(text: str) -> str:
    """A text with its fractions, and then its superscripts and subscripts, from the innermost ones.

    A fraction or a root is in parentheses where it stands beside another factor.
    """
    text = _LONE_FRACTION.sub(r"\1", _MIXED_NUMBER.sub(r" \1", text)).translate(_PARENTHESES)
    before = ""
    while before != text:
        before, text = text, _SCRIPT.sub(_script, text)
    return _LONE_ROOT.sub(r"√\1", text)


def _script(found: Match) -> str:
    """A superscript or subscript; the mark and the text, if Unicode lacks one of the characters."""
    mark, text = found[1], found[2] or found[3] or ""
    table = _SCRIPTS[mark]
    if all(ord(character) in table for character in text):
        return text.translate(table)
    return (mark + (text if len(text) == 1 else f"({text})")).translate(_TO_LITERAL)


def _with_spaces(text: str) -> str:
    """A row with its scripts, and with spaces around its relations."""
    text = re.sub("[{}]", "", _built_up(text))
    return " ".join(_RELATION.sub(r" \1 ", text).split()).translate(_FROM_LITERAL)
